"""Answer cross-entropy of every sample through stock onnxruntime.

  python ort_ce.py MODEL DATA.npz OUT.json

MODEL is a single graph with inputs input_ids, pixel_values, attention_mask and output logits; DATA as in models/pocket-vlm. Pixels are
image / 127.5 - 1. Writes a JSON list: per sample the mean of -log p(target) over its supervised targets, in nats.
"""
import json
import sys

import numpy as np
import onnxruntime as ort


def main():
    model, data, out = sys.argv[1:4]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    z = np.load(data)
    result = []
    for i in range(len(z["input_ids"])):
        n = int(z["attention_mask"][i].sum())
        ids = z["input_ids"][i : i + 1, :n].astype(np.int64)
        px = (z["images"][i : i + 1].astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
        feed = {"input_ids": ids, "pixel_values": px, "attention_mask": np.ones_like(ids)}
        logits = session.run(["logits"], feed)[0][0].astype(np.float64)
        labels = z["labels"][i, :n].astype(np.int64)
        rows = np.nonzero(labels[1:] != -100)[0]
        x = logits[rows]
        top = x.max(-1, keepdims=True)
        lse = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
        result.append(float((lse - x[np.arange(len(rows)), labels[rows + 1]]).mean()))
    json.dump(result, open(out, "w"))


if __name__ == "__main__":
    main()
