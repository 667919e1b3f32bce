"""Outputs of single-operator samples by onnxruntime, or by onnx's reference evaluator where onnxruntime has no kernel.

  python op_goldens.py IN_DIR OUT_FILE.npz [--prefer reference] [--both] [--exact-f16] [--compressed]

For every IN_DIR/NAME.onnx with IN_DIR/NAME.in.npz (one array per graph input, under the input's name; the file may be missing for a model without
inputs) it stores NAME/0, NAME/1, ... in the order of the graph outputs (a missing or non-tensor output is left out and listed), and `meta`: u8 array
of a JSON object
  {"samples": {NAME: {"witness": "onnxruntime"|"onnx.reference"|"none", "version", "outputs": [names], "ops": [...], "opset": {...}, "why": reason
   for the fallback, "errors": {witness: text}, "agreement": {...} with --both}}, "onnxruntime": version, "onnx": version, "numpy": version}
NAME may hold any character but '/'. A sample that no witness can run has witness "none" and no arrays; the exit code is then still 0 and the last line
on stdout says how many. bfloat16 outputs are stored as their u16 bits, listed under "bfloat16".
--exact-f16: half-precision samples are also run as float32 copies (to_f32.py, inputs widened); stored as NAME/exact/0, ...: the value before rounding.
"""
import argparse
import json
import os
import sys

import numpy as np
import onnx

from run_ort import load_npz, save_npz, session
from to_f32 import convert

GOLDEN_OPTIONS = ("graph_optimization_level=disable",)  # no fusion: the operator itself


def by_ort(model, feed):
    s = session(model.SerializeToString(), GOLDEN_OPTIONS)
    need = {i.name for i in s.get_inputs()}
    return s.run(None, {k: v for k, v in feed.items() if k in need})


def by_reference(model, feed):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, feed)


def agreement(a, b):
    if len(a) != len(b):
        return "different number of outputs"
    out = []
    for x, y in zip(a, b):
        if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
            out.append("not tensors")
        elif x.shape != y.shape or x.dtype != y.dtype:
            out.append(f"{x.dtype}{list(x.shape)} against {y.dtype}{list(y.shape)}")
        elif x.dtype.kind in "fiu" and x.size:
            d = np.abs(x.astype(np.float64) - y.astype(np.float64))
            d[(x == y) | (np.isnan(x.astype(np.float64)) & np.isnan(y.astype(np.float64)))] = 0
            out.append(float(d.max()))
        else:
            out.append(0.0 if np.array_equal(x, y) else "differ")
    return out


def text(e):
    return " ".join(f"{type(e).__name__}: {e}".split())[:400]


def sample(path, feed, a, versions):
    model = onnx.load(path)
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    info = {
        "witness": "none",
        "outputs": [o.name for o in model.graph.output],
        "ops": sorted({f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node}),
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "errors": {},
    }
    witnesses = [("onnxruntime", by_ort), ("onnx.reference", by_reference)]
    if a.prefer == "reference":
        witnesses.reverse()
    got = {}
    for name, f in witnesses:
        try:
            got[name] = f(model, feed)
        except Exception as e:
            info["errors"][name] = text(e)
            continue
        if not a.both:
            break
    arrays = {}
    if got:
        w = next(n for n, _ in witnesses if n in got)
        info["witness"], info["version"] = w, versions[w]
        if w != witnesses[0][0]:
            info["why"] = info["errors"][witnesses[0][0]]
        if len(got) == 2:
            info["agreement"] = agreement(*(got[n] for n, _ in witnesses))
        keep(arrays, "", got[w], info)
        if a.exact_f16 and any(v.type.tensor_type.elem_type in half for v in list(model.graph.input) + list(model.graph.output)):
            wide = {k: v.astype(np.float32) if v.dtype == np.float16 or v.dtype.name == "bfloat16" else v for k, v in feed.items()}
            try:
                keep(arrays, "exact/", dict(witnesses)[w](convert(onnx.load(path)), wide), info)
            except Exception as e:
                info["errors"]["exact"] = text(e)
    if not info["errors"]:
        del info["errors"]
    return info, arrays


def keep(arrays, prefix, outputs, info):
    for i, o in enumerate(outputs):
        if isinstance(o, (np.generic, float, int, bool)):
            o = np.asarray(o)
        if not isinstance(o, np.ndarray):
            info.setdefault("left_out", []).append(prefix + str(i))
        elif o.dtype.name == "bfloat16":
            info.setdefault("bfloat16", []).append(prefix + str(i))
            arrays[prefix + str(i)] = o.view(np.uint16)
        elif o.dtype.kind in "biuf":
            arrays[prefix + str(i)] = o
        else:
            info.setdefault("left_out", []).append(prefix + str(i))


def main():
    import onnxruntime

    ap = argparse.ArgumentParser(description="outputs of single-operator samples")
    ap.add_argument("in_dir")
    ap.add_argument("out")
    ap.add_argument("--prefer", choices=("ort", "reference"), default="ort")
    ap.add_argument("--both", action="store_true", help="run both witnesses and record how far they agree (largest absolute difference per output)")
    ap.add_argument("--exact-f16", action="store_true")
    ap.add_argument("--compressed", action="store_true")
    a = ap.parse_args()
    versions = {"onnxruntime": onnxruntime.__version__, "onnx.reference": onnx.__version__}
    try:
        onnxruntime.set_default_logger_severity(4)
        names = sorted(f[:-5] for f in os.listdir(a.in_dir) if f.endswith(".onnx"))
        if not names:
            raise ValueError(f"no .onnx file in {a.in_dir}")
        samples, arrays = {}, {}
        for n in names:
            p = os.path.join(a.in_dir, n + ".in.npz")
            try:
                samples[n], got = sample(os.path.join(a.in_dir, n + ".onnx"), load_npz(p) if os.path.exists(p) else {}, a, versions)
            except Exception as e:  # a model or an input file that cannot be read
                samples[n], got = {"witness": "none", "errors": {"load": text(e)}}, {}
            arrays.update({f"{n}/{k}": v for k, v in got.items()})
        meta = {"samples": samples, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
        arrays["meta"] = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
        save_npz(a.out, arrays, a.compressed)
    except Exception as e:
        print("error: " + text(e), file=sys.stderr)
        return 1
    by = [s["witness"] for s in samples.values()]
    print(f"{len(by)} samples: {by.count('onnxruntime')} onnxruntime, {by.count('onnx.reference')} onnx.reference, {by.count('none')} none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
