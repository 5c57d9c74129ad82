"""Time that our Python spends around the launches of Triton kernels, without a GPU.

    python bench/triton_launcher.py [--json FILE]

Host functions of the Triton backend run on CPU tensors while a launch only notes that it was asked
for: allocation, contiguity, tiling and arguments are measured, Triton's own launcher (its argument
binding and the driver's launch) and the kernels are not. Products that pixel_to_patch's backward
leaves to PyTorch do run, on the CPU. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine
from triton.runtime.jit import JITFunction

from tnt_kernels.backends.triton import inner, launch, pixel_embed, pixel_to_patch
from tnt_kernels.reference import SPECS

CASES = {
    "inner_block": (inner, {"P": 196, "S": 16, "C": 24, "heads": 4}),
    "pixel_embed": (
        pixel_embed,
        {"B": 1, "Cin": 3, "H": 224, "W": 224, "C": 24, "patch": 16, "stride": 4},
    ),
    "pixel_to_patch": (
        pixel_to_patch,
        {"B": 1, "N": 1, "S": 16, "C": 24, "D": 384, "dialect": "published"},
    ),
}


def median_us(call: Callable[[], Any], rounds: int = 300) -> float:
    """Median time of one call."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def measure(op: str) -> dict:
    """Launches of forward and backward, and the time around them."""
    module, case = CASES[op]
    spec = SPECS[op]
    args = spec.make_args(case, torch.bfloat16, "cpu")
    values = (*args.values(), *((False,) if spec.flag else ()))
    out = getattr(module, op)(*args.values(), *((True,) if spec.flag else ()))
    out, second = out if spec.flag else (out, None)
    backward_values = (out, *spec.backward_values(args, second), True, True)
    calls = {
        "forward": lambda: getattr(module, op)(*values),
        "backward": lambda: getattr(module, f"{op}_backward")(*backward_values),
    }
    found = {}
    for name, call in calls.items():
        launches: list = []
        JITFunction.run = lambda self, *a, launches=launches, **k: launches.append(self)
        call()
        JITFunction.run = lambda self, *a, **k: None
        found[name] = {"launches": len(launches), "host_us": round(median_us(call), 1)}
    return found


def main() -> None:
    """Measure and print; --json stores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    launch.architecture_of = lambda device: "sm90"
    JITFunction.run = lambda self, *a, **k: None
    results = {op: measure(op) for op in CASES}
    here = machine.describe("cpu", False)
    print("  ".join(f"{key}={value}" for key, value in here.items()))
    for op, parts in results.items():
        for name, row in parts.items():
            print(f"{op:15} {name:9} {row['launches']} launches, {row['host_us']} us around them")
    if given.json:
        given.json.write_text(json.dumps({"machine": here, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
