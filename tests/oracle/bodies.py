"""Function bodies of our operators in stock onnxruntime against the closed form.

  python bodies.py make DIR              small float models DIR/<case>.onnx and DIR/cases.json; needs onnx
  python bodies.py expect DIR            after compiling each <case>.onnx into <case>.q.onnx: inputs and expected outputs, DIR/<case>.npz; needs onnx
  python bodies.py run DIR RESULTS.json  runs every <case>.q.onnx; needs onnxruntime and numpy only, any version

A case is format x opset x float type x place x fallback. Places: `top`, and `if`: two layers in the branches of an `If`, whose packed weights are captured from the graph
around it. The closed form is y = sum_g s_g (sum_k q x - z_g sum_k x) in float64, from codes that corpus_fakequant.py unpacks; for w8a8 and w4a8 x is what
round(x / t) t makes of it in float32, with t = max(max|x|, 1e-5) / 127 of each row.
RESULTS.json: a list of {"name", "error", "problem", "refused"}; `error` is relative to the largest output, `refused` is there when this
version does not load the float model either. A body whose unpacking is left over after constant folding is a problem, too.
"""
import json
import os
import sys

import numpy as np

import run_ort

N = 24
K = {"w3g16": 40, "w8a8": 41, "w4a8": 41}  # three groups in a row: one padded, and a spare nibble among the zero points; a spare nibble in a row


def cases():
    for kind in ("f32", "f16"):
        for opset in (14, 17, 18, 21, 22):
            for place in ("top", "if"):
                yield {"name": f"ort-{opset}-{kind}-{place}", "fallback": "ort", "opset": opset, "kind": kind, "place": place, "format": "w3g16"}
        for opset in (15, 17, 18, 21, 22):
            for place in ("top", "if"):
                for name in ("w8a8", "w4a8"):
                    yield {"name": f"{name}-{opset}-{kind}-{place}", "fallback": "ort", "opset": opset, "kind": kind, "place": place, "format": name}
        for opset in (21, 22):
            for place in ("top", "if"):
                yield {"name": f"standard-{opset}-{kind}-{place}", "fallback": "standard", "opset": opset, "kind": kind, "place": place, "format": "w3g16"}


def weights(case):
    rng = np.random.default_rng(7)
    kind = np.float32 if case["kind"] == "f32" else np.float16
    # one-sided rows, so that zero points reach both ends
    w, v = (rng.normal(size=(K[case["format"]], N)) for _ in range(2))
    w[:, 0], w[:, 1] = np.abs(w[:, 0]), -np.abs(w[:, 1])
    return w.astype(kind), v.astype(kind), rng.normal(size=N).astype(kind)


def make(folder):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    for case in cases():
        t = TensorProto.FLOAT if case["kind"] == "f32" else TensorProto.FLOAT16
        info = helper.make_tensor_value_info
        w, v, b = weights(case)
        constants = [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (v, "v"), (b, "b"))]
        inputs = [info("x", t, ["batch", "sequence", K[case["format"]]])]
        y = info("y", t, ["batch", "sequence", N])
        node = helper.make_node
        if case["place"] == "top":
            nodes, constants = [node("MatMul", ["x", "w"], ["y"], name="layer")], constants[:1]
        else:
            inputs.append(info("which", TensorProto.BOOL, []))
            one = helper.make_graph([node("MatMul", ["x", "w"], ["y_then"], name="one")], "one", [], [info("y_then", t, None)])
            two_nodes = [node("MatMul", ["x", "v"], ["m"], name="two"), node("Add", ["m", "b"], ["y_else"])]
            two = helper.make_graph(two_nodes, "two", [], [info("y_else", t, None)])
            nodes = [node("If", ["which"], ["y"], then_branch=one, else_branch=two)]
        graph = helper.make_graph(nodes, case["name"], inputs, [y], constants)
        ir = 7 if case["opset"] < 15 else 8 if case["opset"] < 21 else 10
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case["opset"])], ir_version=ir)
        onnx.checker.check_model(model)
        onnx.save(model, os.path.join(folder, case["name"] + ".onnx"))
    with open(os.path.join(folder, "cases.json"), "w") as f:
        json.dump(list(cases()), f)


