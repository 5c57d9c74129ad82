"""memory.py, scaling.py, roofline.py and throughput.py's profile from end to end, at small size."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

pytest.importorskip("timm")
pytest.importorskip("sklearn", reason="the photo ships with scikit-learn")


def _rows(tmp_path: Path, script: str, *options: str) -> list[dict]:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")}
    command = [sys.executable, str(BENCH / script), "--device", "cpu", *options]
    command += ["--json", str(files["json"]), "--csv", str(files["csv"])]
    command += ["--plot", str(files["png"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(files["json"].read_text())["rows"]
    assert len(list(csv.DictReader(files["csv"].open()))) == len(rows)
    assert files["png"].read_bytes()[:4] == b"\x89PNG"
    return rows


def test_fused_training_keeps_less(tmp_path: Path) -> None:
    options = ("--models", "tnt_s", "--batch-sizes", "1", "--img-size", "160")
    rows = _rows(tmp_path, "memory.py", *options)
    kept = {row["model"]: row["activations_mb"] for row in rows}
    assert kept["tnt_s fused"] < kept["tnt_s timm"]
    assert kept["tnt_s fused checkpointed"] < kept["tnt_s fused"] / 2


def test_scaling_by_depth(tmp_path: Path) -> None:
    options = ("--models", "tnt_s", "--axes", "depth", "--rounds", "1")
    rows = _rows(tmp_path, "scaling.py", *options)
    assert [row["value"] for row in rows] == [3, 6, 12] * 2
    assert all(0 < row["exponent"] < 3 for row in rows)


def test_roofline_of_one_operator(tmp_path: Path) -> None:
    options = ("--models", "tnt_s", "--ops", "inner_block", "--batch", "1", "--rounds", "1")
    rows = _rows(tmp_path, "roofline.py", *options, "--dtype", "float32")
    named = {(row["backend"], row["direction"]): row for row in rows}
    assert set(named) >= {("native", "forward"), ("reference", "backward")}
    forward = named["native", "forward"]
    # Eqs. 14-18: 2 n m c (6 c + m) multiply-accumulates
    assert forward["gflop"] == pytest.approx(2 * 2 * 196 * 16 * 24 * (6 * 24 + 16) / 1e9)
    assert forward["gbytes"] > 2 * 196 * 16 * 24 * 4 / 1e9
    assert forward["fraction"] == pytest.approx(forward["floor_ms"] / forward["median_ms"])


def test_profile_names_every_stage(tmp_path: Path) -> None:
    options = ("--models", "tnt_s", "--tasks", "inference", "--rounds", "1", "--batch-sizes", "1")
    traces = tmp_path / "traces"
    command = [sys.executable, str(BENCH / "throughput.py"), "--device", "cpu", "--no-compile"]
    command += [*options, "--dtype", "float32", "--profile", str(traces)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = done.stdout[done.stdout.index("under the profiler") :]
    for model in ("tnt_s fused", "tnt_s timm"):
        line = next(line for line in table.splitlines() if model in line)
        times = [float(cell) for cell in line.replace("│", " ").split()[2:]]
        assert min(times[:4]) > 0  # embedding, inner, projection, outer
        assert sum(times[:6]) == pytest.approx(times[6], abs=0.5)
    assert len(list(traces.glob("*.json"))) == 2


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    import throughput

    tried = []

    def measure(task: str, dtype: str, size: int, *_: object) -> list:
        tried.append(size)
        if size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [size]

    monkeypatch.setattr(throughput, "measure", measure)
    args = argparse.Namespace(device="cpu")
    assert throughput.measure_what_fits("inference", "float32", 8, 224, args) == [2]
    assert tried == [8, 4, 2]


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import throughput

    def measure(*_: object) -> list:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(throughput, "measure", measure)
    args = argparse.Namespace(device="cpu")
    with pytest.raises(RuntimeError, match="shapes"):
        throughput.measure_what_fits("inference", "float32", 8, 224, args)
