"""What nvcc makes of every CUDA kernel, held against a committed baseline; needs no GPU.

    python bench/cuda_budget.py [--archs 90 ...] [--sources forward_bf16 ...] [--write]
    python bench/cuda_budget.py --archs 90 --built tnt_kernels/_C_cuda.abi3.so

Compiles csrc/cuda for each architecture (or reads a library that was built for it) and prints per
kernel registers, stack (spills) and instructions; for the kernels of MAIN_LOOPS also shared memory,
warps per multiprocessor, and the instructions of the main loop per sequence (per patch), by pipe,
with a modelled time. Exits with 1 where registers, shared memory or instructions exceed the
baseline by more than 3 %, or the stack grows. cuobjdump comes with triton.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "bench" / "results" / "cuda_budget.json"
BUILD = ROOT / "build" / "cuda_budget"
TOLERANCE = 1.03
ARCHS = ("80", "90", "100", "120")
SHARED_KB = {"80": 163, "90": 227, "100": 227, "120": 99}  # per multiprocessor
MOST_WARPS = {"80": 64, "90": 64, "100": 64, "120": 48}
PIPES = {
    "tensor": "HMMA",
    "special": "MUFU",
    "memory": "LDS LDG STG LDC ULDC SHFL STS LDL STL",
    "fp16": "HFMA2 HMUL2 HADD2 HMNMX2",
    "fp32": "FFMA FMUL FADD",
    "convert": "F2FP F2F",
}
# H100: multiprocessors, GHz, instructions per clock, GB/s; the workload is TNT at batch 256.
H100 = {"multiprocessors": 132, "ghz": 1.755, "issue": 4, "gb_per_s": 3000}
SEQUENCES = 256 * 196
COMPARED = ("registers", "stack_bytes", "instructions", "shared_bytes", "instructions_per_sequence")

# Kernels whose main loop is counted, and how often the loops inside it run per sequence, in order
# of address: steps of heads and chunks of hidden units, where they are not unrolled; tiles whose
# sums the warps of a block share.
FORWARD_LOOPS = {
    "BFloat16": {24: (), 40: ()},
    "Float16": {24: (), 40: ()},
    "Float32": {24: (2, 3), 40: (4, 5)},
    "TensorFloat32": {24: (2, 3), 40: (4, 5)},
}
ATTENTION_LOOPS = {
    "BFloat16": {24: (), 40: (4, 4)},
    "Float16": {24: (), 40: (4, 4)},
    "Float32": {24: (2, 4), 40: (4, 4)},
}
MLP_LOOPS = {
    "BFloat16": {24: (), 40: (2, 4)},
    "Float16": {24: (), 40: (2, 4)},
    "Float32": {24: (6, 4), 40: (6, 4, 4, 4)},
}


def _named(pattern: str, table: dict) -> dict:
    return {
        pattern.format(dtype=dtype, dim=dim): loops
        for dtype, loops_of_dim in table.items()
        for dim, loops in loops_of_dim.items()
    }


MAIN_LOOPS = {
    **_named("inner_block_fwd {dtype}-S16-C{dim}-heads4", FORWARD_LOOPS),
    **_named("inner_attention_bwd {dtype}-S16-C{dim}-heads4", ATTENTION_LOOPS),
    **_named("inner_mlp_bwd {dtype}-S16-C{dim}", MLP_LOOPS),
}


def load_setup() -> object:
    """setup.py as a module: its compiler flags and its ninja file."""
    spec = importlib.util.spec_from_file_location("tnt_setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(name: str, *arguments: str) -> str:
    """Output of a binary utility inside the triton package."""
    package = importlib.util.find_spec("triton")
    if package is None:
        raise SystemExit("cuda_budget: triton is missing; `pip install triton` for its cuobjdump")
    path = Path(package.origin).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def compile_all(archs: Iterable[str], wanted: Optional[list], build: Path) -> dict:
    """Device code of every source for every architecture: {arch: [cubin, ...]}."""
    setup_py = load_setup()
    sources = [s for s in setup_py.cuda_sources() if s.endswith(".cu")]
    if wanted is not None:
        sources = [s for s in sources if Path(s).stem in wanted]
        if not sources:
            raise SystemExit(f"cuda_budget: no source is called {' or '.join(wanted)}")
    ninja = setup_py.NinjaFile(build)
    cubins: dict = {}
    for arch in archs:
        flags = [*setup_py.NVCC_FLAGS, "-Icsrc", f"-arch=sm_{arch}", "-cubin"]
        for source in sources:
            cubins.setdefault(arch, []).append(
                ninja.compile(source, f"sm_{arch}", ["nvcc", *flags])
            )
    ninja.run()
    return cubins


def kernel_name(demangled: str) -> str:
    """`inner_block_fwd BFloat16-S16-C24-heads4`; tuning is left out, so that it can change."""
    name = short(demangled)
    depth, end = 0, len(name)
    for position, letter in enumerate(name):  # cut at the parameters
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = position
            break
    name = re.sub(r"_kernel(?=<|$)", "", name[:end])
    half = re.fullmatch(r"inner_bwd(_pack)?<(?:Plain)?(\w+)Backward<(\w+),(.*)>>", name)
    if half:
        sizes = "-".join(map("{}{}".format, ("S", "C", "heads"), half[4].split(",")))
        return f"inner_{half[2].lower()}_bwd{half[1] or ''} {half[3]}-{sizes}"
    size = r"<\w+<(\w+),(\d+),(\d+),(\d+)[^<>]*>>"  # a configuration: type, S, C, heads, tuning
    return re.sub(size, r" \1-S\2-C\3-heads\4", name)


def kernels_of(file: Path, arch: str) -> Iterator[tuple]:
    """(name, registers, stack, [(address, instruction), ...], demangled name) of each kernel."""
    options = ("-arch", f"sm_{arch}") if file.suffix == ".so" else ()
    usage = dict(
        re.findall(r"Function (\w+):\s+(REG:.*)", tool("cuobjdump", "-res-usage", *options, file))
    )
    mangled = list(usage)
    plain = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    demangled = dict(zip(mangled, plain))
    for part in tool("cuobjdump", "-sass", *options, file).split("Function : ")[1:]:
        function = part.split(maxsplit=1)[0]
        code = [
            (int(match[1], 16), re.sub(r"^@!?U?P\w+\s+", "", match[2]))
            for match in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", part, re.MULTILINE)
        ]
        figures = dict(re.findall(r"(REG|STACK):(\d+)", usage[function]))
        name = kernel_name(demangled[function])
        yield name, int(figures["REG"]), int(figures["STACK"]), code, demangled[function]


def main_loop(code: list, inner_loops: tuple, name: str) -> collections.Counter:
    """Opcodes of the loop with the most tensor work, each as often as it runs per pass.

    Of several such the shortest: code moved out of the loop, behind it, jumps back too.
    """
    loops = []
    for address, text in code:
        target = re.search(r"^BRA\S* .*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))

    def tensor_work(loop: tuple) -> tuple:
        inside = [text for address, text in code if loop[0] <= address <= loop[1]]
        return sum(text.startswith("HMMA") for text in inside), -len(inside)

    first, last = max(loops, key=tensor_work)
    inner = sorted(loop for loop in loops if first < loop[0] and loop[1] < last)
    if len(inner) != len(inner_loops):
        raise SystemExit(f"cuda_budget: {name}: loops inside the main loop: {inner}")
    counts: collections.Counter = collections.Counter()
    for address, text in code:
        if first <= address <= last:
            times = 1
            for (begin, end), trips in zip(inner, inner_loops):
                times *= trips if begin <= address <= end else 1
            counts[text.split()[0].split(".")[0]] += times
    return counts


def blocks_of_main_loops() -> dict:
    """{name: (dynamic shared memory, warps) of a block}, read off the names of empty kernels."""
    lines = ['#include "cuda/inner_block/backward_instances.cuh"', "namespace tnt_kernels::cuda {"]
    lines.append("template <int, int, int> __global__ void block() {}")
    for index, name in enumerate(MAIN_LOOPS):
        sizes = re.search(r" (\w+)-S(\d+)-C(\d+)(?:-heads(\d+))?", name)
        kind = {"inner_block_fwd": "TunedConfig", "inner_mlp_bwd": "MlpBackward"}
        config = kind.get(name.split()[0], "AttentionBackward")
        config += f"<{', '.join(filter(None, sizes.groups()))}>"
        values = f"{index}, {config}::kSharedBytes, {config}::kWarps"
        lines.append(f"template __global__ void block<{values}>();")
    BUILD.mkdir(parents=True, exist_ok=True)
    source, cubin = BUILD / "blocks.cu", BUILD / "blocks.cubin"
    source.write_text("\n".join([*lines, "}"]) + "\n")
    flags = [*load_setup().NVCC_FLAGS, f"-I{ROOT / 'csrc'}", "-arch=sm_90", "-cubin"]
    subprocess.run(["nvcc", *flags, "-o", cubin, source], check=True)
    found = {}
    for *_, demangled in kernels_of(cubin, "90"):
        index, size, warps = map(int, re.search(r"<(\d+),(\d+),(\d+)>", short(demangled)).groups())
        found[list(MAIN_LOOPS)[index]] = (size, warps)
    return found


def configuration(demangled: str) -> tuple:
    """(element type, [S, C, heads, tiles, warps, blocks], what follows) of a kernel's name."""
    found = re.search(r"InnerConfig<(\w+)((?:,\d+){6})>(.*)", short(demangled))
    return found[1], [int(number) for number in found[2].split(",")[1:]], found[3]


