"""Our CPU kernels beside onnxruntime's, in one run: python kernels/benches/peers.py MBQC [--threads 1 2] [--quick]

Needs the packages of tests/requirements.txt. Every case is a file of layers of one shape, each with a weight of its own, together larger
than a last-level cache. `mbqc bench` times its layers; onnxruntime times the whole file, divided by the layers. The two take turns, three
times each; figures are medians, and only those of one run may be compared. Before anything is timed, a file's outputs by `mbqc run` and by
onnxruntime are compared with float64 from the codes.

onnxruntime has no 3-bit product: w3 stands beside its w4 of the same shape and accuracy_level. w8a8 and w4a8 stand beside the standard
operators that compute the same, which is what their function bodies are, and w8a8 beside a float product, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

GROUP = 128
LEAST_BYTES = 200_000_000
SHAPES = [(3584, 18944), (18944, 3584), (8192, 8192)]
TALL = [(1024, 4096), (3584, 3584)]
ROUNDS = 3
# Relative to the largest output: f32 or 16-bit activations, 8-bit activations.
MOST_ERROR = {1: 1e-4, 4: 3e-2}


# Ours, the peer's, and the accuracy levels.
PAIRS = [("w3", "w4", [4, 1]), ("w4", "w4", [4, 1]), ("w2", "w2", [4]), ("w8", "w8", [4])]
PAIRS += [("w8a8", "w8a8", [None]), ("w4a8", "w4a8", [None]), ("w8a8", "f32", [None])]


def weight_bytes(form, k, n):
    return k * n * {"f32": 32, "w4a8": 4, "w8a8": 8}.get(form, int(form[1])) // 8


def signed(rng, bits, k, n):
    """Random symmetric codes and their scales."""
    half = 1 << (bits - 1)
    return rng.integers(-half, half, (n, k), dtype=np.int8), rng.uniform(0.005, 0.02, n).astype(np.float32) * (8 / half)


def rounded(x):
    """What w8a8 and w4a8 make of activations, as integers and their scales."""
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5)) / np.float32(127)
    return np.rint(x / scale).astype(np.float64), scale


def weight(rng, bits, k, n):
    """Random codes as they are stored, and what they stand for."""
    groups = k // GROUP
    codes = rng.integers(0, 1 << bits, (n, groups, GROUP), dtype=np.uint8)
    if bits == 3:
        # Thirds: see kernels/w3/mod.rs.
        third = GROUP // 8
        quarters = codes.reshape(n, groups, 4, third, 2)
        low, high = np.zeros((n, groups, 2, third), np.uint8), np.zeros((n, groups, third), np.uint8)
        for t in range(4):
            a, b = quarters[:, :, t, :, 0], quarters[:, :, t, :, 1]
            low[:, :, t // 2] |= (a & 3 | (b & 3) << 4) << (2 * (t % 2))
            high |= (a >> 2 | b >> 2 << 4) << t
        stored = np.concatenate([low.reshape(n, groups, -1), high], axis=2)
    else:
        per = 8 // bits
        parts = codes.reshape(n, groups, GROUP // per, per)
        stored = sum(parts[..., i] << (i * bits) for i in range(per)).astype(np.uint8)
    middle = 1 << (bits - 1)
    zero_bits = 4 if bits == 3 else bits
    per = 8 // zero_bits
    byte = sum(middle << (i * zero_bits) for i in range(per))
    zeros = np.full((n, -(-groups // per)), byte, np.uint8)
    scales = rng.uniform(0.005, 0.02, (n, groups)).astype(np.float32)
    return stored, scales, zeros, codes, middle


def signed_model(path, form, k, n, copies, stock):
    """The same for w8a8 and w4a8, and for a float product; `stock`: of standard operators."""
    rng = np.random.default_rng(8)
    inits, nodes, first = [], [], None
    const = lambda name, value: inits.append(numpy_helper.from_array(np.asarray(value), name))
    node = lambda op, i, o, **a: nodes.append(helper.make_node(op, i, [o], **a))
    if stock and form != "f32":
        const("least", np.float32(1e-5)), const("levels", np.float32(127))
        node("Abs", ["x"], "magnitudes"), node("ReduceMax", ["magnitudes"], "largest", axes=[-1])
        node("Max", ["largest", "least"], "bounded"), node("Div", ["bounded", "levels"], "steps")
        const("middle", np.float32(128)), const("zero", np.uint8(128)), const("b_zero", np.uint8(128) if form == "w8a8" else np.int8(8))
        node("Div", ["x", "steps"], "quotients"), node("Round", ["quotients"], "levelled")
        node("Add", ["levelled", "middle"], "raised"), node("Cast", ["raised"], "p", to=TensorProto.UINT8)
    for c in range(copies):
        codes, scales = signed(rng, 4 if form == "w4a8" else 8, k, n)
        first = (codes.astype(np.float64) * scales[:, None]) if first is None else first
        if form == "f32":
            const(f"b{c}", np.ascontiguousarray((codes * scales[:, None]).T.astype(np.float32)))
            node("MatMul", ["x", f"b{c}"], f"y{c}")
        elif stock:
            raised = codes.astype(np.int16) + (128 if form == "w8a8" else 8)
            const(f"b{c}", np.ascontiguousarray(raised.T.astype(np.uint8 if form == "w8a8" else np.int8))), const(f"s{c}", scales)
            node("MatMulInteger", ["p", f"b{c}", "zero", "b_zero"], f"i{c}"), node("Cast", [f"i{c}"], f"f{c}", to=TensorProto.FLOAT)
            node("Mul", [f"f{c}", f"s{c}"], f"m{c}"), node("Mul", [f"m{c}", "steps"], f"y{c}")
        else:
            raised = (codes.astype(np.int16) + (128 if form == "w8a8" else 8)).astype(np.uint8)
            const(f"b{c}", raised if form == "w8a8" else raised[:, ::2] | raised[:, 1::2] << 4), const(f"s{c}", scales)
            nodes.append(helper.make_node("MbqMatMul" + form.upper(), ["x", f"b{c}", f"s{c}"], [f"y{c}"], domain="ai.mbqc", K=k, N=n))
    save(path, k, n, copies, nodes, inits)
    return first


def model(path, form, level, k, n, copies, stock):
    """A file of `copies` layers, by onnxruntime's operators if `stock`; answers the first layer in float64."""
    if form in ("w8a8", "w4a8", "f32"):
        return signed_model(path, form, k, n, copies, stock)
    bits = int(form[1])
    rng = np.random.default_rng(bits)
    inits, nodes, first = [], [], None
    for c in range(copies):
        stored, scales, zeros, codes, middle = weight(rng, bits, k, n)
        if first is None:
            first = ((codes.astype(np.float64) - middle) * scales[:, :, None]).reshape(n, k)
        for name, array, kind in [("b", stored, TensorProto.UINT8), ("s", scales, TensorProto.FLOAT), ("z", zeros, TensorProto.UINT8)]:
            inits.append(helper.make_tensor(f"{name}{c}", kind, array.shape, array.tobytes(), raw=True))
        attributes = dict(K=k, N=n, block_size=GROUP, accuracy_level=level)
        if bits == 3:
            op, domain = "MbqMatMulW3", "ai.mbqc"
        else:
            op, domain, attributes["bits"] = "MatMulNBits", "com.microsoft", bits
        nodes.append(helper.make_node(op, ["x", f"b{c}", f"s{c}", f"z{c}"], [f"y{c}"], f"n{c}", domain=domain, **attributes))
    save(path, k, n, copies, nodes, inits)
    return first


