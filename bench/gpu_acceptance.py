"""Everything that only a GPU can show, in one command with one time limit; `make gpu` runs it.

    python bench/gpu_acceptance.py                              every stage, 9 minutes at most
    python bench/gpu_acceptance.py --stages build kernels       some of them
    python bench/gpu_acceptance.py --limit 300 --json FILE

Each stage is a process of its own with a time limit of its own: one that fails, hangs or breaks the
GPU's context does not stop the next, and each prints as it ends. What cannot run here is skipped
with the reason. Results so far are always in bench/results/gpu_acceptance.json; a table closes.
Exits with 1 if a stage failed or ran out of time. Needs no network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from harness import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
LEAST_S = 10  # a stage is not started with less time left
GRACE_S = 4  # from being asked to stop to being stopped
TAIL_LINES = 40


class Stage(NamedTuple):
    """A command, what it needs, and how long it may take."""

    about: str
    command: Callable[[Path], list]  # given where it may leave a report as JSON
    limit_s: int
    gpu: bool = True
    tool: Optional[str] = None


def python(*arguments: str) -> list:
    """A command in this interpreter."""
    return [sys.executable, *arguments]


def measured(part: str) -> Callable[[Path], list]:
    """A part of gpu_stages.py."""
    return lambda report: python("bench/gpu_stages.py", part, str(report))


def tests(*arguments: str) -> Callable[[Path], list]:
    """pytest on the device, on several workers if pytest-xdist is there."""
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    command = ["-m", "pytest", "-q", "--device", "cuda", "--durations=5", *workers, *arguments]
    return lambda report: python(*command)


def throughput(*arguments: str) -> Callable[[Path], list]:
    """Whole models in bfloat16 at the batch size that throughput.py takes on a GPU."""
    options = ("--device", "cuda", "--dtype", "bfloat16", "--rounds", "20", *arguments)
    return lambda report: python("bench/throughput.py", *options, "--json", str(report))


def architecture() -> str:
    """Compute capability of this GPU; 9.0 where there is none."""
    found = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return ".".join(map(str, found))


def budget(report: Path) -> list:
    known = ("80", "90", "100", "120")
    here = architecture().replace(".", "")
    return python("bench/cuda_budget.py", "--archs", here if here in known else "90")


STAGES = {
    "build": Stage(
        "the extensions, in place, for this GPU only",
        lambda report: python("setup.py", "-q", "build_ext", "--inplace"),
        240,
        gpu=False,
    ),
    "selftest": Stage("csrc/cuda/warp.cuh on the device", measured("selftest"), 60, tool="nvcc"),
    "kernels": Stage("every op against PyTorch and the floors", measured("kernels"), 150),
    "latency": Stage("one image, launched and as a CUDA graph", measured("latency"), 60),
    "models": Stage(
        "TNT-S and DeiT-S: throughput, peak memory", throughput("--models", "tnt_s", "deit_s"), 150
    ),
    "tests": Stage(
        "the op tests on the device",
        tests("tests/ops", "-k", "not triton"),
        150,
    ),
    "training": Stage(
        "steps as users run them: graphs, compiled, fp16, DDP, FSDP2",
        lambda report: python("bench/gpu_training.py", str(report)),
        100,
    ),
    "sanitizer": Stage(
        "memory, races, uninitialised reads", measured("sanitizer"), 90, tool="compute-sanitizer"
    ),
    "models_b": Stage(
        "TNT-B and DeiT-B, not compiled",
        throughput("--no-compile", "--models", "tnt_b", "deit_b"),
        80,
    ),
    "triton": Stage("Triton's own tests on the device", tests("tests/ops/test_triton.py"), 120),
    "budget": Stage("registers and instructions", budget, 90, gpu=False, tool="nvcc"),
}


def obstacle(stage: Stage) -> Optional[str]:
    """Why a stage cannot run here, or None."""
    if stage.gpu and not torch.cuda.is_available():
        return "no GPU"
    if stage.tool and shutil.which(stage.tool) is None:
        return f"{stage.tool} is not on PATH"
    return None


def run_limited(command: list, limit_s: float, log: Path) -> Optional[int]:
    """Exit status, or None if it ran out of time; all that it started is ended with it."""
    paths = [str(ROOT), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", architecture()),
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # Python then writes down what it has
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_stage(stage: Stage, left_s: float, folder: Path) -> dict:
    """Status, seconds, last lines of output, and the report if the stage left one."""
    reason = obstacle(stage)
    if reason is None and left_s < LEAST_S:
        reason = "no time left"
    if reason is not None:
        return {"status": "skipped", "seconds": 0.0, "output": reason}
    log, report = folder / "log", folder / "report.json"
    report.unlink(missing_ok=True)
    begin = time.perf_counter()
    code = run_limited(stage.command(report), min(stage.limit_s, left_s - GRACE_S), log)
    status = {0: "passed", None: "out of time"}.get(code, "failed")
    outcome = {"status": status, "seconds": round(time.perf_counter() - begin, 1)}
    lines = log.read_text(errors="replace").splitlines()
    outcome["output"] = "\n".join(lines[-TAIL_LINES:])
    with contextlib.suppress(OSError, ValueError):  # it may have been cut off while writing
        outcome["report"] = json.loads(report.read_text())
    return outcome


def print_kernels(report: dict) -> None:
    """One line per op and case: the floors and every contestant, microseconds."""
    for case, row in report.items():
        figures = [
            f"{name} {value:.0f}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in row.items()
        ]
        print(f"  {case:46} us: " + ", ".join(figures))


def main() -> int:
    """Run the stages in order, within the limit."""
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=tuple(STAGES))
    parser.add_argument("--limit", type=float, default=530, help="seconds for all (default 530)")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu_acceptance.json")
    given = parser.parse_args()
    outcomes: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.stages:
            left_s = given.limit - (time.perf_counter() - begin)
            outcome = outcomes[name] = run_stage(STAGES[name], left_s, Path(folder))
            print(f"=== {name}: {outcome['status']} ({outcome['seconds']} s)", flush=True)
            print(outcome["output"], flush=True)
            if torch.cuda.is_available():  # figures of a machine without a GPU would say nothing
                given.json.parent.mkdir(parents=True, exist_ok=True)
                here = machine.describe("cuda", False)
                written = json.dumps({"machine": here, "stages": outcomes}, indent=1)
                given.json.write_text(written + "\n")
    print("\nstage       outcome       seconds")
    for name, outcome in outcomes.items():
        print(f"{name:11} {outcome['status']:13} {outcome['seconds']:7}  {STAGES[name].about}")
    print_kernels(outcomes.get("kernels", {}).get("report", {}))
    return any(outcome["status"] in ("failed", "out of time") for outcome in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
