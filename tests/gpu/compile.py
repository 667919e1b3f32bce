"""The CUDA kernels compiled for every architecture that is shipped, by NVRTC from a Python package: no driver, no toolkit, no GPU.

Prints for each kernel and architecture its registers, spills and the machine instructions that a tile costs (a step, where 256 token
rows are taken at once), and
fails where one is above its ceiling. Nothing here runs a kernel.

    python tests/gpu/compile.py [--arch sm_90a]... [--archive]

Without --archive, an archive that was made of other sources is a fault. With it, kernels/cuda/kernels.zip is made, which the
library embeds: <architecture>.zip of <unit>.<architecture>.cubin, compute_80.zip of <unit>.compute_80.ptx, and SOURCES with the compiler's options and the hash of each
unit's sources; and tests/gpu/costs.json: the kernels of each unit, all of which a receipt has to name, and the instructions that a
tile costs on sm_90a, from which the README's predictions come.
Needs tests/requirements.txt.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import hashlib
import io
import json
import lzma
import os
import pathlib
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import zipfile

KERNELS = pathlib.Path(__file__).resolve().parents[2] / "kernels"
FORMATS = ("w2", "w3", "w4", "w4a8", "w8a8")
UNITS = {unit: KERNELS / unit / "kernel.cu" for unit in FORMATS} | {unit: KERNELS / f"cuda/{unit}.cu" for unit in ("norm", "finish")}
# Those for sm_90a alone.
UNITS |= {f"{unit}_wide": KERNELS / unit / "wide.cu" for unit in FORMATS}
HEADERS = [KERNELS / "cuda" / name for name in ("small.cuh", "integer.cuh", "middle.cuh", "wide.cuh", "dequantize.cuh", "repack.cuh", "decode.cuh", "device/arch.cuh", "device/hopper.cuh")]
HEADERS += [KERNELS / name / f"{name}.cuh" for name in FORMATS]
ARCHIVE = KERNELS / "cuda/kernels.zip"
COSTS = pathlib.Path(__file__).with_name("costs.json")
OPTIONS = ["--std=c++17", "--fmad=false"]
ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]
REGISTERS = 65536  # of a multiprocessor
MOST_REGISTERS = 64  # of a thread, where a kernel has no loop over tiles
WIDE_CEILING = 335  # instructions of a step

# Bits of the weight, token rows, for activations of 8 bits: the most instructions that a tile may cost, as below.
INTEGER_CEILINGS = {(4, 8): (103, 103), (4, 16): (124, 120), (4, 64): (292, 236), (8, 8): (80, 80), (8, 16): (105, 95), (8, 64): (440, 388)}

# Bits, type, with 64 token rows and scales applied four times a tile, as for groups of 32.
MIDDLE_CEILINGS = {
    (2, "f16"): (1106, 1017), (3, "f16"): (1122, 1038), (4, "f16"): (1122, 1029),
    (2, "bf16"): (1125, 1040), (3, "bf16"): (1157, 1071), (4, "bf16"): (1160, 1077),
}

# Bits, type, token rows, group: the most instructions that a tile of 32 channels x 128 may cost a warp, with all of the loop, from
# sm_90 on and before it. While an H200 reads a tile of w3 with groups of 128, at full speed, it has time for about 360.
CEILINGS = {
    (2, "f16", 8, 32): (341, 363), (2, "f16", 8, 64): (267, 288), (2, "f16", 8, 128): (230, 249),
    (2, "f16", 16, 32): (445, 460), (2, "f16", 16, 64): (342, 353), (2, "f16", 16, 128): (291, 294),
    (2, "bf16", 8, 32): (349, 368), (2, "bf16", 8, 64): (275, 294), (2, "bf16", 8, 128): (237, 254),
    (2, "bf16", 16, 32): (450, 467), (2, "bf16", 16, 64): (346, 356), (2, "bf16", 16, 128): (294, 299),
    (3, "f16", 8, 32): (360, 384), (3, "f16", 8, 64): (288, 311), (3, "f16", 8, 128): (248, 271),
    (3, "f16", 16, 32): (461, 481), (3, "f16", 16, 64): (362, 376), (3, "f16", 16, 128): (313, 321),
    (3, "bf16", 8, 32): (379, 398), (3, "bf16", 8, 64): (304, 324), (3, "bf16", 8, 128): (268, 284),
    (3, "bf16", 16, 32): (477, 495), (3, "bf16", 16, 64): (374, 390), (3, "bf16", 16, 128): (327, 329),
    (4, "f16", 8, 32): (349, 366), (4, "f16", 8, 64): (276, 292), (4, "f16", 8, 128): (239, 252),
    (4, "f16", 16, 32): (451, 462), (4, "f16", 16, 64): (350, 356), (4, "f16", 16, 128): (295, 297),
    (4, "bf16", 8, 32): (384, 400), (4, "bf16", 8, 64): (309, 326), (4, "bf16", 8, 128): (272, 286),
    (4, "bf16", 16, 32): (480, 494), (4, "bf16", 16, 64): (377, 390), (4, "bf16", 16, 128): (322, 330),
}  # fmt: skip


def is_wide(unit):
    """Whether it is for sm_90a alone."""
    return unit.endswith("_wide")


def architectures(unit):
    """Those that its machine code is shipped for."""
    return ["sm_90a"] if is_wide(unit) else ARCHITECTURES


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


def sources(path):
    """A file and what it includes, in the order in which they are met."""
    found, left = [], [path]
    while left:
        path = left.pop(0)
        if path not in found:
            found.append(path)
            for name in re.findall(r'^#include "(.+)"$', path.read_text(), re.MULTILINE):
                left += [header for header in HEADERS if header.name == name]
    return found


def source_hash(path):
    """Of all that decides what a unit does: receipts of devices hold for this alone."""
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for source in sources(path):
        digest.update(f"\0{source.name}\0".encode() + source.read_bytes())
    return digest.hexdigest()


def hashes():
    """The text of SOURCES: how kernels are compiled, and the hash of each unit."""
    return f"options {' '.join(OPTIONS)}\n" + "".join(f"{unit} {source_hash(path)}\n" for unit, path in UNITS.items())


class Lzma(zipfile.LZMACompressor):
    """LZMA with settings that `zipfile` has none for. What a byte of an instruction is depends on its place among 16, not on the byte
    before; with text it is the other way round. That saves 4 %."""

    TEXT, CODE = {"lc": 4, "pb": 0}, {"lc": 0, "pb": 4}
    settings = TEXT

    def _init(self):
        options = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lp": 0, "dict_size": 1 << 23, **self.settings}
        self._comp = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[options])
        properties = struct.pack("<BI", (5 * options["pb"] + options["lp"]) * 9 + options["lc"], options["dict_size"])
        return struct.pack("<BBH", 9, 4, len(properties)) + properties


def write_archive(images):
    """Reproducible: the same images make the same bytes. Those of an architecture are much alike: packed as one they are smaller."""

    def together(architecture):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for image in sorted(image for image in images if image.split(".")[1] == architecture):
                info = zipfile.ZipInfo(image)
                # Instructions begin at multiples of 16 in the file, too: behind its header, a field that means nothing.
                gap = -(made.tell() + 30 + len(image) + 4) % 16
                info.extra = struct.pack("<HH", 0xFFFF, gap) + bytes(gap)
                archive.writestr(info, images[image])
        return made.getvalue()

    zipfile.LZMACompressor = Lzma
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_LZMA) as archive:

        def put(name, content, settings):
            Lzma.settings = settings
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)

        put("SOURCES", hashes().encode(), Lzma.TEXT)
        for architecture in ARCHITECTURES:
            put(f"{architecture}.zip", together(architecture), Lzma.CODE)
        put("compute_80.zip", together("compute_80"), Lzma.TEXT)


def archive_faults():
    """What is wrong with the archive that is there."""
    again = "run tests/gpu/compile.py --archive"
    if not ARCHIVE.exists():
        return [f"{ARCHIVE.name} is not there: {again}"]
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = set(archive.namelist())
        zips = {f"{architecture}.zip" for architecture in [*ARCHITECTURES, "compute_80"]}
        wanted = {"SOURCES"} | zips
        for architecture in names & zips:
            with zipfile.ZipFile(io.BytesIO(archive.read(architecture))) as inner:
                names |= set(inner.namelist())
        wanted |= {f"{unit}.{architecture}.cubin" for unit in UNITS for architecture in architectures(unit)}
        wanted |= {f"{unit}.compute_80.ptx" for unit in UNITS if not is_wide(unit)}
        faults = [f"{ARCHIVE.name} has {names ^ wanted} too much or too little: {again}"] if names != wanted else []
        costs = json.loads(COSTS.read_text())["sources"] if COSTS.exists() else None
        if not archive.read("SOURCES").decode() == costs == hashes():
            faults.append(f"{ARCHIVE.name} or {COSTS.name} is of other sources: {again}")
        return faults


def compile_unit(nvrtc, source, architecture):
    """The cubin of a file, or its PTX for a virtual architecture, and what the assembler says of its kernels."""
    headers = [header.read_bytes() for header in HEADERS]
    names = [header.name.encode() for header in HEADERS]
    strings = ctypes.c_char_p * len(headers)
    program = ctypes.c_void_p()
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.read_bytes(), source.name.encode(), len(headers), strings(*headers), strings(*names)
    )
    assert made == 0, made
    real = architecture.startswith("sm_")
    options = [f"--gpu-architecture={architecture}", *OPTIONS, *(["--ptxas-options=-v"] if real else [])]
    options = [option.encode() for option in options]
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
    if real:
        image = text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    else:
        image = text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).rstrip(b"\0")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image, resources(log)


def resources(log):
    """Registers, stack and spilled bytes by kernel, from the assembler's remarks."""
    found, name = {}, None
    serialized = set(re.findall(r"wgmma.mma_async instructions are serialized .* in the function '(\w+)'", log))
    for line in log.splitlines():
        if entry := re.search(r"entry function '(\w+)'", line):
            name = entry.group(1)
            found[name] = {"serialized": name in serialized}
        elif spilled := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, spilled.groups())
            found[name].update(stack=stack, spilled=stores + loads)
        elif used := re.search(r"Used (\d+) registers", line):
            found[name]["registers"] = int(used.group(1))
    return found