def short(demangled: str) -> str:
    """Without namespaces, casts and spaces."""
    drop = r"tnt_kernels::cuda::|\(anonymous namespace\)::|^void |\(int\)|(?<=[,>]) | (?=>)"
    return re.sub(drop, "", demangled)


def measure(name: str, registers: int, stack: int, code: list, demangled: str) -> dict:
    """The figures of one kernel; shared memory and occupancy are added by `add_occupancy`."""
    executed = [text for _, text in code if not text.startswith("NOP")]
    figures = {"registers": registers, "stack_bytes": stack, "instructions": len(executed)}
    if name in MAIN_LOOPS:
        sequences = 1  # that a warp takes at a time
        if name.startswith("inner_block_fwd"):
            _, (tokens, _, _, tiles, *_), _ = configuration(demangled)
            sequences = 16 * tiles // tokens
        counts = main_loop(code, MAIN_LOOPS[name], name)
        total = sum(counts.values()) / sequences
        pipes = {
            pipe: round(sum(counts[opcode] for opcode in opcodes.split()) / sequences, 1)
            for pipe, opcodes in PIPES.items()
        }
        pipes["other"] = round(total - sum(pipes.values()), 1)
        figures.update(instructions_per_sequence=round(total, 1), pipes=pipes)
    return figures


