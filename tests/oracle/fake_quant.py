"""Writes tests/goldens/pocket_quant.json: answer cross-entropy of pocket-vlm and its injected variant under fake quantization of the decoder linears
(W3, groups of 128 along the input axis, asymmetric, range not extended to zero, float32 scales), by an implementation of its own in JAX and numpy,
float32 (jax 0.10.2, numpy 2.4.6, onnxruntime 1.31.1; see requirements-goldens.txt).

  python fake_quant.py --testbed DIR [--out FILE]

Methods: fp; rtn; awq and mbq with the exponents of the test bed's expected.json (rho from 128 calibration samples, search on the first 48) and the
scale vectors derived anew from mean |x| over the non-pad tokens of the first 48 calibration samples: s = max(m^t, 1e-4), s /= sqrt(max(s) min(s)),
folded into the producer (norm gain, rows of up_proj), then every decoder linear is rounded. Not quantized: tower, projector, embedding, head.
The codes of this quantizer are compared with the hashes in expected.json (w3g128, w4g128, w2g64) before anything is written.
Also written: the cross-entropy of the unquantized float16 graphs in onnxruntime and of their float32 copies (to_f32.py).
Samples: the first 64 of eval_a and the 96 of models/pocket-vlm/eval.npz. A sample's value is the mean over its supervised targets.
"""
import argparse
import hashlib
import json
import os

import jax
import numpy as np
import onnx

import pocket as K
from make_eval import choose
from run_ort import session
from to_f32 import convert

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GROUPS = {"qkv": K.DEC[0:3], "gate_up": K.DEC[4:6], "down": K.DEC[6:7]}
FORMATS = {"w3g128": (3, 128), "w4g128": (4, 128), "w2g64": (2, 64)}
VARIANTS = ("pocket-vlm", "pocket-vlm-injected")
F = np.float32


def quantize(w, bits, group):
    """codes u8 [n, k] and the weights they stand for, float32 throughout"""
    top, codes, deq = F(2**bits - 1), [], []
    for w in np.split(w, range(group, w.shape[1], group), axis=1):
        hi, lo = w.max(1, keepdims=True), w.min(1, keepdims=True)
        s = np.maximum(hi - lo, F(1e-5)) / top
        z = np.clip(-np.rint(lo / s), F(0), top)
        q = np.clip(np.rint(w / s) + z, F(0), top)
        codes.append(q.astype(np.uint8))
        deq.append((q - z) * s)
    return np.concatenate(codes, 1), np.concatenate(deq, 1)


def round_decoder(w, bits=3, group=128):
    w = dict(w)
    for i in range(K.LAYERS):
        for n in K.DEC:
            k = f"{K.L}layers.{i}.{n}.weight"
            w[k] = quantize(w[k], bits, group)[1]
    return w


def scale(m, t):
    s = np.maximum(np.power(m, F(t)), F(1e-4))
    return s / np.sqrt(s.max() * s.min())


def fold(w, scales):
    w = dict(w)
    for (i, g), s in scales.items():
        p = f"{K.L}layers.{i}."
        for n in GROUPS[g]:
            w[p + n + ".weight"] = w[p + n + ".weight"] * s
        if g == "down":
            w[p + "mlp.up_proj.weight"] = w[p + "mlp.up_proj.weight"] / s[:, None]
        else:
            n = p + ("input_layernorm" if g == "qkv" else "post_attention_layernorm") + ".weight"
            w[n] = w[n] / s
    return w


