"""What nvcc makes of the CUDA kernels, held against a committed baseline; needs no GPU.

    python bench/cuda_budget.py [--archs 90 ...] [--write]

Per kernel and architecture: registers, stack (spills), shared memory, warps per multiprocessor, and
the instructions of the main loop per sequence (per patch), by pipe. Loops inside it count as often
as they run. Exits with 1 where registers, shared memory or instructions exceed the baseline by more
than 3 %, or the stack grows. cuobjdump and nvdisasm come with triton.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "bench" / "results" / "cuda_budget.json"
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


class Kernel(NamedTuple):
    """A configuration, and how often the loops inside its main loop run, in order of address."""

    dtype: str
    tokens: int
    dim: int
    heads: int
    inner_loops: tuple = ()

    @property
    def name(self) -> str:
        """`BFloat16-S16-C24-heads4`."""
        return f"{self.dtype}-S{self.tokens}-C{self.dim}-heads{self.heads}"


KERNELS = (
    Kernel("BFloat16", 16, 24, 4),
    Kernel("BFloat16", 16, 40, 4),
    Kernel("Float16", 16, 24, 4),
    Kernel("Float16", 16, 40, 4),
    Kernel("Float32", 16, 24, 4, (2, 3)),  # steps of heads, chunks of hidden units
)

# The shared memory is read off the name of a second kernel.
SOURCE = """
#include "cuda/inner_block/forward.cuh"
namespace tnt_kernels::cuda {{
using Config = TunedConfig<{dtype}, {tokens}, {dim}, {heads}>;
template __global__ void inner_block_fwd_kernel<Config>(const __grid_constant__ ForwardParams);
template <int> __global__ void shared_bytes() {{}}
template __global__ void shared_bytes<Config::kSharedBytes>();
}}
"""


def tool(name: str, *arguments: str) -> str:
    """Output of a binary utility inside the triton package."""
    package = importlib.util.find_spec("triton")
    if package is None:
        raise SystemExit("cuda_budget: triton is missing; `pip install triton` for its cuobjdump")
    path = Path(package.origin).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def main_loop(assembly: str, kernel: Kernel) -> collections.Counter:
    """Opcodes of the longest loop, each counted as often as it runs per pass."""
    code = [
        (int(match[1], 16), re.sub(r"^@!?U?P\w+\s+", "", match[2]))
        for match in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", assembly, re.MULTILINE)
    ]
    loops = []
    for address, text in code:
        target = re.search(r"^BRA\S* .*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    inner = sorted(loop for loop in loops if first < loop[0] and loop[1] < last)
    if len(inner) != len(kernel.inner_loops):
        raise SystemExit(f"cuda_budget: {kernel.name}: loops inside the main loop: {inner}")
    counts: collections.Counter = collections.Counter()
    for address, text in code:
        if first <= address <= last:
            times = 1
            for (begin, end), trips in zip(inner, kernel.inner_loops):
                times *= trips if begin <= address <= end else 1
            counts[text.split()[0].split(".")[0]] += times
    return counts


def measure(kernel: Kernel, arch: str) -> dict:
    """Compile one kernel for one architecture and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.cu"), str(Path(folder, "kernel.cubin"))
        source.write_text(SOURCE.format(**kernel._asdict()))
        flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
        command = ["nvcc", *flags, f"-arch=sm_{arch}", "-cubin", "-o", cubin, str(source)]
        subprocess.run(command, check=True)
        usage = tool("cuobjdump", "-res-usage", cubin)
        assembly = tool("cuobjdump", "-sass", cubin)
    function = re.search(r"Function (\w+inner_block_fwd_kernel\w+):\s+(.*)", usage)
    tiles, warps = map(int, re.findall(r"Li(\d+)E", function[1])[3:5])
    registers = int(re.search(r"REG:(\d+)", function[2])[1])
    shared = int(re.search(r"shared_bytesILi(\d+)E", usage)[1])
    section = next(
        part for part in assembly.split("Function : ") if "inner_block_fwd" in part[:200]
    )
    counts = main_loop(section, kernel)
    sequences = 16 * tiles // kernel.tokens
    instructions = sum(counts.values()) / sequences
    pipes = {
        pipe: round(sum(counts[opcode] for opcode in opcodes.split()) / sequences, 1)
        for pipe, opcodes in PIPES.items()
    }
    pipes["other"] = round(instructions - sum(pipes.values()), 1)
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = SHARED_KB[arch] * 1024 // (shared + 1024)
    return {
        "registers": registers,
        "stack_bytes": int(re.search(r"STACK:(\d+)", function[2])[1]),
        "shared_bytes": shared,
        "warps_per_multiprocessor": min(by_registers, by_shared, MOST_WARPS[arch] // warps) * warps,
        "instructions_per_sequence": round(instructions, 1),
        "pipes": pipes,
    }


def problems(found: dict, baseline: dict) -> list:
    """Sentences about what got worse."""
    worse = []
    for key, figures in found.items():
        before = baseline.get(key)
        if before is None:
            worse.append(f"{key} is not in the baseline; run with --write")
            continue
        for name in ("registers", "stack_bytes", "shared_bytes", "instructions_per_sequence"):
            if figures[name] > before[name] * TOLERANCE:
                worse.append(f"{key}: {name} {before[name]} -> {figures[name]}")
    return worse


def modelled_us(figures: dict) -> float:
    """Time on an H100 if it issued an instruction in every slot."""
    per_multiprocessor = SEQUENCES / H100["multiprocessors"]
    clocks = per_multiprocessor * figures["instructions_per_sequence"] / H100["issue"]
    return clocks / (H100["ghz"] * 1e3)


def print_table(found: dict) -> None:
    """One line per kernel and architecture."""
    columns = (*PIPES, "other")
    head = f"{'kernel':34} {'regs':>4} {'stack':>5} {'smem':>6} {'warps':>5} {'instr/seq':>9}"
    print(head + "".join(f" {pipe:>8}" for pipe in columns) + "  H100 us (model), bytes")
    for key, figures in found.items():
        line = f"{key:34} {figures['registers']:4} {figures['stack_bytes']:5} "
        line += f"{figures['shared_bytes']:6} {figures['warps_per_multiprocessor']:5} "
        line += f"{figures['instructions_per_sequence']:9}"
        line += "".join(f" {figures['pipes'][pipe]:8}" for pipe in columns)
        if key.startswith("sm_90"):
            tokens, dim = map(int, re.findall(r"-S(\d+)-C(\d+)", key)[0])
            size = 4 if "Float32" in key else 2
            floor = 2 * SEQUENCES * tokens * dim * size / H100["gb_per_s"] / 1e3
            line += f"  {modelled_us(figures):.0f}, {floor:.0f}"
        print(line)


def main() -> int:
    """Compile, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--write", action="store_true", help="make these figures the baseline")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    cases = [(kernel, arch) for arch in given.archs for kernel in KERNELS]
    with ThreadPoolExecutor(given.jobs) as pool:
        figures = list(pool.map(lambda case: measure(*case), cases))
    found = {f"sm_{arch} {kernel.name}": f for (kernel, arch), f in zip(cases, figures)}
    print_table(found)
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if given.write:
        BASELINE.parent.mkdir(exist_ok=True)
        BASELINE.write_text(json.dumps({**baseline, **found}, indent=1) + "\n")
        return 0
    worse = problems(found, baseline)
    print("\n".join(worse) or "cuda_budget: within the baseline")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
