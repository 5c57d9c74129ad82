"""The acceptance command where there is no GPU: limits, order, reports, and what it skips."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
NEED_A_GPU = ("selftest", "kernels", "latency", "models", "tests", "training")
NEED_A_GPU += ("sanitizer", "models_b", "triton")

REPORTS = "import json, sys; json.dump({'us': 1.5}, open(sys.argv[1], 'w')); print('measured')"
FAILS = "print('reason'); raise SystemExit(3)"
HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that believes in a GPU, with stages that only play their parts."""
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("gpu_acceptance")

    def stage(code: str, limit_s: int = 60, **needs: Any) -> Any:
        return module.Stage(
            "", lambda report: [sys.executable, "-c", code, str(report)], limit_s, **needs
        )

    stages = {
        "fails": stage(FAILS),
        "hangs": stage(HANGS, limit_s=2),
        "reports": stage(REPORTS),
        "lacks a tool": stage(REPORTS, tool="no-such-tool"),
    }
    monkeypatch.setattr(module, "STAGES", stages)
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "architecture", lambda: "9.0")
    monkeypatch.setattr(module.machine, "describe", lambda device, pinned: {"device": "played"})
    return module


def run_main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", *arguments])
    return module.main()


def test_no_stage_stops_the_next(
    acceptance: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    target = tmp_path / "results.json"
    assert run_main(acceptance, monkeypatch, "--json", str(target)) == 1
    written = json.loads(target.read_text())
    assert written["machine"] == {"device": "played"}
    outcomes = written["stages"]
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == {
        "fails": "failed",
        "hangs": "out of time",
        "reports": "passed",
        "lacks a tool": "skipped",
    }
    assert outcomes["fails"]["output"] == "reason"
    assert outcomes["reports"]["report"] == {"us": 1.5}
    assert "report" not in outcomes["fails"]
    assert "no-such-tool is not on PATH" in capsys.readouterr().out
    grandchild = Path("/proc", outcomes["hangs"]["output"].split()[0], "stat")
    deadline = time.monotonic() + 10  # it may be a zombie for a moment
    while grandchild.exists() and grandchild.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "what a stage started outlives it"


def test_the_limit_of_the_whole_run_holds(
    acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "results.json"
    begin = time.perf_counter()
    monkeypatch.setattr(acceptance, "GRACE_S", 1)
    monkeypatch.setattr(acceptance, "LEAST_S", 2)
    stages = {"slow": acceptance.STAGES["hangs"]._replace(limit_s=600)}
    monkeypatch.setattr(acceptance, "STAGES", {**stages, "late": acceptance.STAGES["reports"]})
    assert run_main(acceptance, monkeypatch, "--limit", "3", "--json", str(target)) == 1
    assert time.perf_counter() - begin < 60
    outcomes = json.loads(target.read_text())["stages"]
    assert outcomes["slow"]["status"] == "out of time"
    assert outcomes["late"] == {"status": "skipped", "seconds": 0.0, "output": "no time left"}


def test_timed_cases_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timing of every op, with small sizes, CPU tensors and a clock that only calls."""
    monkeypatch.syspath_prepend(str(BENCH))
    stages = importlib.import_module("gpu_stages")
    monkeypatch.setattr(stages, "DEVICE", "cpu")
    monkeypatch.setattr(stages, "time_us", lambda work, rounds=1: float(work(1) is not None))
    for op, case, _ in stages.TIMED:
        small = {**case, **{k: 2 for k in ("P", "B", "N") if k in case}}
        if "H" in case:
            small.update(H=32, W=32)
        saved: dict = {}
        most = {"bytes": 1.0, "flops": 1.0}
        stages._time_case(stages.SPECS[op], small, False, most, saved.__setitem__)
        assert saved["bytes floor with backward"] > 2 * saved["bytes floor"] > 0
        assert saved["FLOPs floor with backward"] == 3 * saved["FLOPs floor"] > 0
        for backend in ("native", "reference"):
            assert saved[f"{backend} forward"] == saved[f"{backend} with backward"] == 1.0
        assert "do not run on device cpu" in saved["triton forward"] or saved["triton forward"] == 1


def test_small_set_runs_every_op(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    stages = importlib.import_module("gpu_stages")
    monkeypatch.setattr(stages, "DEVICE", "cpu")
    ran = set()
    native = stages.BACKENDS["native"]
    run = native.run
    monkeypatch.setattr(native, "run", lambda op, args: (ran.add(op), run(op, args))[1])
    stages.small_set(tmp_path / "report.json")
    assert ran == set(stages.SPECS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_stages_that_need_a_gpu_are_skipped_with_the_reason(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    command = [sys.executable, "bench/gpu_acceptance.py", "--json", str(target), "--stages"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *NEED_A_GPU],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in NEED_A_GPU:
        assert f"=== {stage}: skipped" in done.stdout
    assert done.stdout.count("no GPU") == len(NEED_A_GPU)
    assert not target.exists()  # no figures of a GPU that is not there
