"""Is a compiled graph the original graph with fake-quantized weights? Many graphs in one process; the answer comes from onnxruntime.

  python corpus_fakequant.py JOBS.json RESULTS.json

JOBS.json: a list of {"name", "original", "emitted", "io": [npz, ...]}; the npz hold `in/<input>` and `out/<output>`.
RESULTS.json: a list of {"name", "layers", "error", "half_error", "moved", "runs", "skipped_runs", "problem"} in the same order.

The packed weights of the emitted file are unpacked and dequantized here, from the description of the formats and not by the compiler's code, and put
into the ORIGINAL graph at the MatMul and Gemm nodes that read the weight, in the orientation that the node wants. Both graphs then run in onnxruntime:
`error` is the largest difference of an output over the output's largest magnitude, rows under a zero of attention_mask left out. Float16 graphs are compared after to_f32.py on
both sides, so that only the weights count; `half_error` is the difference of the emitted file as it is, in float16, from the same witness. `moved` is how far
fake-quantizing takes the original graph: a check that there was something to see.
"""
import json
import re
import sys

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import run_ort
import to_f32

STEM = re.compile(r"^(.+)\.w\d(?:g\d+|a8)\.B(_\d+)?$")
SYMMETRIC = {"MbqMatMulW8A8": 8, "MbqMatMulW4A8": 4}
QUANTIZED = ("MatMulNBits", "MbqMatMulW3", *SYMMETRIC)
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


# --- formats ---------------------------------------------------------------------------------------------------------


