"""A whole emitted model through `mbqc run` beside onnxruntime on the same file: cross-entropy of every sample, time, memory.

  python whole_model.py MBQC MODEL DATA.npz [--samples N] [--threads N] [--repeat N]

MODEL is a single graph with inputs input_ids, pixel_values, attention_mask and output logits; DATA as in models/pocket-vlm. Prints one table: the
largest and mean difference of the cross-entropies (nats per sample), the median time of a run in milliseconds (sample 0, loaded before), the peak
resident memory of a process that loads the model and runs one sample, in MB: all of ours, and of onnxruntime's what exceeds an interpreter that has
imported it.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort


def session(path, threads):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feed(data, i):
    """inputs of sample i"""
    n = int(data["attention_mask"][i].sum())
    ids = data["input_ids"][i : i + 1, :n].astype(np.int64)
    px = (data["images"][i : i + 1].astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    return {"input_ids": ids, "pixel_values": np.ascontiguousarray(px), "attention_mask": np.ones_like(ids)}


def cross_entropy(logits, labels):
    """mean of -log p over the supervised targets; logits at t predict token t + 1"""
    rows = np.nonzero(labels[1:] != -100)[0]
    x = logits.astype(np.float64)[rows]
    top = x.max(-1, keepdims=True)
    lse = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
    return float((lse - x[np.arange(len(rows)), labels[rows + 1]]).mean())


def peak(command):
    """peak resident memory of a process, in MB"""
    # From a small interpreter: a process starts with the peak of the one that it came from.
    code = "import os, sys\npid = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])\n_, status, usage = os.wait4(pid, 0)\nassert status == 0\nprint(usage.ru_maxrss)"
    told = subprocess.run([sys.executable, "-S", "-c", code, *command], check=True, capture_output=True)
    return int(told.stdout.split()[-1]) / 1024


def main():
    parse = argparse.ArgumentParser()
    for name in ("mbqc", "model", "data"):
        parse.add_argument(name)
    parse.add_argument("--samples", type=int)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--repeat", type=int, default=20)
    args = parse.parse_args()
    with np.load(args.data) as z:
        data = {name: z[name] for name in z.files}
    count = min(args.samples or len(data["input_ids"]), len(data["input_ids"]))
    theirs = session(args.model, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (str(pathlib.Path(folder) / name) for name in ("in.npz", "out.npz"))
        ours = [args.mbqc, "run", args.model, "--inputs", inputs, "--outputs", outputs, "--threads", str(args.threads)]
        differences, entropies = [], []
        for i in range(count):
            f = feed(data, i)
            np.savez(inputs, **f)
            subprocess.run([*ours, "--quiet"], check=True)
            with np.load(outputs) as z:
                got = z["logits"][0]
            labels = data["labels"][i, : f["input_ids"].shape[1]].astype(np.int64)
            pair = [cross_entropy(logits, labels) for logits in (got, theirs.run(["logits"], f)[0][0])]
            entropies.append(pair)
            differences.append(abs(pair[0] - pair[1]))
        f = feed(data, 0)
        np.savez(inputs, **f)
        turns = []
        # In turn: machines drift.
        for _ in range(5):
            told = subprocess.run([*ours, "--json", "--quiet", "--repeat", str(args.repeat)], check=True, capture_output=True)
            mine, others = json.loads(told.stdout)["seconds"], []
            for _ in range(args.repeat):
                start = time.perf_counter()
                theirs.run(["logits"], f)
                others.append(time.perf_counter() - start)
            turns.append((mine, statistics.median(others)))
        mine, others = (statistics.median(turn[k] for turn in turns) * 1e3 for k in (0, 1))
        load = "import sys, numpy, onnxruntime\n"
        run = load + (
            "o = onnxruntime.SessionOptions(); o.log_severity_level = 3; o.intra_op_num_threads = int(sys.argv[3])\n"
            "s = onnxruntime.InferenceSession(sys.argv[1], o, providers=['CPUExecutionProvider'])\n"
            "s.run(['logits'], dict(numpy.load(sys.argv[2])))"
        )
        python = [sys.executable, "-c"]
        memory = peak([*ours, "--quiet"]), peak([*python, run, args.model, inputs, str(args.threads)]) - peak([*python, load])
    mean = np.mean(np.array(entropies), 0)
    print(f"{pathlib.Path(args.model).name}, onnxruntime {ort.__version__}, {args.threads} thread(s), {count} samples of up to {data['input_ids'].shape[1]} tokens")
    print(f"cross-entropy        mbqc {mean[0]:.6f}  onnxruntime {mean[1]:.6f}  a sample: mean {np.mean(differences):.1e}, at most {max(differences):.1e} apart")
    print(f"time of a run, ms    mbqc {mine:.1f}  onnxruntime {others:.1f}  ratio {others / mine:.2f}")
    print(f"peak memory, MB      mbqc {memory[0]:.0f}  onnxruntime {memory[1]:.0f} (file {os.path.getsize(args.model) / 1e6:.1f})")


if __name__ == "__main__":
    main()