class Runner:
    def __init__(self, constants):
        net = K.Net(constants, F)
        self.feats = jax.jit(lambda w, px: net.vision(w, px))
        self.ce = jax.jit(lambda w, ids, ft, ans: K.cross_entropy(net.decode(w, net.embed(w, ids, ft)), ids, ans))

        def inputs(w, ids, ft):
            seen = {}
            net.decode(w, net.embed(w, ids, ft), tap=lambda n, x: seen.setdefault(n, x))
            return {(i, g): seen[f"{K.L}layers.{i}.{c[0]}"] for i in range(K.LAYERS) for g, c in GROUPS.items()}

        self.inputs = jax.jit(lambda w, ids, ft: {f"{i}.{g}": v for (i, g), v in inputs(w, ids, ft).items()})

    def features(self, w, ds, bs=8):
        px = K.pixels(ds["images"])
        return np.concatenate([np.asarray(self.feats(w, px[j : j + bs])) for j in range(0, len(px), bs)])

    def mean_abs(self, w, ds, bs=8):
        ft, acc, n = self.features(w, ds), {}, 0
        for j in range(0, len(ft), bs):
            m = ds["attention_mask"][j : j + bs].astype(bool)
            n += int(m.sum())
            for k, x in self.inputs(w, ds["input_ids"][j : j + bs], ft[j : j + bs]).items():
                acc[k] = acc.get(k, 0) + np.abs(np.asarray(x))[m].astype(np.float64).sum(0)
        return {k: (v / n).astype(F) for k, v in acc.items()}

    def cross_entropy(self, w, ds, ft, bs=8):
        pad = -len(ft) % bs
        ix = np.concatenate([np.arange(len(ft)), np.zeros(pad, int)])
        out = [np.asarray(self.ce(w, ds["input_ids"][r], ft[r], ds["answer_mask"][r])) for r in np.split(ix, len(ix) // bs)]
        return np.concatenate(out)[: len(ft)].astype(np.float64)


def answer_ce(lg, ids, ans):
    pos = np.nonzero(ans)[0] - 1
    x = lg[pos].astype(np.float64)
    x -= x.max(1, keepdims=True)
    return float((np.log(np.exp(x).sum(1)) - x[np.arange(len(pos)), ids[pos + 1]]).mean())


def ort_single(model, ds):
    s, out = session(model), []
    for i, m in enumerate(ds["attention_mask"]):
        n = int(m.sum())
        ids = ds["input_ids"][i : i + 1, :n].astype(np.int64)
        lg = s.run(["logits"], {"input_ids": ids, "pixel_values": K.pixels(ds["images"][i : i + 1]), "attention_mask": np.ones_like(ids)})[0]
        out.append(answer_ce(lg[0], ids[0], ds["answer_mask"][i, :n]))
    return np.array(out)


def ort_folder(load, ds):
    S, out = {k: session(load(k)) for k in ("vision_encoder", "embed_tokens", "decoder_model_merged")}, []
    past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), F) for i in S["decoder_model_merged"].get_inputs() if i.name.startswith("past")}
    for i, m in enumerate(ds["attention_mask"]):
        n = int(m.sum())
        ids = ds["input_ids"][i : i + 1, :n].astype(np.int64)
        e = S["embed_tokens"].run(None, {"input_ids": ids})[0].copy()
        e[ids == K.IMAGE_TOKEN] = S["vision_encoder"].run(None, {"pixel_values": K.pixels(ds["images"][i : i + 1])})[0][0]
        feed = {"inputs_embeds": e, "attention_mask": np.ones_like(ids), "position_ids": np.arange(n, dtype=np.int64)[None], **past}
        out.append(answer_ce(S["decoder_model_merged"].run(["logits"], feed)[0][0], ids[0], ds["answer_mask"][i, :n]))
    return np.array(out)


def summary(v):
    d = v.astype(np.float64)
    return {"n": len(v), "first": num(v[:4]), "last": num(v[-4:]), "sum": float(d.sum()), "sumsq": float((d * d).sum()), "min": num(v.min()), "max": num(v.max())}


def num(x, digits=9):
    return [num(v, digits) for v in x] if np.ndim(x) else float(f"{float(x):.{digits}g}")


