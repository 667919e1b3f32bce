"""The CUDA kernels compiled for every architecture that is shipped, by NVRTC from a Python package: no driver, no toolkit, no GPU.

Prints for each kernel and architecture its registers, spills, shared memory and the machine instructions that a tile costs, and
fails where one is above its ceiling. With --predict, also what these counts and the bytes allow on an H200: a prediction, not a
measurement. Nothing here runs a kernel.

    python tests/gpu/compile.py [--arch sm_90a]... [--out FOLDER] [--predict]

--out writes the compiled kernels as FOLDER/<unit>.<architecture>.cubin. Needs tests/requirements.txt.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

KERNELS = pathlib.Path(__file__).resolve().parents[2] / "kernels"
UNITS = {unit: KERNELS / unit / "kernel.cu" for unit in ("w2", "w3", "w4")}
HEADERS = [KERNELS / "cuda" / name for name in ("small.cuh", "decode.cuh", "device/arch.cuh")]
ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]
REGISTERS = 65536  # of a multiprocessor

# Token rows, type, group: the most instructions that a tile of 32 channels x 128 may cost a warp where it is multiplied, from
# sm_90 on and before it. While an H200 reads a tile of w3 with groups of 128, at full speed, it has time for about 360.
CEILINGS = {
    (8, "f16", 128): (225, 252), (8, "f16", 64): (260, 295), (8, "f16", 32): (335, 368),
    (8, "bf16", 128): (245, 268), (8, "bf16", 64): (280, 308), (8, "bf16", 32): (355, 380),
    (16, "f16", 128): (280, 298), (16, "f16", 64): (340, 358), (16, "f16", 32): (440, 463),
    (16, "bf16", 128): (298, 314), (16, "bf16", 64): (350, 365), (16, "bf16", 32): (455, 475),
}  # fmt: skip


def toolkit():
    folder = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia/cu13"
    if not folder.is_dir():
        sys.exit("the packages nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm are not installed: see tests/requirements.txt")
    return folder


def load_nvrtc():
    lib = toolkit() / "lib"
    # The compiler opens its built-in functions by name.
    ctypes.CDLL(str(next(lib.glob("libnvrtc-builtins.so.*"))), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(lib.glob("libnvrtc.so.*"))))


def compile_unit(nvrtc, source, architecture):
    """The cubin of a file, and what the assembler says of its kernels."""
    headers = [header.read_bytes() for header in HEADERS]
    names = [header.name.encode() for header in HEADERS]
    strings = ctypes.c_char_p * len(headers)
    program = ctypes.c_void_p()
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.read_bytes(), source.name.encode(), len(headers), strings(*headers), strings(*names)
    )
    assert made == 0, made
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))

    def text(size_of, get):
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        get(program, buffer)
        return buffer.raw

    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).rstrip(b"\0").decode()
    if failed:
        sys.exit(f"{source.name} does not compile for {architecture}:\n{log}")
    cubin = text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin, resources(log)


def resources(log):
    """Registers, stack and spilled bytes by kernel, from the assembler's remarks."""
    found, name = {}, None
    for line in log.splitlines():
        if entry := re.search(r"entry function '(\w+)'", line):
            name = entry.group(1)
            found[name] = {}
        elif spilled := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, spilled.groups())
            found[name].update(stack=stack, spilled=stores + loads)
        elif used := re.search(r"Used (\d+) registers", line):
            found[name]["registers"] = int(used.group(1))
    return found


