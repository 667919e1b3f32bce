"""Writes tests/goldens/pocket_gradients.npz: gradients of the answer cross-entropy at the output of every linear of pocket-vlm, by JAX autograd in
float64 (jax 0.10.2, numpy 2.4.6; see requirements-goldens.txt).

  python gradients.py --testbed DIR [--constants onnx-casts onnx] [--out FILE] [--check]

Loss of a sample: mean over its supervised targets of -log p(target), logits at row t against the token at row t + 1. The whole model runs from pixels
and ids; see pocket.py for what `constants` means. The gradient is with respect to the OUTPUT of a linear, after its bias.
--check compares mean |g| over 128 samples at o_proj and down_proj with the test bed's expected.json (constants hf) and writes nothing.
Layout: tests/oracle/README.md.
"""
import argparse
import json
import os

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import pocket as K  # noqa: E402
from run_ort import save_npz  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FULL = [K.L + "layers.1.self_attn.o_proj", K.L + "layers.1.mlp.down_proj"]
CLASSES = ("vision", "prompt", "answer")


def gradient_fn(net, names):
    """(weights, ids [1,T], pixels, answer) -> loss, {name: g [rows, channels]}"""

    def shapes(w, ids, px):
        s = {}
        net.logits(w, ids, px, out=lambda n, y: s.setdefault(n, y))
        return {n: s[n] for n in names}

    def loss(zero, w, ids, px, ans):
        lg = net.logits(w, ids, px, out=lambda n, y: y + zero[n] if n in zero else y)
        return K.cross_entropy(lg, ids, ans).sum()

    def f(w, ids, px, ans):
        zero = {n: jnp.zeros_like(y) for n, y in jax.eval_shape(shapes, w, ids, px).items()}
        v, g = jax.value_and_grad(loss)(zero, w, ids, px, ans)
        return v, {n: t for n, t in g.items()}

    return jax.jit(f)


def classes(ds, i, n):
    vis, ans = ds["vision_mask"][i, :n].astype(bool), ds["answer_mask"][i, :n].astype(bool)
    return {"vision": vis, "answer": ans, "prompt": ~vis & ~ans}


def check(a):
    want = json.load(open(os.path.join(a.testbed, "expected.json")))["pocket-vlm"]["gradients"]
    names = [f"{K.L}layers.{i}.{n}" for i in range(K.LAYERS) for n in ("self_attn.o_proj", "mlp.down_proj")]
    ds = K.load_set(os.path.join(a.testbed, "calib.npz"))
    w = K.weights(os.path.join(a.testbed, "hf", "pocket-vlm"))
    f = gradient_fn(K.Net("hf", np.float32), names)
    px, acc, B = K.pixels(ds["images"]), np.zeros((K.LAYERS, 2, 2)), 8
    for j in range(0, 128, B):
        s = slice(j, j + B)
        _, g = f(w, ds["input_ids"][s], px[s], ds["answer_mask"][s])
        for q, k in enumerate(("vision_mask", "answer_mask")):
            m = ds[k][s].astype(np.float64)
            for t, n in enumerate(names):
                e = np.abs(np.asarray(g[n], np.float64)).mean(-1)
                acc[t // 2, t % 2, q] += ((e * m).sum(1) / m.sum(1)).sum() / 128
    for q, k in enumerate(("vision", "answer")):
        e = np.asarray(want[k])
        print(k, "largest relative difference", float((np.abs(acc[..., q] - e) / np.maximum(e, 1e-30))[e > 0].max()), "exact zeros agree", bool(((acc[..., q] == 0) == (e == 0)).all()))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--testbed", required=True)
    ap.add_argument("--constants", nargs="+", default=["onnx-casts", "onnx"], choices=K.CONSTANTS)
    ap.add_argument("--samples", type=int, nargs=3, default=None, help="calibration samples; default: the shortest sequence and two others")
    ap.add_argument("--out", default=os.path.join(ROOT, "tests", "goldens", "pocket_gradients.npz"))
    ap.add_argument("--check", action="store_true")
    a = ap.parse_args()
    if a.check:
        return check(a)
    ds = K.load_set(os.path.join(ROOT, "models", "pocket-vlm", "calib.npz"))
    w = K.weights(os.path.join(a.testbed, "hf", "pocket-vlm"), np.float64)
    ln = ds["attention_mask"].sum(1).astype(int)
    samples = a.samples or [int(ln.argmin()), 0, 1]
    names, px = K.linears(), K.pixels(ds["images"])
    arrays, meta = {}, {
        "samples": samples, "rows": [int(ln[i]) for i in samples], "vision_rows": 256, "linears": names, "sets": a.constants, "classes": CLASSES, "full": FULL, "full_sample": samples[0],
        "source": f"jax {jax.__version__} float64, numpy {np.__version__}",
        "preferred": "onnx-casts for model.onnx (explicit casts to float16 round); onnx for an evaluator that takes those casts as no-ops",
        "direction": "sign of element i (row-major in [rows, channels]) is -1 where ((i * 2654435761 mod 2^32) >> 16) has odd parity, else +1",
        "layout": "SET/SAMPLE/loss f64; SET/SAMPLE/rows/LINEAR f32 [rows] = mean over channels of |g| (first set only); SET/SAMPLE/summary f64 [linears, 8] = mean |g| of vision, prompt, answer rows, mean g^2 of the same, <g, direction>, |g|_2; tower and projector linears have 256 rows, all vision, so their prompt and answer entries are 0; SET/SAMPLE/full/LINEAR f32 [rows, channels] (first set, first sample)",
    }
    for c in a.constants:
        f = gradient_fn(K.Net(c, np.float64), names)
        for i in samples:
            n = int(ln[i])
            v, g = f(w, ds["input_ids"][i : i + 1, :n], px[i : i + 1], ds["answer_mask"][i : i + 1, :n])
            k, cl, table = f"{c}/{i}", classes(ds, i, n), []
            arrays[k + "/loss"] = np.float64(v)
            for t in names:
                x = np.asarray(g[t][0])
                a1, a2, lang = np.abs(x).mean(-1), (x * x).mean(-1), t.startswith(K.L)
                pick = [(cl[m] if lang else np.full(256, m == "vision")) for m in CLASSES]
                mean = lambda e: [float(e[p].mean()) if p.any() else 0.0 for p in pick]  # noqa: E731
                if c == a.constants[0]:
                    arrays[f"{k}/rows/{t}"] = a1.astype(np.float32)
                table.append(mean(a1) + mean(a2) + [float(x.ravel() @ K.direction(x.size)), float(np.sqrt((x * x).sum()))])
                if t in FULL and i == samples[0] and c == a.constants[0]:
                    arrays[f"{k}/full/{t}"] = x.astype(np.float32)
            arrays[k + "/summary"] = np.asarray(table)
            print(k, "rows", n, "loss", float(v))
    arrays["meta"] = np.frombuffer(json.dumps(meta, indent=1).encode(), np.uint8)
    save_npz(a.out, arrays, compressed=True)
    print(a.out, os.path.getsize(a.out), "bytes")


if __name__ == "__main__":
    main()