def census(cubin):
    """By kernel, its instructions: labels, and tuples of predicate, operation, kinds, operands and control bits."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        program = toolkit() / "bin/nvdisasm"
        program.chmod(0o755)
        text = subprocess.run([program, "-c", "-hex", file.name], check=True, capture_output=True, text=True).stdout
    kernels, code = {}, None
    for line in map(str.strip, text.splitlines()):
        if section := re.match(r"\.text\.(\w+):", line):
            code = kernels.setdefault(section.group(1), [])
        elif code is None:
            continue
        elif label := re.match(r"(\.L_x_\d+):", line):
            code.append(label.group(1))
        elif found := re.match(r"/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)(.*?)\s*/\* 0x", line):
            code.append((found.group(1) or "", *found.groups()[1:], 0))
        elif upper := re.match(r"/\* 0x([0-9a-f]{16}) \*/$", line):
            code[-1] = (*code[-1][:-1], int(upper.group(1), 16) >> 41)
    return kernels


def jump(instruction):
    """Where an instruction jumps to, and whether it always does."""
    predicate, operation, kinds, operands, _ = instruction
    target = re.search(r"\.L_x_\d+", operands) if operation == "BRA" else None
    # Where a warp might have diverged (`.DIV`), it has not.
    always = not predicate and ".DIV" not in kinds and not re.match(r"\s*(?:\.\w+\s*)?!?U?P\d", operands)
    return (target.group(), always) if target else (None, False)


def round_of(code):
    """One round of the loop that multiplies, as it runs for a warp with tiles to come: conditions fall through."""
    places = {label: i for i, label in enumerate(code) if isinstance(label, str)}
    loops = set()
    for i, instruction in enumerate(code):
        target = None if isinstance(instruction, str) else jump(instruction)[0]
        if target and places[target] < i:
            body = [one for one in code[places[target] : i] if not isinstance(one, str)]
            loops.add((sum(one[1] in ("HMMA", "IMMA", "HGMMA", "IGMMA") for one in body), places[target], i))
    # Bands are a loop around it.
    inner = [one for one in loops if not any(other[0] and other != one and one[1] <= other[1] and other[2] <= one[2] for other in loops)]
    # What leads back from a case that does not occur is no loop: nothing that runs jumps there.
    rounds = (walk(code, places, start) for products, start, _ in sorted(inner, reverse=True) if products)
    return next((path for path in rounds if path), [])


def walk(code, places, start):
    """The instructions from `start` to the jump back to it."""
    path, i = [], start
    while i < len(code) and len(path) < 10_000:
        instruction = code[i]
        i += 1
        if isinstance(instruction, str):
            continue
        path.append(instruction)
        target, always = jump(instruction)
        if target and places[target] == start:
            return path
        if target and always:
            i = places[target]
    return []


def judge(name, architecture, used, code):
    """The instructions that a tile costs a warp, and what is wrong with a kernel."""
    spilled = used["spilled"] or used["stack"] or any(one[1] in ("LDL", "STL") for one in code if not isinstance(one, str))
    wrong = [f"{used['spilled']} bytes spilled, a stack of {used['stack']}"] if spilled else []
    shape = re.fullmatch(r"w(\d)a(\d+)(?:_(b?f16))?_(\d+)(?:_g(\d+))?", name)
    if not shape:
        if used["registers"] > MOST_REGISTERS:
            wrong.append(f"{used['registers']} registers, at most {MOST_REGISTERS}")
        return {"instructions": None, **used}, wrong
    if shape.group(4) == "256":
        return judge_wide(used, code, wrong)
    bits, activations, element, rows, group = shape.groups()
    bits, rows, group, integers = int(bits), int(rows), int(group or 0), activations == "8"
    newer = int(re.search(r"\d+", architecture).group()) >= 90
    instructions = [one for one in code if not isinstance(one, str)]
    path = round_of(code)
    count = collections.Counter(one[1] for one in path)
    # A tile is 8 steps of 16 along k for two halves of the channels and for the sums, and that for every 8 token rows; or 4 steps
    # of 32 bytes for two halves. With 64 token rows, no sums.
    middle = rows == 64
    products = 128 if middle and not integers else (8 if integers else 24) * rows // 8
    found = count["IMMA" if integers else "HMMA"]
    tiles, rest = divmod(found, products)
    if rest or not tiles:
        wrong.append(f"{found} tensor-core products in the loop, expected a multiple of {products}")
    cost = len(path) / max(tiles, 1)
    ceilings = INTEGER_CEILINGS[bits, rows] if integers else MIDDLE_CEILINGS[bits, element] if middle else CEILINGS[bits, element, rows, group]
    ceiling = ceilings[0 if newer else 1]
    if cost > ceiling:
        wrong.append(f"{cost:.0f} instructions a tile, at most {ceiling}")
    # blocks_together() in small.cuh
    blocks = 1 if middle or not integers and rows == 16 and (group < 128 or bits != 3) else 2
    if used["registers"] > REGISTERS // (256 * blocks):
        wrong.append(f"{used['registers']} registers, for {blocks} blocks of 256 threads")
    # Weights: past the first-level cache, 16 bytes at a time; activations through it.
    loads = collections.Counter((".NA" in one[2], ".128" in one[2]) for one in path if one[1] == "LDG")
    if not middle and loads[True, True] < bits * tiles:
        wrong.append(f"{loads[True, True]} loads of 16 bytes of weights for {tiles} tiles, expected {bits} each")
    activations = 0 if middle else rows // (4 if integers else 2)
    if loads[False, True] != activations * tiles or loads[False, False]:
        wrong.append(f"{loads[False, True]} loads of activations for {tiles} tiles, expected {activations} each")
    # With 64 token rows everything is copied to shared memory: 16 bytes of activations twice or four times, codes, scales.
    copies = bits + (2 if integers else 4 + 1)
    if middle and count["LDGSTS"] != copies:
        wrong.append(f"{count['LDGSTS']} copies to shared memory, expected {copies}")
    if count["FMUL"]:
        wrong.append(f"{count['FMUL']} products that are not fused")
    if newer:
        order = [one[1] for one in instructions]
        if "ACQBULK" not in order or "PREEXIT" not in order[: order.index("ACQBULK")]:
            wrong.append("the next kernel is not let in before this one waits")
        else:
            early = [one for one in instructions[: order.index("ACQBULK")] if one[1] in ("LDG", "LDGSTS")]
            # With 64 token rows, those of all stages but one.
            wanted = bits + (not integers)
            copied = not middle or len(early) == wanted * (2 if integers and bits < 8 else 1)
            if len(early) < wanted or not copied or any(".NA" not in one[2] and one[1] == "LDG" for one in early):
                wrong.append("something other than weights is loaded before the wait, or not all of a tile's are")
    return {"instructions": cost, **used}, wrong


def judge_wide(used, code, wrong):
    """The instructions that a step costs a warp of a kernel for 256 token rows: 128 channels by 256 token rows and 128 bytes along k, which
    takes tensor cores 1024 clocks. Meanwhile a multiprocessor issues 512 instructions for each of its eight warps, four at a time."""
    path = round_of(code)
    count = collections.Counter(one[1] for one in path)
    steps, rest = divmod(count["HGMMA"] + count["IGMMA"], 4)
    if rest or not steps:
        wrong.append(f"{4 * steps + rest} tensor-core products in the loop, expected a multiple of 4")
    cost = len(path) / max(steps, 1)
    if cost > WIDE_CEILING:
        wrong.append(f"{cost:.0f} instructions a step, at most {WIDE_CEILING}")
    # What is loaded is waited for when the tensor cores have begun with another step. Of control bits, three name the scoreboard that a load
    # counts on, and six those that an instruction waits for.
    if not count["LDG"]:
        wrong.append("no weights are loaded in the loop")
    for i, load in ((i, one) for i, one in enumerate(path) if one[1] == "LDG"):
        later = [path[(i + j) % len(path)] for j in range(1, len(path))]
        waits = next((j for j, one in enumerate(later) if one[4] >> 11 & 1 << (load[4] >> 5 & 7)), len(later))
        if sum("GMMA" in one[1] for one in later[:waits]) < 4:
            wrong.append(f"a load of weights is waited for {waits} instructions later")
    if used["serialized"]:
        wrong.append("the assembler lets tensor cores wait for one product after another")
    for what in ("LDS", "UCGABAR_WAIT"):
        if count[what]:
            wrong.append(f"{count[what]} {what} in the loop")
    if any(one[1] == "CCTL" and "PF2" not in one[2] for one in path):
        wrong.append("a cache is emptied in the loop")
    if count["UTMALDG"] != steps:
        wrong.append(f"{count['UTMALDG']} copies of activations in the loop, expected {steps}")
    order = [one[1] for one in code if not isinstance(one, str)]
    if "ACQBULK" not in order or "PREEXIT" not in order[: order.index("ACQBULK")] or "LDG" not in order[: order.index("ACQBULK")]:
        wrong.append("weights are not loaded, or the next kernel is not let in, before this one waits")
    return {"instructions": cost, **used}, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES)
    parser.add_argument("--archive", action="store_true")
    arguments = parser.parse_args()
    if arguments.archive and arguments.arch:
        parser.error("an archive has all architectures")
    nvrtc = load_nvrtc()
    faults, costs, images, kernels, checked = [], {}, {}, {}, 0
    print("| kernel | architecture | registers | spilled | instructions a tile |")
    print("|---|---|---|---|---|")

    def compile_and_count(task):
        architecture, unit = task
        cubin, used = compile_unit(nvrtc, UNITS[unit], architecture)
        return cubin, used, census(cubin)

    tasks = [(one, unit) for one in arguments.arch or ARCHITECTURES for unit in UNITS if one in architectures(unit)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for (architecture, unit), (cubin, used, codes) in zip(tasks, threads.map(compile_and_count, tasks)):
            images[f"{unit}.{architecture}.cubin"] = cubin
            assert codes.keys() == used.keys(), (codes.keys(), used.keys())
            kernels[unit] = sorted(used)
            for name in kernels[unit]:
                found, wrong = judge(name, architecture, used[name], codes[name])
                checked += 1
                if found["instructions"]:
                    costs[architecture, name] = found["instructions"]
                cost = f"{found['instructions']:.0f}" if found["instructions"] else "-"
                print(f"| {name} | {architecture} | {found['registers']} | {found['spilled']} | {cost} |")
                faults += [f"{name} for {architecture}: {what}" for what in wrong]
    if arguments.archive:
        for unit, path in ((unit, path) for unit, path in UNITS.items() if not is_wide(unit)):
            images[f"{unit}.compute_80.ptx"] = compile_unit(nvrtc, path, "compute_80")[0]
        write_archive(images)
        own = {name: round(cost) for (architecture, name), cost in sorted(costs.items()) if architecture == "sm_90a"}
        COSTS.write_text(json.dumps({"sources": hashes(), "kernels": kernels, "sm_90a": own}, indent=1) + "\n")
        print(f"\n{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes")
    faults += archive_faults()
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"\n{checked} kernels compiled, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
