"""Our CPU kernels beside onnxruntime's, in one run: python kernels/benches/peers.py MBQC [--threads 1 2] [--quick]

Needs the packages of tests/requirements.txt. Every case is a file of layers of one shape, each with a weight of its own, together larger
than a last-level cache. `mbqc bench` times its layers; onnxruntime times the whole file, divided by the layers. The two take turns, three
times each; figures are medians, and only those of one run may be compared. Before anything is timed, a file's outputs by `mbqc run` and by
onnxruntime are compared with float64 from the codes.

onnxruntime has no 3-bit product: w3 stands beside its w4 of the same shape and accuracy_level.
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
from onnx import TensorProto, helper

GROUP = 128
LEAST_BYTES = 200_000_000
SHAPES = [(3584, 18944), (18944, 3584), (8192, 8192)]
TALL = [(1024, 4096), (3584, 3584)]
ROUNDS = 3
# Relative to the largest output: f32 or 16-bit activations, 8-bit activations.
MOST_ERROR = {1: 1e-4, 4: 3e-2}


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


def model(path, bits, level, k, n, copies):
    """A file of `copies` layers; answers the first layer in float64."""
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
    floats = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
    graph = helper.make_graph(nodes, "layers", [floats("x", k)], [floats(f"y{c}", n) for c in range(copies)], inits)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.mbqc", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return first


def session(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(what, found, wanted, level):
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error <= MOST_ERROR[level], f"{what}: outputs are off by {error:.1e} of the largest"
    return error


class Case:
    """A file and its two runtimes."""

    def __init__(self, folder, mbqc, bits, level, k, n, threads, peer_bits):
        self.mbqc, self.threads, self.k, self.n = mbqc, threads, k, n
        self.copies = max(2, LEAST_BYTES // (k * n * bits // 8))
        self.own = os.path.join(folder, "own.onnx")
        first = model(self.own, bits, level, k, n, self.copies)
        x = np.random.default_rng(1).standard_normal((2, k)).astype(np.float32)
        np.savez(os.path.join(folder, "x.npz"), x=x)
        subprocess.run([mbqc, "run", self.own, "--inputs", folder + "/x.npz", "--outputs", folder + "/y.npz", "--quiet"], check=True)
        self.error = check("mbqc", np.load(folder + "/y.npz")["y0"], x @ first.T, level)
        self.peer = self.own
        if peer_bits != bits:
            self.peer = os.path.join(folder, "peer.onnx")
            self.peer_copies = max(2, LEAST_BYTES // (k * n * peer_bits // 8))
            first = model(self.peer, peer_bits, level, k, n, self.peer_copies)
        else:
            self.peer_copies = self.copies
        self.session = session(self.peer, threads)
        self.peer_error = check("onnxruntime", self.session.run(["y0"], {"x": x})[0], x @ first.T, level)

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
        for bits, peer_bits in [(3, 4), (4, 4), (2, 2), (8, 8)]:
            if options.only and f"w{bits}" not in options.only.split(","):
                continue
            for level in [4, 1]:
                for (k, n), all_rows in shapes:
                    if level == 1 and bits in (2, 8) and not options.only:
                        # onnxruntime's f32 path for these is tens of times slower; it says nothing.
                        continue
                    with tempfile.TemporaryDirectory() as folder:
                        case = Case(folder, options.mbqc, bits, level, k, n, threads, peer_bits)
                        for rows in all_rows:
                            turns = [(case.ours(rows), case.theirs(rows)) for _ in range(ROUNDS)]
                            ours = statistics.median(own[0] for own, _ in turns)
                            theirs = statistics.median(their for _, their in turns)
                            read = statistics.median(own[2] for own, _ in turns)
                            rate = turns[0][0][1] / ours
                            name = f"w{bits} level {level} {k}x{n} rows {rows} threads {threads}"
                            name += f" / w{peer_bits}" if peer_bits != bits else ""
                            print(
                                f"{name:<44} {ours * 1e3:>9.3f} {rate / 1e9:>6.1f} {rate / read * 100:>6.0f}% {theirs * 1e3:>9.3f}"
                                f" {theirs / ours:>6.2f}   {case.error:.1e} {case.peer_error:.1e}",
                                flush=True,
                            )


if __name__ == "__main__":
    main()
