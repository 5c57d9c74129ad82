"""Static budgets of the CUDA kernels: targets, comparison, and a run of the script."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "cuda_budget.py"
TARGETS = {"sm_90 BFloat16-S16-C24-heads4": 760, "sm_90 BFloat16-S16-C40-heads4": 1210}


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_budget", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_budget"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def baseline(budget: ModuleType) -> dict:
    return json.loads(budget.BASELINE.read_text())


def test_baseline_meets_the_targets(baseline: dict) -> None:
    for key, most in TARGETS.items():
        assert baseline[key]["instructions_per_sequence"] <= most
        assert baseline[key]["stack_bytes"] == 0


def test_baseline_covers_every_kernel_and_architecture(budget: ModuleType, baseline: dict) -> None:
    keys = {f"sm_{arch} {kernel.name}" for arch in budget.ARCHS for kernel in budget.KERNELS}
    assert set(baseline) == keys


def test_only_what_got_worse_is_a_problem(budget: ModuleType, baseline: dict) -> None:
    key = next(iter(TARGETS))
    assert budget.problems({key: baseline[key]}, baseline) == []
    count = baseline[key]["instructions_per_sequence"]
    for factor, worse in ((0.5, False), (1.02, False), (1.04, True)):
        found = {key: {**baseline[key], "instructions_per_sequence": count * factor}}
        assert bool(budget.problems(found, baseline)) is worse
    assert budget.problems({key: {**baseline[key], "stack_bytes": 8}}, baseline)
    assert "not in the baseline" in budget.problems({"sm_70": baseline[key]}, baseline)[0]


def test_loops_count_as_often_as_they_run(budget: ModuleType) -> None:
    lines = ["MOV R0, R1", "@P0 FADD R1, R1, R2", "MUFU.EX2 R1, R1", "@P1 BRA 0x10", "STG R1"]
    lines += ["@!UP0 BRA.U 0x0", "EXIT"]
    assembly = "".join(f"        /*{16 * i:04x}*/   {line} ;\n" for i, line in enumerate(lines))
    counts = budget.main_loop(assembly, budget.Kernel("Float32", 16, 24, 4, (3,)))
    assert counts == {"MOV": 1, "FADD": 3, "MUFU": 3, "BRA": 4, "STG": 1}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_kernels_stay_within_the_baseline(budget: ModuleType) -> None:
    pytest.importorskip("triton")  # for its cuobjdump
    command = [sys.executable, str(SCRIPT), "--archs", "90"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda_budget: within the baseline" in done.stdout