def census(cubin):
    """By kernel, the blocks of instructions between jumps, as counts of operations."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        program = toolkit() / "bin/nvdisasm"
        program.chmod(0o755)
        text = subprocess.run([program, "-c", file.name], check=True, capture_output=True, text=True).stdout
    kernels, blocks = {}, None
    for line in text.splitlines():
        if section := re.match(r"\.text\.(\w+):", line.strip()):
            blocks = kernels.setdefault(section.group(1), [collections.Counter()])
        elif blocks is None:
            continue
        elif re.match(r"\s*\.L_x_\d+:", line):
            blocks.append(collections.Counter())
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)", line):
            operation, kind = found.groups()
            blocks[-1]["all"] += 1
            blocks[-1][operation] += 1
            if operation == "LDG" and ".128" in kind:
                blocks[-1]["LDG.128"] += 1
            if operation == "BRA":
                blocks.append(collections.Counter())
    return kernels


def judge(name, architecture, used, blocks):
    """What a kernel costs, and what is wrong with it."""
    element, rows, group = re.fullmatch(r"w\da16_(b?f16)_(\d+)_g(\d+)", name).groups()
    rows, group = int(rows), int(group)
    # A tile is 8 steps of 16 along k for two halves of the channels and for the sums, and that for every 8 token rows.
    products = 24 * rows // 8
    total = sum(blocks, collections.Counter())
    copies, rest = divmod(total["HMMA"], products)
    loop = sum((block for block in blocks if block["HMMA"]), collections.Counter())
    cost = loop["all"] / max(copies, 1)
    # As many blocks of 256 threads as the source promises.
    blocks_per_sm = 1 if rows == 16 and (group < 128 or name.startswith("w4")) else 2
    wrong = []
    if rest or not copies:
        wrong.append(f"{total['HMMA']} tensor-core products, expected a multiple of {products}")
    if used["spilled"] or used["stack"] or total["LDL"] or total["STL"]:
        wrong.append(f"{used['spilled']} bytes spilled, a stack of {used['stack']}")
    if used["registers"] > REGISTERS // (256 * blocks_per_sm):
        wrong.append(f"{used['registers']} registers, for {blocks_per_sm} blocks")
    ceiling = CEILINGS[rows, element, group][int(re.search(r"\d+", architecture).group()) < 90]
    if cost > ceiling:
        wrong.append(f"{cost:.0f} instructions a tile, at most {ceiling}")
    if total["LDG.128"] < 2 * int(name[1]):
        wrong.append("weights are not loaded 16 bytes at a time")
    return {"instructions": cost, **used}, wrong


# H200, by its documentation and kernels.md: bandwidth seen in a copy, multiprocessors, clock, instructions per clock of each.
BANDWIDTH, MULTIPROCESSORS, CLOCK, ISSUE = 4.3e12, 132, 1.755e9, 4
LATENCY = 2.25e-6  # from launch to the first bytes, and the end
SHAPES = [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192)]


def predict(cost, rows):
    print(f"\npredicted for an H200, f16, groups of 128, {rows} token rows (not measured: no GPU here)\n")
    print("| k x n | bytes | by bytes, us | by instructions, us | predicted, us | measured |")
    print("|---|---|---|---|---|---|")
    for k, n in SHAPES:
        tiles = -(-n // 32) * -(-k // 128)
        size = tiles * (1536 + 128) + 2 * rows * (k + n)
        by_bytes = size / BANDWIDTH
        by_instructions = tiles * cost / (MULTIPROCESSORS * CLOCK * ISSUE)
        total = max(by_bytes / 0.875, by_instructions) + LATENCY
        print(f"| {k} x {n} | {size / 1e6:.2f} MB | {by_bytes * 1e6:.2f} | {by_instructions * 1e6:.2f} | {total * 1e6:.1f} | |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--predict", action="store_true")
    arguments = parser.parse_args()
    nvrtc = load_nvrtc()
    faults, costs = [], {}
    print("| kernel | architecture | registers | spilled | instructions a tile |")
    print("|---|---|---|---|---|")

    def compile_and_count(task):
        architecture, unit = task
        cubin, used = compile_unit(nvrtc, UNITS[unit], architecture)
        return cubin, used, census(cubin)

    tasks = [(architecture, unit) for architecture in arguments.arch or ARCHITECTURES for unit in UNITS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for (architecture, unit), (cubin, used, blocks) in zip(tasks, threads.map(compile_and_count, tasks)):
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / f"{unit}.{architecture}.cubin").write_bytes(cubin)
            assert blocks.keys() == used.keys(), (blocks.keys(), used.keys())
            for name in sorted(used):
                found, wrong = judge(name, architecture, used[name], blocks[name])
                costs[architecture, name] = found["instructions"]
                print(
                    f"| {name} | {architecture} | {found['registers']} | {found['spilled']} | {found['instructions']:.0f} |"
                )
                faults += [f"{name} for {architecture}: {what}" for what in wrong]
    if arguments.predict:
        for rows in 8, 16:
            predict(costs["sm_90a", f"w3a16_f16_{rows}_g128"], rows)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"\n{len(costs)} kernels compiled, {len(faults)} above a ceiling")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
