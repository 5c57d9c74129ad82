"""Everything that only a GPU can show, in one command; `make gpu` builds and runs it.

    python bench/gpu_acceptance.py [--stages selftest kernels ...] [--json FILE]

Each stage prints as it finishes, a failing one does not stop the next, and what cannot run here is
said to be skipped. Results go to bench/results/gpu_acceptance.json. Exits with 1 if a stage failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine

from tnt_kernels.backends import BACKENDS
from tnt_kernels.dispatch import describe
from tnt_kernels.reference import SPECS

ROOT = Path(__file__).resolve().parents[1]
PATCHES = 256 * 196
SIZES = ({"S": 16, "C": 24, "heads": 4}, {"S": 16, "C": 40, "heads": 4})


class Skipped(Exception):
    """A stage cannot run here; the message says why."""


def need_gpu() -> None:
    if not torch.cuda.is_available():
        raise Skipped("no GPU")


def need_tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Skipped(f"{name} is not on PATH")
    return path


def run(command: list, limit_s: int, **environment: str) -> str:
    """Last lines of a command's output; RuntimeError with them if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )
    tail = "\n".join(done.stdout.strip().splitlines()[-15:])
    if done.returncode != 0:
        raise RuntimeError(tail)
    return tail


def budget() -> Any:
    """Registers and instructions against the baseline; needs nvcc, no GPU."""
    need_tool("nvcc")
    return run([sys.executable, "bench/cuda_budget.py"], 180)


def selftest() -> Any:
    """Every function of csrc/cuda/warp.cuh on the device."""
    need_gpu()
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "self_test"))
        flags = ["-std=c++17", "-Icsrc", "-arch=native", "-o", program]
        run([need_tool("nvcc"), *flags, "tests/gpu/warp_self_test.cu"], 120)
        return run([program], 60)


def tests() -> Any:
    """The whole test suite with tensors on the device."""
    need_gpu()
    return run([sys.executable, "-m", "pytest", "-q", "--device", "cuda"], 240)


def sanitizer() -> Any:
    """compute-sanitizer over a small set: memory, races, uninitialised reads."""
    need_gpu()
    tool = need_tool("compute-sanitizer")
    code = "import sys; sys.path.insert(0, 'bench'); import gpu_acceptance as g; g.small_set()"
    report = {}
    for check in ("memcheck", "racecheck", "initcheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code]
        report[check] = run(command, 120, PYTORCH_NO_CUDA_MEMORY_CACHING="1").splitlines()[-1]
    return report


def small_set() -> None:
    """Odd tails of every configuration, on the compiled kernels."""
    for op in ("inner_block", "inner_attention", "inner_mlp"):
        for case in SPECS[op].cases:
            args = SPECS[op].make_args(case, torch.bfloat16, "cuda")
            if BACKENDS["native"].refusal(describe(op, args)) is None:
                BACKENDS["native"].run(op, args)
    torch.cuda.synchronize()


def time_us(work: Callable[[], Any], rounds: int = 30) -> float:
    """Median time of one call among many, by device events."""
    for _ in range(5):
        work()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def kernels() -> Any:
    """Forward of the inner block: each backend and compiled PyTorch, checked, then timed."""
    need_gpu()
    report = {}
    spec = SPECS["inner_block"]
    copied = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    copy_us = time_us(lambda: copied.clone())
    bytes_per_us = 2 * copied.numel() / copy_us  # what the memory of this GPU gives a copy
    for case in SIZES:
        args = spec.make_args({"P": PATCHES, **case}, torch.bfloat16, "cuda")
        call = describe("inner_block", args)
        expected = BACKENDS["reference"].run("inner_block", args).double()
        compiled = torch.compile(spec.reference)
        contestants = {"compiled PyTorch": lambda a=args, c=compiled: c(*a.values())}
        for name, backend in BACKENDS.items():
            if backend.refusal(call) is None:
                contestants[name] = lambda a=args, b=backend: b.run("inner_block", a)
        row = {"copy_floor_us": spec.bytes_moved(args) / bytes_per_us}
        for name, work in contestants.items():
            error = (work().double() - expected).norm() / expected.norm()
            if not error < 2e-2:
                raise RuntimeError(f"{name}: relative error {error:.1e} at C={case['C']}")
            row[f"{name}_us"] = time_us(work)
        report[f"C={case['C']}"] = row
    return report


def models() -> Any:
    """Inference and training throughput and peak memory against timm's TNT and DeiT."""
    need_gpu()
    target = ROOT / "bench" / "results" / "gpu_throughput.json"
    command = [sys.executable, "bench/throughput.py", "--device", "cuda", "--dtype", "bfloat16"]
    return run([*command, "--json", str(target)], 240)


def latency() -> Any:
    """One image through TNT-S, launched one by one and replayed as a CUDA graph."""
    need_gpu()
    from tnt import tnt_s

    model = tnt_s().cuda().eval()
    image = torch.randn(1, 3, 224, 224, device="cuda")
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            expected = model(image)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(image)
        graph.replay()
        if not torch.allclose(output, expected, rtol=1e-2, atol=1e-2):
            raise RuntimeError("the replayed graph differs from the launched model")
        return {"launched_us": time_us(lambda: model(image)), "graph_us": time_us(graph.replay)}


STAGES = {
    stage.__name__: stage
    for stage in (budget, selftest, kernels, latency, sanitizer, models, tests)
}


def main() -> int:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=tuple(STAGES))
    target = ROOT / "bench" / "results" / "gpu_acceptance.json"
    parser.add_argument("--json", type=Path, default=target)
    given = parser.parse_args()
    outcomes: dict = {}
    for name in given.stages:
        begin = time.perf_counter()
        try:
            status, details = "passed", STAGES[name]()
        except Skipped as reason:
            status, details = "skipped", str(reason)
        except Exception as error:  # the other stages still have something to say
            status, details = "failed", f"{type(error).__name__}: {error}"
        seconds = round(time.perf_counter() - begin, 1)
        outcomes[name] = {"status": status, "seconds": seconds, "details": details}
        text = details if isinstance(details, str) else json.dumps(details, indent=1)
        print(f"=== {name}: {status} ({seconds} s)\n{text}", flush=True)
    print("\n" + "\n".join(f"{name:10} {o['status']}" for name, o in outcomes.items()))
    if torch.cuda.is_available():  # figures of a machine without a GPU would say nothing
        given.json.parent.mkdir(parents=True, exist_ok=True)
        host = machine.describe("cuda", False)
        given.json.write_text(json.dumps({"machine": host, "stages": outcomes}, indent=1) + "\n")
    return any(o["status"] == "failed" for o in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
