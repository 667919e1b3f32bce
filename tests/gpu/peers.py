"""What torch and others make of the same shapes on this GPU, beside our times.

    python tests/gpu/peers.py [--peer NAME] [--ours FOLDER] [--sources FOLDER] [--out FILE]

--ours is the folder with the receipts of `gpu_check --only bench` of the same run. Every peer is measured as ours are: a CUDA graph
of 200 products or more with copies of a weight that together are 512 MB or more, one after another; microseconds for one, the median
of 50 launches. Without --peer, torch's own are timed; humming (humming-kernels), Marlin (IST-DASLab's) and QServe, one in a process,
where they are installed, or where --sources holds the latter two as `marlin` and `qserve`, which are compiled then. A peer that is not
there, or that refuses a shape, is named with the reason. NOT RUN YET: written without a GPU.
"""

import argparse
import copy
import functools
import importlib
import json
import pathlib
import statistics
import sys

import torch

ROTATED = 512 << 20
SIZES = [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192)]
ROWS = [1, 8, 16]
GROUP = 128


def half(k, n):
    """cuBLAS in half precision."""
    weight = torch.randn(n, k, device="cuda", dtype=torch.float16) * 0.01
    return [weight], lambda x, w: torch.nn.functional.linear(x, w), torch.float16, weight.nbytes