def save(path, k, n, copies, nodes, inits):
    floats = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
    graph = helper.make_graph(nodes, "layers", [floats("x", k)], [floats(f"y{c}", n) for c in range(copies)], inits)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.mbqc", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def session(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(what, found, x, first, form, level):
    if form in ("w8a8", "w4a8"):
        p, scale = rounded(x)
        wanted = p @ first.T * scale
    else:
        wanted = x.astype(np.float64) @ first.T
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error <= (MOST_ERROR[level] if level else 1e-5), f"{what}: outputs are off by {error:.1e} of the largest"
    return error


class Case:
    """A file and its two runtimes."""

    def __init__(self, folder, mbqc, form, level, k, n, threads, peer_form):
        self.mbqc, self.threads, self.k, self.n = mbqc, threads, k, n
        self.copies = max(2, LEAST_BYTES // weight_bytes(form, k, n))
        self.own = os.path.join(folder, "own.onnx")
        first = model(self.own, form, level, k, n, self.copies, False)
        x = np.random.default_rng(1).standard_normal((20, k)).astype(np.float32)
        # One kernel for few rows, one for many.
        for rows in (2, 20):
            np.savez(os.path.join(folder, "x.npz"), x=x[:rows])
            subprocess.run([mbqc, "run", self.own, "--inputs", folder + "/x.npz", "--outputs", folder + "/y.npz", "--quiet"], check=True)
            self.error = check("mbqc", np.load(folder + "/y.npz")["y0"], x[:rows], first, form, level)
        self.peer, self.peer_copies = self.own, self.copies
        if peer_form != form or level is None:
            self.peer = os.path.join(folder, "peer.onnx")
            self.peer_copies = max(2, LEAST_BYTES // weight_bytes(peer_form, k, n))
            first = model(self.peer, peer_form, level, k, n, self.peer_copies, True)
        self.session = session(self.peer, threads)
        self.peer_error = check("onnxruntime", self.session.run(["y0"], {"x": x})[0], x, first, peer_form, level)

    def ours(self, rows):
        command = [self.mbqc, "bench", self.own, "--rows", str(rows), "--threads", str(self.threads), "--seconds", "0.5", "--json", "--quiet"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        layers = told["layers"]
        return statistics.median(layer["seconds"] for layer in layers), layers[0]["bytes"], told["read_bandwidth"]

    def theirs(self, rows):
        x = np.random.default_rng(2).standard_normal((rows, self.k)).astype(np.float32)
        times = []
        begin = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begin < 0.5:
            start = time.perf_counter()
            self.session.run(None, {"x": x})
            times.append((time.perf_counter() - start) / self.peer_copies)
        return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mbqc")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="one shape of each kind")
    parser.add_argument("--only", help="formats, such as w3,w4")
    options = parser.parse_args()
    shapes = [(shape, [1, 8]) for shape in SHAPES] + [(shape, [512]) for shape in TALL]
    if options.quick:
        shapes = [(SHAPES[-1], [1, 8]), (TALL[0], [512])]
    print(f"onnxruntime {ort.__version__}; medians of {ROUNDS} turns; error: of the largest output, against float64")
    print(f"{'case':<44} {'ours ms':>9} {'GB/s':>6} {'of read':>7} {'ort ms':>9} {'ratio':>6}   error ours, ort")
    for threads in options.threads:
        for form, peer_form, levels in PAIRS:
            if options.only and form not in options.only.split(","):
                continue
            for level in levels:
                for (k, n), all_rows in shapes:
                    with tempfile.TemporaryDirectory() as folder:
                        case = Case(folder, options.mbqc, form, level, k, n, threads, peer_form)
                        for rows in all_rows:
                            turns = [(case.ours(rows), case.theirs(rows)) for _ in range(ROUNDS)]
                            ours = statistics.median(own[0] for own, _ in turns)
                            theirs = statistics.median(their for _, their in turns)
                            read = statistics.median(own[2] for own, _ in turns)
                            rate = turns[0][0][1] / ours
                            name = form + (f" level {level}" if level else "") + f" {k}x{n} rows {rows} threads {threads}"
                            name += f" / {peer_form}" if peer_form != form else ""
                            print(
                                f"{name:<44} {ours * 1e3:>9.3f} {rate / 1e9:>6.1f} {rate / read * 100:>6.0f}% {theirs * 1e3:>9.3f}"
                                f" {theirs / ours:>6.2f}   {case.error:.1e} {case.peer_error:.1e}",
                                flush=True,
                            )


if __name__ == "__main__":
    main()