def read(case, x):
    """what a layer makes of its activations, in float64"""
    if case["format"] == "w3g16":
        return x.astype(np.float64)
    x = x.astype(np.float32)
    t = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5)) / np.float32(127)
    return np.rint(x / t).astype(np.float64) * t.astype(np.float64)


def expect(folder):
    import onnx

    import corpus_fakequant

    for case in cases():
        path = os.path.join(folder, case["name"])
        emitted = onnx.load(path + ".q.onnx")
        name = {"w3g16": "MbqMatMulW3", "w8a8": "MbqMatMulW8A8", "w4a8": "MbqMatMulW4A8"}[case["format"]]
        assert [f.name for f in emitted.functions] == [name], f"{path}: functions {[f.name for f in emitted.functions]}"
        ops = {n.op_type for f in emitted.functions for n in f.node}
        assert ("MatMulNBits" in ops) == (case["fallback"] == "ort" and name == "MbqMatMulW3"), f"{path}: body of {sorted(ops)}"
        found, count = corpus_fakequant.packed(emitted)
        assert sum(count.values()) == (1 if case["place"] == "top" else 2), f"{path}: {count}"
        held = {t.name for t in emitted.graph.initializer}
        assert set(found) <= held, f"{path}: packed weights are not in the main graph"
        by_weight = dict(found.values())
        kind = np.float32 if case["kind"] == "f32" else np.float16
        w, v, b = weights(case)
        rng = np.random.default_rng(11)
        arrays = {}
        for i, (batch, sequence) in enumerate(((1, 1), (2, 5))):
            x = rng.normal(size=(batch, sequence, K[case["format"]])).astype(kind)
            x[0, -1] *= 0 if i else 30
            for which in (True,) if case["place"] == "top" else (True, False):
                name, bias = ("w", 0.0) if which else ("v", b.astype(np.float64))
                # far enough from the float weights to tell, near enough to be theirs
                original = (w if which else v).astype(np.float64).T
                off = np.abs(by_weight[name] - original).max()
                assert 1e-3 < off < 1.0, f"{path}: {name} is off by {off}"
                key = f"{i}{'' if which else 'e'}"
                arrays[f"x{key}"] = x
                arrays[f"y{key}"] = read(case, x) @ by_weight[name].astype(np.float64).T + bias
        run_ort.save_npz(path + ".npz", arrays)


def run(folder, out):
    with open(os.path.join(folder, "cases.json")) as f:
        known = json.load(f)
    results = []
    for case in known:
        path = os.path.join(folder, case["name"])
        result = {"name": case["name"], "error": None, "problem": None}
        try:
            # onnxruntime turns DequantizeLinear and MatMul into its own 4-bit operator, with int8 activations unless told
            folded = path + ".folded.onnx"
            options = ["session.qdq_matmulnbits_accuracy_level=1", "graph_optimization_level=extended", f"optimized_model_filepath={folded}"]
            s = run_ort.session(path + ".q.onnx", options)
            with open(folded, "rb") as f:
                assert b"BitShift" not in f.read(), "the unpacking is not folded at load: every run would repeat it"
            arrays, worst = run_ort.load_npz(path + ".npz"), 0.0
            for key in [k[1:] for k in arrays if k.startswith("x")]:
                feed = {"x": arrays["x" + key]}
                if case["place"] == "if":
                    feed["which"] = np.array(not key.endswith("e"))
                (y,) = s.run(None, feed)
                want = arrays["y" + key]
                assert y.shape == want.shape and y.dtype == feed["x"].dtype, f"{y.dtype}{y.shape}"
                worst = max(worst, float(np.abs(y.astype(np.float64) - want).max() / np.abs(want).max()))
            result["error"] = worst if np.isfinite(worst) else None
        except Exception as e:
            result["problem"] = " ".join(f"{type(e).__name__}: {e}".split())
            try:
                run_ort.session(path + ".onnx")
            except Exception:
                result["refused"] = True
        results.append(result)
    with open(out, "w") as f:
        json.dump(results, f)


def main():
    {"make": make, "expect": expect, "run": run}[sys.argv[1]](*sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
