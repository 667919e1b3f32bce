"""Cuts models/pocket-vlm/eval.npz from the test bed's eval_a.npz: the first 48 captions and the first 48 short VQA samples, in their order in
eval_a, so every committed sample keeps a place in the full set. Rendered-word questions (ocr) and dictionary definitions (define) are left out.

  python make_eval.py --testbed DIR [--out models/pocket-vlm/eval.npz]
"""
import argparse
import os

import numpy as np

VQA = ("what", "where", "color", "count", "exist", "bg", "tex", "size", "rel")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def choose(kind, each=48):
    """ascending indices into eval_a"""
    cap = np.nonzero(kind == "cap")[0][:each]
    vqa = np.nonzero(np.isin(kind, VQA))[0][:each]
    return np.sort(np.concatenate([cap, vqa]))


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--testbed", required=True)
    ap.add_argument("--out", default=os.path.join(ROOT, "models", "pocket-vlm", "eval.npz"))
    a = ap.parse_args()
    with np.load(os.path.join(a.testbed, "eval_a.npz")) as z:
        ds = {k: z[k] for k in z.files}
    ix = choose(ds["kind"])
    np.savez_compressed(a.out, **{k: v[ix] for k, v in ds.items()})
    print(len(ix), "samples;", "eval_a indices", ix.tolist())
