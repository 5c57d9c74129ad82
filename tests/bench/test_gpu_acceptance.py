"""The acceptance command where there is no GPU: it says what it skipped, and fails nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("selftest", "kernels", "latency", "sanitizer", "models", "tests")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_stages_that_need_a_gpu_are_skipped_with_the_reason(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    command = [sys.executable, "bench/gpu_acceptance.py", "--json", str(target), "--stages"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *STAGES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in STAGES:
        assert f"=== {stage}: skipped" in done.stdout
    assert done.stdout.count("no GPU") == len(STAGES)
    assert not target.exists()  # no figures of a GPU that is not there