def tinygemm(k, n):
    """torch's weight-only 4 bits, bfloat16."""
    codes = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales = torch.rand(k // GROUP, n, 2, device="cuda", dtype=torch.bfloat16) * 0.01
    parts = [packed, scales]
    return parts, lambda x, w, s: torch.ops.aten._weight_int4pack_mm(x, w, GROUP, s), torch.bfloat16, packed.nbytes + scales.nbytes


def humming(bits, k, n):
    """humming's integers with zero points; its layers quantize what they are given."""
    layers = importlib.import_module("humming.layer")
    config = {"dtype": f"uint{bits}", "group_size": GROUP, "has_zero_point": True}
    layer = layers.HummingLayer(shape_n=n, shape_k=k, weight_config=config, torch_dtype=torch.float16).cuda()
    layer.load_from_unquantized(torch.randn(n, k, device="cuda", dtype=torch.float16) * 0.01)
    layer.transform()
    size = sum(tensor.nbytes for tensor in layer.parameters())

    @functools.cache
    def tuning(rows):
        # Of this number of rows alone: it would compile a kernel for every other.
        return importlib.import_module("humming.tune").get_heuristics_config(layer.humming_config, shape_m=rows)

    return [layer], lambda x, layer: layer(x, tuning_config=tuning(x.shape[0])), torch.float16, size


SOURCES = None


@functools.cache
def kernels_of(name, modules, folder, flags, *files):
    """A package's kernels, as they are installed under one of these names, or from its sources."""
    for module in modules:
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    paths = [SOURCES / folder / file for file in files] if SOURCES else []
    if not paths or not all(path.exists() for path in paths):
        raise ImportError(f"{name} is not installed, and there are no sources of it")
    from torch.utils.cpp_extension import load

    return load(name=f"{name}_from_sources", sources=[str(path) for path in paths], extra_cuda_cflags=["-O3", *flags])


def marlin(k, n):
    """Marlin's 4 bits, symmetric, groups of 128."""
    kernels = kernels_of("marlin", ("marlin_cuda",), "marlin/marlin", (), "marlin_cuda.cpp", "marlin_cuda_kernel.cu")
    codes = torch.randint(-(2**31), 2**31 - 1, (k // 16, 2 * n), device="cuda", dtype=torch.int32)
    scales = torch.rand(k // GROUP, n, device="cuda", dtype=torch.float16) * 0.01
    meeting = torch.zeros(n // 128 * 16, device="cuda", dtype=torch.int32)

    def product(x, codes, scales, meeting):
        y = torch.empty(x.shape[0], n, device="cuda", dtype=torch.float16)
        kernels.mul(x, codes, y, scales, meeting, -1, -1, -1, 16)

    return [codes, scales, meeting], product, torch.float16, codes.nbytes + scales.nbytes


def qserve(k, n):
    """QServe's 4 bits by 8, scales of channels."""
    modules = tuple(f"{package}.qgemm_w4a8_per_chn" for package in ("qserve_backend", "omniserve_backend"))
    # As its own build has them: torch's would take conversions away that it needs.
    flags = ["-DENABLE_BF16", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda"]
    flags += [f"-U__CUDA_NO_{kind}_{what}__" for kind in ("HALF", "BFLOAT16", "BFLOAT162") for what in ("OPERATORS", "CONVERSIONS")]
    kernels = kernels_of("qserve", modules, "qserve/kernels/csrc/qgemm/w4a8_per_chn", tuple(flags), "pybind.cpp", "gemm_cuda.cu")
    codes = torch.randint(-128, 128, (n, k // 2), device="cuda", dtype=torch.int8)
    scales, zeros = (torch.rand(n, device="cuda", dtype=torch.float16) * 0.01 for _ in range(2))
    of_tokens = torch.ones(max(ROWS), device="cuda", dtype=torch.float16)

    def product(x, codes, scales, zeros):
        y = torch.empty(x.shape[0], n, device="cuda", dtype=torch.float16)
        tokens = of_tokens[: x.shape[0]]
        kernels.gemm_forward_cuda(x, codes, scales, tokens, zeros, tokens, y)

    return [codes, scales, zeros], product, torch.int8, codes.nbytes


TORCH = {"cuBLAS f16": half, "tinygemm w4": tinygemm}
OTHERS = {
    "humming w3": functools.partial(humming, 3),
    "humming w4": functools.partial(humming, 4),
    "Marlin w4": marlin,
    "QServe w4a8": qserve,
}


def activations(rows, k, dtype):
    if dtype == torch.int8:
        return torch.randint(-127, 128, (rows, k), device="cuda", dtype=dtype)
    return torch.randn(rows, k, device="cuda", dtype=dtype)


def captured(work):
    """A graph of it, after a warm-up on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def microseconds(work, count, launches=50):
    graph = captured(work)
    graph.replay()
    torch.cuda.synchronize()
    # Without waiting between them: a graph is launched while the one ahead of it runs.
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(launches + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * start.elapsed_time(end) / count for start, end in zip(marks, marks[1:]))


def cold(make, k, n, rows):
    parts, product, dtype, size = make(k, n)
    copies = max(2, -(-ROTATED // size))
    weights = [parts] + [copy.deepcopy(parts) for _ in range(copies - 1)]
    inputs = [activations(rows, k, dtype) for _ in weights]
    rounds = -(-200 // copies)

    def work():
        for _ in range(rounds):
            for x, weight in zip(inputs, weights):
                product(x, *weight)

    return microseconds(work, copies * rounds), size


def prefill(rows, k, n):
    """Half precision and int8 for many rows, with weights that no cache holds."""
    times = {}
    for name, size in (("cuBLAS f16", 2), ("torch._int_mm", 1)):
        copies = max(2, -(-ROTATED // (size * n * k)))
        if size == 2:
            x = torch.randn(rows, k, device="cuda", dtype=torch.float16)
            weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies)]
            product = torch.nn.functional.linear
        else:
            x = torch.randint(-127, 128, (rows, k), device="cuda", dtype=torch.int8)
            weights = [torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8).t() for _ in range(copies)]
            product = torch._int_mm
        count = -(-40 // copies) * copies

        def work():
            for i in range(count):
                product(x, weights[i % copies])

        times[name] = microseconds(work, count, 15)
    return times


def ceilings():
    """Bytes per second: a copy (read and written), and a sum (read)."""
    large = torch.ones(1 << 28, device="cuda", dtype=torch.float32)
    other = torch.empty_like(large)
    copy = microseconds(lambda: other.copy_(large), 1)
    read = microseconds(lambda: large.sum(), 1)
    return {"copy": 2 * large.nbytes / copy * 1e6, "read": large.nbytes / read * 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=OTHERS)
    parser.add_argument("--ours", type=pathlib.Path)
    parser.add_argument("--sources", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    global SOURCES
    SOURCES = arguments.sources
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cold": [], "prefill": []}
    ours, many = {}, {}
    for path in sorted(arguments.ours.glob("*.json")) if arguments.ours else []:
        receipt = json.loads(path.read_text())
        for row in receipt.get("times", []):
            if "cold" in row:
                ours[receipt["unit"], row["k"], row["n"], row["rows"]] = 1e6 * row["cold"][1]
            else:
                times = [row[way] for way in ("sliced", "wide", "blas") if row.get(way)]
                many[row["format"], row["k"], row["n"], row["rows"]] = 1e6 * min(times)
    peers = {arguments.peer: OTHERS[arguments.peer]} if arguments.peer else TORCH

    def save():
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")

    if not arguments.peer:
        found["ceilings"] = ceilings()
        print(found["device"], "torch", found["torch"], {name: f"{rate / 1e12:.2f} TB/s" for name, rate in found["ceilings"].items()})
    units = sorted({unit for unit, *_ in ours})
    names = list(peers)
    print("\n| k x n | rows | " + " | ".join([*names, *(f"our {unit}" for unit in units)]) + f" | {names[0]} over our w3 |")
    print("|---|---|" + "---|" * (len(names) + len(units) + 1))
    for k, n in SIZES:
        for rows in ROWS:
            row = {"k": k, "n": n, "rows": rows}
            for name, make in list(peers.items()):
                row[name] = None
                try:
                    row[name], _ = cold(make, k, n, rows)
                except Exception as error:  # a peer that cannot do it is told, and the others go on
                    print(f"{name} at {k} x {n}, {rows} rows: {error}", file=sys.stderr, flush=True)
                    if not found["cold"]:
                        del peers[name]
            found["cold"].append(row)
            save()
            own = [ours.get((unit, k, n, rows)) for unit in units]
            cells = [f"{time:.2f}" if time else "-" for time in [*(row.get(name) for name in names), *own]]
            w3, peer = ours.get(("w3", k, n, rows)), row.get(names[0])
            ratio = f"{peer / w3:.2f}" if w3 and peer else "-"
            print(f"| {k} x {n} | {rows} | " + " | ".join(cells) + f" | {ratio} |", flush=True)
            if not peers:
                sys.exit(f"{', '.join(names)}: not timed")
    if arguments.peer:
        return
    print("\n| k x n | rows | cuBLAS f16 | torch._int_mm | our w8a8 | _int_mm over it | our w4a8 | f16 over it | our w3 | it over f16 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for k, n in SIZES[:1] + SIZES[2:3]:
        for rows in (128, 512, 1024, 2048, 4096):
            times = prefill(rows, k, n)
            found["prefill"].append({"rows": rows, "k": k, "n": n, **times})
            save()
            f16, integers = times.values()
            w8a8, w4a8, w3 = (many.get((unit, k, n, rows)) for unit in ("w8a8", "w4a8", "w3"))
            pairs = [(w8a8, w8a8 and integers / w8a8), (w4a8, w4a8 and f16 / w4a8), (w3, w3 and w3 / f16)]
            cells = [f"{time:.1f} | {ratio:.2f}" if time else "- | -" for time, ratio in pairs]
            print(f"| {k} x {n} | {rows} | {f16:.1f} | {integers:.1f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
