"""Answer cross-entropy of every sample through stock onnxruntime.

  python ort_ce.py MODEL DATA.npz OUT.json

MODEL is a single graph with inputs input_ids, pixel_values, attention_mask and output logits, or a folder with vision_encoder, embed_tokens and
decoder_model_merged, whose image features replace the embeddings of config.json's image_token_index; DATA as in models/pocket-vlm. Pixels are
image / 127.5 - 1. Writes a JSON list: per sample the mean of -log p(target) over its supervised targets, in nats.
"""
import json
import pathlib
import sys

import numpy as np
import onnxruntime as ort


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def single(path):
    """logits of ids [1, n] and pixels by a single graph"""
    graph = session(path)

    def logits(ids, px):
        return graph.run(["logits"], {"input_ids": ids, "pixel_values": px, "attention_mask": np.ones_like(ids)})[0]

    return logits


def unit(folder):
    """the same by three graphs"""
    encoder, embed, decoder = (session(folder / f"{part}.onnx") for part in ("vision_encoder", "embed_tokens", "decoder_model_merged"))
    image = json.loads((folder / "config.json").read_text())["image_token_index"]

    def logits(ids, px):
        (features,), (embeds,) = encoder.run(None, {"pixel_values": px}), embed.run(None, {"input_ids": ids})
        embeds[ids == image] = features.reshape(-1, features.shape[-1])
        feed = {"inputs_embeds": embeds, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
        for i in decoder.get_inputs():
            if i.name.startswith("past_key_values"):
                feed[i.name] = np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        return decoder.run(["logits"], feed)[0]

    return logits


def main():
    model, data, out = sys.argv[1:4]
    run = unit(pathlib.Path(model)) if pathlib.Path(model).is_dir() else single(model)
    z = np.load(data)
    result = []
    for i in range(len(z["input_ids"])):
        n = int(z["attention_mask"][i].sum())
        ids = z["input_ids"][i : i + 1, :n].astype(np.int64)
        px = (z["images"][i : i + 1].astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
        logits = run(ids, px)[0].astype(np.float64)
        labels = z["labels"][i, :n].astype(np.int64)
        rows = np.nonzero(labels[1:] != -100)[0]
        x = logits[rows]
        top = x.max(-1, keepdims=True)
        lse = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
        result.append(float((lse - x[np.arange(len(rows)), labels[rows + 1]]).mean()))
    json.dump(result, open(out, "w"))


if __name__ == "__main__":
    main()
