"""Instructions per patch of the pixel ops' CUDA kernels on sm_90, modelled times, byte floors.

    python bench/cuda_pixels.py [--write]

Compiles pixel_embed and pixel_to_patch and counts what a warp executes per patch of the models'
sizes: each instruction as often as the loops around it run, which follows from the sizes. Code
behind branches counts whether it is taken or not, so the counts are upper bounds; of the code that
pixel_to_patch has per type of the tokens, a third. The modelled time is that of an H100 that issues
an instruction in every slot, at batch 256. Exits with 1 where registers or instructions exceed the
committed baseline by more than 3 %, or the stack grows. Needs nvcc, and cuobjdump from triton.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from cuda_budget import H100, SEQUENCES, TOLERANCE, tool

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "bench" / "results" / "cuda_pixels.json"
PIXELS = 3 * 16 * 16  # of a patch


class Kernel(NamedTuple):
    """A kernel, and how often its loops run for `patches` patches, in order of address."""

    name: str
    source: str
    instance: str  # as in the mangled name
    trips: tuple
    warps: int  # that run the code
    patches: int
    bytes_moved: int  # per patch
    whole: bool = False  # all of the kernel, else its main loop only


def _embed(dtype: str, dim: int, is_uint8: bool = False) -> tuple:
    size, groups = (4 if dtype == "Float32" else 2), dim // 8
    moved = PIXELS * (1 if is_uint8 else size) + 16 * dim * size
    name, instance = f"{dtype}-C{dim}" + "-uint8" * is_uint8, f"{dtype}ELi{groups}ELb{is_uint8:d}"
    forward = Kernel(
        f"pixel_embed_fwd {name}", "pixel_embed/forward", f"fwd_kernel.*{instance}",
        # patches; units inside, outside the image; passes; row tiles; two pairs of chunks
        (1, 1, 0, 1, 1, 5), 1, 1, moved,
    )  # fmt: skip
    patches = 8  # of a group
    units = 2 if size == 4 and not is_uint8 else 1
    backward = Kernel(
        f"pixel_embed_bwd_dw {name}", "pixel_embed/backward", f"dw_kernel.*{instance}",
        # patches; units inside, outside; pairs of dy, 32 bytes of it; row tiles; positions by
        # pairs, four patches; by quads, on average over the warps, four patches
        (1, units, 0, 0, patches * dim * size / 512, patches / 2, 0, 0, dim / 64, patches / 4),
        8, patches, moved,
    )  # fmt: skip
    return forward, backward


def _project(dtype: str, width: int) -> Kernel:
    size, rows = (4, 32) if "Float32" in dtype else (2, 64)
    third = 4 / 3
    finish = (third, third) if rows == 64 else (third,)
    return Kernel(
        f"pixel_to_patch_fwd {dtype}-{width}", "pixel_to_patch/forward",
        rf"fwd_kernel.*\d{dtype}ELi{width}", (rows / 32, width // 16, *finish), 8, rows,
        3 * width * size, True,
    )  # fmt: skip


KERNELS = (
    *_embed("BFloat16", 24),
    *_embed("BFloat16", 40),
    *_embed("Float32", 24),
    *_embed("Float32", 40),
    *_embed("BFloat16", 24, is_uint8=True),
    *_embed("BFloat16", 40, is_uint8=True),
    *(_project(dtype, width) for dtype in ("BFloat16", "Float32") for width in (384, 640)),
)


def executed(code: list, kernel: Kernel) -> float:
    """Instructions that a warp executes in the kernel's main loop, or in all of it."""
    loops = []
    for address, text in code:
        target = re.search(r"^BRA\S* .*?(0x[0-9a-f]+)", text)
        # the last instruction of all is a branch to itself
        if target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    first, last = (0, code[-1][0])
    if not kernel.whole:
        first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    inner = sorted(loop for loop in loops if first <= loop[0] and loop[1] <= last)
    inner = [loop for loop in inner if loop != (first, last)]
    if len(inner) != len(kernel.trips):
        raise SystemExit(f"cuda_pixels: {kernel.name}: loops have changed: {inner}")
    total = 0.0
    for address, text in code:
        if first <= address <= last and not text.startswith("NOP"):
            times = 1.0
            for (begin, end), trips in zip(inner, kernel.trips):
                times *= trips if begin <= address <= end else 1
            total += times
    return total


def measure_source(source: str) -> dict:
    """The figures of all kernels of one source file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder, "kernels.cubin"))
        flags = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-arch=sm_90"]
        file = str(ROOT / "csrc" / "cuda" / f"{source}.cu")
        command = ["nvcc", *flags, f"-I{ROOT / 'csrc'}", "-cubin", "-o", cubin, file]
        subprocess.run(command, check=True)
        usage = dict(re.findall(r"Function (\w+):\s+(.*)", tool("cuobjdump", "-res-usage", cubin)))
        sections = tool("cuobjdump", "-sass", cubin).split("Function : ")[1:]
    assembly = {section.split(maxsplit=1)[0]: section for section in sections}
    found = {}
    for kernel in (kernel for kernel in KERNELS if kernel.source == source):
        function = next(name for name in assembly if re.search(kernel.instance, name))
        code = [
            (int(match[1], 16), re.sub(r"^@!?U?P\w+\s+", "", match[2]))
            for match in re.finditer(
                r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", assembly[function], re.MULTILINE
            )
        ]
        per_patch = executed(code, kernel) * kernel.warps / kernel.patches
        clocks = per_patch * SEQUENCES / H100["multiprocessors"] / H100["issue"]
        found[kernel.name] = {
            "registers": int(re.search(r"REG:(\d+)", usage[function])[1]),
            "stack_bytes": int(re.search(r"STACK:(\d+)", usage[function])[1]),
            "instructions_per_patch": round(per_patch, 1),
            "modelled_us": round(clocks / (H100["ghz"] * 1e3), 1),
            "bytes_us": round(kernel.bytes_moved * SEQUENCES / H100["gb_per_s"] / 1e3, 1),
        }
    return found


def problems(found: dict, baseline: dict) -> list:
    """Sentences about what got worse."""
    worse = []
    for key, figures in found.items():
        for name in ("registers", "stack_bytes", "instructions_per_patch"):
            before = baseline.get(key, {}).get(name, 0)
            if figures[name] > before * TOLERANCE:
                worse.append(f"{key}: {name} {before} -> {figures[name]}")
    return worse


def main() -> int:
    """Compile, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make these figures the baseline")
    given = parser.parse_args()
    found: dict = {}
    for source in dict.fromkeys(kernel.source for kernel in KERNELS):
        found.update(measure_source(source))
    print(f"{'sm_90, batch 256':32} {'regs':>4} {'stack':>5} {'instr/patch':>11}  H100 us (model)")
    for key, figures in found.items():
        line = f"{key:32} {figures['registers']:4} {figures['stack_bytes']:5} "
        line += f"{figures['instructions_per_patch']:11}  {figures['modelled_us']:5}"
        print(f"{line}, bytes {figures['bytes_us']}")
    if given.write:
        BASELINE.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    worse = problems(found, json.loads(BASELINE.read_text()))
    print("\n".join(worse) or "cuda_pixels: within the baseline")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