def add_occupancy(found: dict, blocks: dict) -> None:
    """Shared memory and resident warps, where the size of a block is known."""
    for key, figures in found.items():
        arch, name = key.removeprefix("sm_").split(maxsplit=1)
        if name not in blocks:
            continue
        shared, warps = blocks[name]
        by_registers = 65536 // (-(-figures["registers"] // 8) * 8 * 32 * warps)
        by_shared = SHARED_KB[arch] * 1024 // (shared + 1024)
        resident = min(by_registers, by_shared, MOST_WARPS[arch] // warps) * warps
        figures.update(shared_bytes=shared, warps_per_multiprocessor=resident)


def problems(found: dict, baseline: dict) -> list:
    """Sentences about what got worse."""
    worse = []
    for key, figures in found.items():
        before = baseline.get(key)
        if before is None:
            worse.append(f"{key} is not in the baseline; run with --write")
            continue
        for name in COMPARED:
            if figures.get(name, 0) > before.get(name, 0) * TOLERANCE:
                worse.append(f"{key}: {name} {before.get(name, 0)} -> {figures[name]}")
    return worse


def modelled_us(figures: dict) -> float:
    """Time on an H100 if it issued an instruction in every slot."""
    per_multiprocessor = SEQUENCES / H100["multiprocessors"]
    clocks = per_multiprocessor * figures["instructions_per_sequence"] / H100["issue"]
    return clocks / (H100["ghz"] * 1e3)


def print_tables(found: dict) -> None:
    """Every kernel's resources, then the main loops."""
    print(f"{'kernel':62} {'regs':>4} {'stack':>5} {'instr':>6}")
    for key, figures in found.items():
        line = f"{key:62} {figures['registers']:4} {figures['stack_bytes']:5} "
        print(line + f"{figures['instructions']:6}")
    columns = (*PIPES, "other")
    head = f"\n{'main loop':50} {'smem':>6} {'warps':>5} {'instr/seq':>9}"
    print(head + "".join(f" {pipe:>8}" for pipe in columns) + "  H100 us (model), bytes")
    for key, figures in found.items():
        if "pipes" not in figures:
            continue
        line = f"{key:50} {figures['shared_bytes']:6} {figures['warps_per_multiprocessor']:5} "
        line += f"{figures['instructions_per_sequence']:9}"
        line += "".join(f" {figures['pipes'][pipe]:8}" for pipe in columns)
        if key.startswith("sm_90"):
            tokens, dim = map(int, re.findall(r"-S(\d+)-C(\d+)", key)[0])
            size = 4 if "Float32" in key else 2
            tensors = 3 if "_bwd" in key else 2  # x and dy are read, dx is written
            floor = tensors * SEQUENCES * tokens * dim * size / H100["gb_per_s"] / 1e3
            line += f"  {modelled_us(figures):.0f}, {floor:.0f}"
        print(line)


def write_baseline(found: dict) -> None:
    """One line per kernel."""
    lines = [f"{json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found)]
    BASELINE.parent.mkdir(exist_ok=True)
    BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Compile, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--sources", nargs="+", metavar="STEM", help="only these .cu files")
    parser.add_argument("--only-compile", action="store_true", help="for a later run to read")
    parser.add_argument("--build-dir", type=Path, default=BUILD, metavar="DIR")
    parser.add_argument("--built", type=Path, metavar="LIB", help="read sm_90 off this library")
    parser.add_argument("--write", action="store_true", help="make these figures the baseline")
    given = parser.parse_args()
    os.chdir(ROOT)
    files = {"90": [given.built]} if given.built else {}
    archs = [arch for arch in given.archs if arch not in files]
    files.update(compile_all(archs, given.sources, given.build_dir.resolve()))
    if given.only_compile:
        return 0
    found = {
        f"sm_{arch} {kernel[0]}": measure(*kernel)
        for arch in given.archs
        for file in files.get(arch, ())
        for kernel in kernels_of(file, arch)
    }
    add_occupancy(found, blocks_of_main_loops())
    print_tables(found)
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if given.write:
        whole = given.sources is None and tuple(given.archs) == ARCHS
        write_baseline(found if whole else {**baseline, **found})
        return 0
    worse = problems(found, baseline)
    print("\n".join(worse) or "cuda_budget: within the baseline")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
