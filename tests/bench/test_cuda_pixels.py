"""Static budgets of the pixel ops' CUDA kernels: targets, comparison, and a run of the script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    sys.path.insert(0, str(BENCH))  # as when the script is run
    try:
        import cuda_pixels
    finally:
        sys.path.remove(str(BENCH))
    return cuda_pixels


@pytest.fixture
def baseline(budget: ModuleType) -> dict:
    return json.loads(budget.BASELINE.read_text())


def test_baseline_meets_the_targets(budget: ModuleType, baseline: dict) -> None:
    """No spill, and pixel_embed within 1.3 times the time that its bytes take.

    But for one: the weight gradient's products at C = 24 are as many for uint8 images as for
    bfloat16 ones, which take 1.5 times as long to read and write.
    """
    assert set(baseline) == {kernel.name for kernel in budget.KERNELS}
    for name, figures in baseline.items():
        assert figures["stack_bytes"] == 0, name
        if name.startswith("pixel_embed"):
            most = 1.4 if name == "pixel_embed_bwd_dw BFloat16-C24-uint8" else 1.3
            assert figures["modelled_us"] <= most * figures["bytes_us"], name


def test_only_what_got_worse_is_a_problem(budget: ModuleType, baseline: dict) -> None:
    assert budget.problems(baseline, baseline) == []
    name, figures = next(iter(baseline.items()))
    count = figures["instructions_per_patch"]
    for factor, worse in ((0.5, False), (1.02, False), (1.04, True)):
        found = {name: {**figures, "instructions_per_patch": count * factor}}
        assert bool(budget.problems(found, baseline)) is worse
    assert budget.problems({name: {**figures, "stack_bytes": 8}}, baseline)


def test_instructions_count_as_often_as_their_loops_run(budget: ModuleType) -> None:
    lines = ["MOV", "FADD", "LDS", "BRA 0x20", "BRA 0x10", "EXIT", "BRA 0x60", "NOP"]
    code = [(16 * i, line) for i, line in enumerate(lines)]
    fields = {"name": "kernel", "source": "", "instance": "", "warps": 1, "patches": 1}
    main = budget.Kernel(**fields, bytes_moved=1, trips=(3,))
    whole = main._replace(whole=True, trips=(2, 3))
    assert budget.executed(code, main) == 2 + 2 * 3
    assert budget.executed(code, whole) == 3 + 2 * 2 + 2 * 2 * 3
    with pytest.raises(SystemExit, match="loops have changed"):
        budget.executed(code, whole._replace(trips=(2,)))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_kernels_stay_within_the_baseline() -> None:
    pytest.importorskip("triton")  # for its cuobjdump
    command = [sys.executable, str(BENCH / "cuda_pixels.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda_pixels: within the baseline" in done.stdout
