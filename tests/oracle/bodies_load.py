"""What the function body costs: loading and running 3-bit layers with their body against native 4-bit MatMulNBits with the same codes.

  python bodies_load.py EMITTED.onnx [--layers 12] [--size 4096] [--group 128] [--threads 2] [--repeat 3]

EMITTED: any model compiled to 3 bits with `--fallback ort`; only its function body is taken. The models are made here, in a temporary folder, from random codes:
`w3` (the body), `w4` (MatMulNBits, bits 4, the same codes), accuracy level 1 on both. Each measurement is a process of its own: seconds to load, resident
memory above the import of onnxruntime at its peak, after loading, and after malloc_trim, milliseconds a run (median of 30) for 1 and 32 rows. The smallest of --repeat alternating processes is printed,
with the outputs' largest difference.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np


def thirds(q):
    """[n, groups, g] codes to [n, groups, 3g/8] bytes"""
    g = q.shape[-1]
    out = np.zeros((*q.shape[:2], 3 * g // 8), np.uint8)
    l0, l1, h = out[..., : g // 8], out[..., g // 8 : g // 4], out[..., g // 4 :]
    for t in range(4):
        for half in range(2):
            c = q[..., g // 4 * t + half : g // 4 * (t + 1) : 2]
            low = (l0, l1)[t // 2]
            low |= (c & 3) << (2 * (t % 2) + 4 * half)
            h |= (c >> 2) << (t + 4 * half)
    return out


def make(emitted, folder, layers, size, group):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    body = onnx.load(emitted, load_external_data=False).functions
    assert [f.name for f in body] == ["MbqMatMulW3"], "EMITTED has no body of a 3-bit layer"
    opset = next(o.version for o in body[0].opset_import if o.domain == "")
    rng = np.random.default_rng(1)
    groups = size // group
    parts = {"w3": ([], []), "w4": ([], [])}
    for i in range(layers):
        q = rng.integers(0, 8, (size, groups, group), dtype=np.uint8)
        scales = numpy_helper.from_array(rng.uniform(0.5, 1.5, (size, groups)).astype(np.float32) * np.float32(0.4 / np.sqrt(size)), f"s{i}")
        z = rng.integers(3, 5, (size, groups), dtype=np.uint8)
        z = numpy_helper.from_array(z[:, ::2] | z[:, 1::2] << 4, f"z{i}")
        for name, blob in (("w3", thirds(q)), ("w4", q[..., ::2] | q[..., 1::2] << 4)):
            nodes, constants = parts[name]
            constants += [numpy_helper.from_array(blob, f"b{i}"), scales, z]
            op, domain, bits = ("MbqMatMulW3", "ai.mbqc", {}) if name == "w3" else ("MatMulNBits", "com.microsoft", {"bits": 4})
            y = f"x{i + 1}" if i + 1 < layers else "y"
            nodes.append(helper.make_node(op, [f"x{i}", f"b{i}", f"s{i}", f"z{i}"], [y], domain=domain, K=size, N=size, block_size=group, accuracy_level=1, **bits))
    for name, (nodes, constants) in parts.items():
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", size]) for n in ("x0", "y"))
        graph = helper.make_graph(nodes, name, [x], [y], constants)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.mbqc", 1)]
        model = helper.make_model(graph, opset_imports=opsets, functions=body if name == "w3" else [], ir_version=10)
        path = os.path.join(folder, name + ".onnx")
        onnx.save(model, path, save_as_external_data=True, location=name + ".data", size_threshold=1024)


def memory(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith(key))


def measure(path, size, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    before = memory("VmRSS")
    start = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    result = {"load_s": time.perf_counter() - start, "peak_mb": memory("VmHWM") - before, "settled_mb": memory("VmRSS") - before}
    # glibc keeps what folding has freed until it is told to give it back
    ctypes.CDLL(None).malloc_trim(0)
    result["trimmed_mb"] = memory("VmRSS") - before
    for rows in (1, 32):
        x = np.random.default_rng(2).normal(size=(rows, size)).astype(np.float32)
        (y,) = session.run(None, {"x0": x})
        times = []
        for _ in range(30 if rows == 1 else 8):
            start = time.perf_counter()
            session.run(None, {"x0": x})
            times.append(time.perf_counter() - start)
        result[f"ms_{rows}"] = statistics.median(times) * 1e3
    result["y"] = [float(v) for v in y.ravel()[:: y.size // 64]]
    return result


def main():
    ap = argparse.ArgumentParser(description="load time, memory and speed of the body of 3-bit layers")
    ap.add_argument("emitted", nargs="?")
    ap.add_argument("--layers", type=int, default=12)
    ap.add_argument("--size", type=int, default=4096)
    ap.add_argument("--group", type=int, default=128)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--measure", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure, a.size, a.threads)))
        return 0
    if not a.emitted:
        ap.error("EMITTED is needed")
    found = {"w3": [], "w4": []}
    with tempfile.TemporaryDirectory() as folder:
        make(a.emitted, folder, a.layers, a.size, a.group)
        files = {name: os.path.getsize(os.path.join(folder, name + ".data")) / 1e6 for name in found}
        for _ in range(a.repeat):
            for name, results in found.items():
                command = [sys.executable, __file__, "--measure", os.path.join(folder, name + ".onnx"), "--size", str(a.size), "--threads", str(a.threads)]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    keys = ["load_s", "peak_mb", "settled_mb", "trimmed_mb", "ms_1", "ms_32"]
    best = {name: {k: min(r[k] for r in results) for k in keys} for name, results in found.items()}
    print(f"{a.layers} layers of {a.size}x{a.size}, group {a.group}, {a.threads} threads, best of {a.repeat}")
    print(f"{'':8}{'file MB':>10}" + "".join(f"{k:>12}" for k in keys))
    for name in found:
        print(f"{name:8}{files[name]:10.1f}" + "".join(f"{best[name][k]:12.2f}" for k in keys))
    print(f"{'w3 / w4':8}{files['w3'] / files['w4']:10.2f}" + "".join(f"{best['w3'][k] / best['w4'][k]:12.2f}" for k in keys))
    one, two = (np.array(found[name][0]["y"]) for name in found)
    print(f"outputs differ by {np.abs(one - two).max() / np.abs(two).max():.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