def codes_of_thirds(b, g):
    """[n, groups, 3g/8] bytes: thirds L0 | L1 | H; pair i of quarter t lies in byte i, bits 2(t mod 2) and +4 of L, bits t and t+4 of H"""
    n, groups, size = b.shape
    assert size * 8 == 3 * g, f"a block of {size} bytes for {g} codes"
    l0, l1, h = b[..., : g // 8], b[..., g // 8 : g // 4], b[..., g // 4 :]
    q = np.zeros((n, groups, g), np.uint8)
    for t in range(4):
        low, at = (l0, l1)[t // 2], 2 * (t % 2)
        for half in range(2):
            q[..., g // 4 * t + half : g // 4 * (t + 1) : 2] = (low >> (at + 4 * half)) & 3 | ((h >> (t + 4 * half)) & 1) << 2
    return q


def fields(b, bits):
    """bytes to fields of `bits` bits, low ones first, along the last axis"""
    parts = [(b >> s) & (2**bits - 1) for s in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*b.shape[:-1], -1)


def dequantize(node, arrays):
    a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
    if node.op_type in SYMMETRIC:
        b, scales = (arrays[name] for name in node.input[1:3])
        bits = SYMMETRIC[node.op_type]
        q = fields(b, bits)[:, : a["K"]].astype(np.int16) - 2 ** (bits - 1)
        assert q.shape == (a["N"], a["K"]) and scales.shape == (a["N"],), f"codes {q.shape}, scales {scales.shape}"
        return q.astype(np.float32) * scales.astype(np.float32)[:, None]
    n, k, g = a["N"], a["K"], a["block_size"]
    b, scales, zeros = (arrays[name] for name in node.input[1:4])
    groups = -(-k // g)
    scales = np.asarray(scales, np.float32).reshape(n, groups)
    if node.op_type == "MbqMatMulW3":
        q, zero_bits, top = codes_of_thirds(b, g), 4, 7
    else:
        q, zero_bits, top = fields(b.reshape(n, groups, -1), a["bits"]), a["bits"], 2 ** a["bits"] - 1
    z = fields(zeros.reshape(n, -1), zero_bits)[:, :groups]
    assert q.shape == (n, groups, g) and z.max(initial=0) <= top, f"codes {q.shape}, zero point {z.max()}"
    w = (q.astype(np.float32) - z[..., None].astype(np.float32)) * scales[..., None]
    w = w.reshape(n, groups * g)
    assert not np.any(w[:, k:]), "padding is not zero"
    return w[:, :k]


# --- graphs ----------------------------------------------------------------------------------------------------------


def subgraphs(node):
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH:
            yield a.g
        elif a.type == AttributeProto.GRAPHS:
            yield from a.graphs


def attr(node, name, default=None):
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def scopes(graph, outer=()):
    """every graph with the graphs around it, the innermost first"""
    chain = (graph, *outer)
    yield chain
    for node in graph.node:
        for sub in subgraphs(node):
            yield from scopes(sub, chain)


class Names:
    """what names mean in a graph and around it"""

    def __init__(self, chain, cache):
        self.tables = []
        for g in chain:
            if id(g) not in cache:
                cache[id(g)] = ({t.name: t for t in g.initializer}, {o: n for n in g.node for o in n.output if o}, {i.name for i in g.input})
            self.tables.append((id(g), *cache[id(g)]))

    def constant(self, name):
        """(graph, name) of the constant that a value shows, and whether it is seen transposed; None where it is computed"""
        turned = False
        while True:
            for owner, initializers, producers, inputs in self.tables:
                if name in initializers:
                    return (owner, name), turned
                if name in producers:
                    node = producers[name]
                    break
                if name in inputs:
                    return None
            else:
                return None
            if node.op_type == "Constant":
                return (owner, name), turned
            if node.op_type == "Transpose":
                perm = list(attr(node, "perm", []))
                if perm not in ([], [0, 1], [1, 0]):
                    return None
                turned ^= perm != [0, 1]
            elif node.op_type not in ("Identity", "Cast"):
                return None
            name = node.input[0]


def packed(model):
    """dequantized weights of an emitted model by (weight, graph name), and how many nodes read each"""
    found, count = {}, {}
    for chain in scopes(model.graph):
        arrays = {}
        for g in reversed(chain):
            arrays.update({t.name: t for t in g.initializer})
        for node in chain[0].node:
            if node.op_type in QUANTIZED and len(node.input) > 1 and (m := STEM.match(node.input[1])):
                key = node.input[1]
                count[key] = count.get(key, 0) + 1
                if key not in found:
                    found[key] = (m[1], dequantize(node, {name: numpy_helper.to_array(arrays[name]) for name in node.input[1:4]}))
    return found, count


def put(original, emitted):
    """the original with fake-quantized weights; number of layers"""
    found, count = packed(emitted)
    by_weight = {}
    for key, (weight, w) in found.items():
        assert weight not in by_weight, f"weight {weight} is packed twice"
        by_weight[weight] = (key, w)
    cache, replaced = {}, {}
    chains = list(scopes(original.graph))
    for chain in chains:
        names, g = Names(chain, cache), chain[0]
        for node in g.node:
            if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
                continue
            for slot in (1, 0):
                constant = names.constant(node.input[slot])
                if not constant or constant[0][1] not in by_weight or names.constant(node.input[1 - slot]):
                    continue
                key, w = by_weight[constant[0][1]]
                trans = node.op_type == "Gemm" and attr(node, "transB", 0)
                wanted = w if slot == 0 or trans else w.T
                if node.op_type == "Gemm":
                    wanted = wanted / np.float32(attr(node, "alpha", 1.0))
                name = f"{key}.fake{len(replaced)}_{count[key]}"
                g.initializer.append(numpy_helper.from_array(np.ascontiguousarray(wanted), name))
                node.input[slot] = name
                replaced[key] = replaced.get(key, 0) + 1
                break
    assert replaced == count, f"the emitted graph has {count} quantized layers by weight, the original {replaced}"
    return sum(count.values())


def is_half(model):
    return any(t.data_type in HALF for chain in scopes(model.graph) for t in chain[0].initializer) or any(
        a.type == AttributeProto.TENSOR and a.t.data_type in HALF for chain in scopes(model.graph) for n in chain[0].node for a in n.attribute
    )


# --- comparing -------------------------------------------------------------------------------------------------------


def rows_that_count(shape, mask):
    """which entries of an output of this shape do not belong to padding; None: all"""
    if mask is None or mask.ndim != 2 or not len(shape) or shape[0] != mask.shape[0] or mask.all():
        return None
    mask = mask.astype(bool)
    axis = 2 if len(shape) == 4 else 1
    if len(shape) <= axis or shape[axis] > mask.shape[1] or shape[axis] == 0:
        return None
    keep = mask[:, mask.shape[1] - shape[axis] :]
    return np.broadcast_to(keep.reshape([shape[0]] + [1] * (axis - 1) + [shape[axis]] + [1] * (len(shape) - axis - 1)), shape)


def difference(one, two, mask):
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape:
        return float("inf")
    keep = rows_that_count(one.shape, mask)
    if keep is not None:
        one, two = one[keep], two[keep]
    if one.size == 0:
        return 0.0
    one, two = one.astype(np.float64), two.astype(np.float64)
    both = ~(np.isnan(one) & np.isnan(two))
    one, two = one[both], two[both]
    if one.size == 0 or np.array_equal(one, two):
        return 0.0
    worst = float(np.max(np.abs(one - two)) / max(float(np.max(np.abs(two))), 1e-9))
    return worst if np.isfinite(worst) else float("inf")


def feeds(session, arrays):
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    found = {}
    for i in [*session.get_inputs(), *session.get_overridable_initializers()]:
        if i.name in arrays:
            a = arrays[i.name]
            found[i.name] = a.astype(kinds[i.type]) if i.type in kinds else a
    return found


def compute(model, ios, options=()):
    s = run_ort.session(model.SerializeToString(), options)
    names = [o.name for o in s.get_outputs()]
    answers = []
    for arrays in ios:
        try:
            answers.append(dict(zip(names, s.run(names, feeds(s, arrays)))))
        except Exception as e:  # an input set that the export itself cannot take
            answers.append(e)
    return answers


def worst(emitted, witness, ios):
    error, runs, skipped = 0.0, 0, 0
    for got, want, arrays in zip(emitted, witness, ios):
        if isinstance(want, Exception):
            if not isinstance(got, Exception):
                raise ValueError("the emitted graph runs where the original does not")
            skipped += 1
            continue
        if isinstance(got, Exception):
            raise got
        if got.keys() != want.keys():
            raise ValueError(f"outputs {sorted(got)} instead of {sorted(want)}")
        error = max([error] + [difference(got[k], want[k], arrays.get("attention_mask")) for k in want])
        runs += 1
    return error, runs, skipped


def judge(job):
    result = {"name": job["name"], "layers": 0, "error": None, "half_error": None, "moved": None, "runs": 0, "skipped_runs": 0, "problem": None}
    try:
        original, emitted = onnx.load(job["original"]), onnx.load(job["emitted"])
        ios = []
        for path in job["io"]:
            ios.append({k[3:]: v for k, v in run_ort.load_npz(path).items() if k.startswith("in/")})
        half = is_half(original)
        as_it_is = compute(emitted, ios) if half else None
        if half:
            original = to_f32.convert(original)
        unquantized = compute(original, ios)
        result["layers"] = put(original, emitted)
        if half:
            emitted = to_f32.convert(emitted)
        witness = compute(original, ios)
        got = compute(emitted, ios)
        result["moved"] = worst(unquantized, witness, ios)[0]
        result["error"], result["runs"], result["skipped_runs"] = worst(got, witness, ios)
        if half:
            result["half_error"] = worst(as_it_is, witness, ios)[0]
    except Exception as e:
        result["problem"] = " ".join(f"{type(e).__name__}: {e}".split())
    return result


def main():
    jobs, out = sys.argv[1:3]
    with open(jobs) as f:
        jobs = json.load(f)
    results = [judge(job) for job in jobs]
    with open(out, "w") as f:
        json.dump(results, f)
    return 0


if __name__ == "__main__":
    sys.exit(main())