def difference(a, b):
    d = a - b
    return {"mean": num(d.mean(), 4), "mean_abs": num(np.abs(d).mean(), 4), "max_abs": num(np.abs(d).max(), 4)}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--testbed", required=True)
    ap.add_argument("--out", default=os.path.join(ROOT, "tests", "goldens", "pocket_quant.json"))
    a = ap.parse_args()
    bed = lambda *p: os.path.join(a.testbed, *p)  # noqa: E731
    want = json.load(open(bed("expected.json")))
    full = K.load_set(bed("eval_a.npz"))
    first, chosen = np.arange(64), choose(full["kind"])
    union = np.union1d(first, chosen)
    ds, cal = {k: v[union] for k, v in full.items()}, K.load_set(bed("calib.npz"), slice(0, 48))
    here = K.load_set(os.path.join(ROOT, "models", "pocket-vlm", "eval.npz"))
    assert all(np.array_equal(here[k], full[k][chosen]) for k in here), "eval.npz is not the cut of eval_a that make_eval.py makes"
    at = lambda v: {"eval_a": num(v[np.searchsorted(union, first)]), "eval": num(v[np.searchsorted(union, chosen)])}  # noqa: E731
    import onnxruntime

    res = {
        "source": {"jax": jax.__version__, "numpy": np.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__},
        "setting": {"format": "w3g128", "bits": 3, "group": 128, "extend_to_zero": False, "scales": "float32", "scale_samples": 48, "scale_tokens": "non-pad"},
        "samples": {"eval_a": {"index": first.tolist(), "kind": full["kind"][first].tolist()}, "eval": {"index_in_eval_a": chosen.tolist(), "kind": full["kind"][chosen].tolist()}},
        "targets": {"eval_a": full["answer_mask"][first].sum(1).tolist(), "eval": full["answer_mask"][chosen].sum(1).tolist()},
        "variants": {},
    }
    for v in VARIANTS:
        w, exp = K.weights(bed("hf", v)), want[v]["exponents"]["w3g128"]
        for f, (bits, g) in FORMATS.items():
            for k, h in want[v]["rtn_codes_sha256"][f].items():
                c = quantize(w[f"{K.L}layers.{k}.weight"], bits, g)[0]
                assert hashlib.sha256(c.tobytes()).hexdigest() == h, f"{v} {f} {k}: codes differ"
        print(v, "codes equal those of expected.json")
        r, ce = {"exponents": exp, "mean_abs": {}, "scales": {}, "ce": {}}, {}
        for c in K.CONSTANTS:
            run = Runner(c)
            ft, m = run.features(w, ds), run.mean_abs(w, cal)
            if c != "onnx":
                r["mean_abs"][c] = {k: num(x, 8) for k, x in m.items()}
            vectors = {method: {k: scale(m[k], t) for k, t in exp[method].items()} for method in ("awq", "mbq")}
            if c != "onnx":
                r["scales"][c] = {method: {k: summary(s) for k, s in d.items()} for method, d in vectors.items()}
            folded = {method: fold(w, {(int(k[0]), k[2:]): s for k, s in d.items()}) for method, d in vectors.items()}
            todo = {"fp": w, "rtn": round_decoder(w), **{method: round_decoder(f) for method, f in folded.items()}}
            for method, q in todo.items():
                ce[c, method] = run.cross_entropy(q, ds, ft)
            moved = max(np.abs(run.cross_entropy(f, ds, ft) - ce[c, "fp"]).max() for f in folded.values())
            r["ce"][c] = {method: at(ce[c, method]) for method in todo}
            print(v, c, {method: round(float(ce[c, method].mean()), 5) for method in todo}, f"folding alone moves a sample by at most {moved:.1e}")
        folder = lambda k, p=bed("onnx", v): os.path.join(p, k + "_fp16.onnx")  # noqa: E731
        as32 = lambda p, keep: convert(onnx.load(p), keep_rounding=keep).SerializeToString()  # noqa: E731
        o = {"three_graphs_f16": ort_folder(folder, ds), "three_graphs_f32": ort_folder(lambda k: as32(folder(k), False), ds), "three_graphs_f32_casts": ort_folder(lambda k: as32(folder(k), True), ds)}
        if v == VARIANTS[0]:
            one = os.path.join(ROOT, "models", "pocket-vlm", "model.onnx")
            o |= {"single_f16": ort_single(one, ds), "single_f32": ort_single(as32(one, False), ds), "single_f32_casts": ort_single(as32(one, True), ds)}
        r["onnxruntime_ce"] = {k: at(x) for k, x in o.items()}
        pairs = {f"{k} - jax {c}": difference(x, ce[c, "fp"]) for k, x in o.items() for c in K.CONSTANTS}
        if v == VARIANTS[0]:
            pairs |= {f"three_graphs_{k} - single_{k}": difference(o["three_graphs_" + k], o["single_" + k]) for k in ("f16", "f32", "f32_casts")}
            pairs |= {f"single_f16 - single_{k}": difference(o["single_f16"], o["single_" + k]) for k in ("f32", "f32_casts")}
        pairs |= {f"{method}: jax {c} - jax hf": difference(ce[c, method], ce["hf", method]) for method in ("fp", "rtn", "awq", "mbq") for c in K.CONSTANTS[1:]}
        pairs |= {f"{method} - fp, jax {c}": difference(ce[c, method], ce[c, "fp"]) for method in ("rtn", "awq", "mbq") for c in K.CONSTANTS}
        r["differences"] = {"note": f"over the {len(union)} samples of both lists", **pairs}
        for k, d in pairs.items():
            print("  ", k, d)
        res["variants"][v] = r
    with open(a.out, "w") as f:
        f.write(compact(res) + "\n")
    print(a.out, os.path.getsize(a.out), "bytes")


def compact(x, depth=0):
    """JSON with one line per list of numbers"""
    pad = " " * (depth + 1)
    if isinstance(x, dict):
        return "{\n" + ",\n".join(f"{pad}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in x.items()) + "\n" + " " * depth + "}"
    return json.dumps(x)


if __name__ == "__main__":
    main()
