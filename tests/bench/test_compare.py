"""bench/compare.py: what is worse, and the counters that CI compares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

pytest.importorskip("timm")

from compare import compare  # noqa: E402


def _row(median: float, spread: float = 1.0, **more: object) -> dict:
    timing = {"median_ms": median, "low_ms": median - spread, "high_ms": median + spread}
    return {"model": "tnt_s fused", "batch": 8, **timing, "peak_mb": 10.0, **more}


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(_row(101.0), "same"), (_row(110.0), "worse"), (_row(90.0), "better")],
)
def test_timings_differ_only_beyond_their_bands(after: dict, verdict: str) -> None:
    timing, counter = compare([_row(100.0)], [after], tolerance=0.03)
    assert (timing.figure, timing.verdict) == ("median_ms", verdict)
    assert (counter.figure, counter.verdict) == ("peak_mb", "same")


def test_a_wide_band_hides_nothing_but_noise() -> None:
    assert compare([_row(100.0, 20.0)], [_row(115.0, 20.0)], 0.03)[0].verdict == "same"
    assert compare([_row(100.0, 20.0)], [_row(150.0, 20.0)], 0.03)[0].verdict == "worse"


def test_counters_and_rows_that_are_gone() -> None:
    assert compare([_row(1.0)], [_row(1.0, peak_mb=10.5)], 0.03)[1].verdict == "worse"
    assert [f.verdict for f in compare([_row(1.0)], [], 0.03)] == ["gone"]


def test_a_time_without_a_band_is_not_judged() -> None:
    before, after = ({"model": "tnt_s timm", "step_ms": t, "peak_mb": 1.0} for t in (10.0, 99.0))
    assert [f.figure for f in compare([before], [after], 0.03)] == ["peak_mb"]


def _bench(script: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / script), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_exit_status_and_a_file_that_is_no_result(tmp_path: Path) -> None:
    before, after, other = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    before.write_text(json.dumps({"rows": [_row(100.0)]}))
    after.write_text(json.dumps({"rows": [_row(120.0)]}))
    other.write_text("[1, 2]")
    assert _bench("compare.py", str(before), str(before)).returncode == 0
    worse = _bench("compare.py", str(before), str(after))
    assert worse.returncode == 1
    assert "1 worse, 1 same" in worse.stdout
    assert "is no result file of a bench" in _bench("compare.py", str(before), str(other)).stderr


def test_counters_are_no_worse_than_the_committed_ones(tmp_path: Path) -> None:
    """Operators, memory and arithmetic of both directions, against bench/results/counters.json."""
    committed = BENCH / "results" / "counters.json"
    version = json.loads(committed.read_text())["machine"]["torch"]
    if version.split("+")[0] != torch.__version__.split("+")[0]:
        pytest.skip(f"the counters were taken with torch {version}, this is {torch.__version__}")
    fresh = tmp_path / "counters.json"
    counted = _bench("counters.py", "--json", str(fresh))
    assert counted.returncode == 0, counted.stderr[-2000:]
    done = _bench("compare.py", str(committed), str(fresh), "--tolerance", "0.01")
    assert done.returncode == 0, done.stdout
