"""bench/throughput.py from end to end at the smallest size, and the arithmetic it rests on."""

from __future__ import annotations

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

from harness import contestants, memory, timing  # noqa: E402


def test_quantiles_of_known_times() -> None:
    spread = timing.Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 100.0])
    assert (spread.median_ms, spread.low_ms, spread.high_ms, spread.runs) == (3.5, 2.0, 5.0, 6)


def test_contestants_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = timing.interleave(calls, "cpu", rounds=3, warmups=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_peak_memory_counts_what_lives_at_once() -> None:
    import torch

    def call() -> None:
        for _ in range(3):
            held = torch.empty(1_000_000)
            del held

    assert 4_000_000 <= memory.peak_bytes(call, "cpu") < 4_100_000


def test_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="models: 'vgg' is not one of tnt_s"):
        contestants.build("vgg", 224, "cpu")


def _run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "throughput.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_bench_runs_and_writes_every_format(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")}
    done = _run(
        *("--quick", "--rounds", "1", "--batch-sizes", "1", "--device", "cpu"),
        *("--json", str(files["json"]), "--csv", str(files["csv"]), "--plot", str(files["png"])),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tnt_s fused against tnt_s timm, float32: error" in done.stdout
    rows = json.loads(files["json"].read_text())["rows"]
    assert {(row["model"], row["task"]) for row in rows} == {
        (model, task)
        for model in ("tnt_s fused", "tnt_s timm", "deit_s timm")
        for task in ("inference", "training")
    }
    for row in rows:
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert row["peak_mb"] > 0
    assert len(list(csv.DictReader(files["csv"].open()))) == len(rows)
    assert files["png"].read_bytes()[:4] == b"\x89PNG"


def test_disagreeing_models_are_not_timed(tmp_path: Path) -> None:
    """The gate: with a wrong output nothing is timed and nothing is written."""
    code = f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
sys.argv = ["throughput.py", "--quick", "--rounds", "1", "--batch-sizes", "1", "--device", "cpu",
            "--models", "tnt_s", "--json", {str(tmp_path / "out.json")!r}]
import torch, throughput
from harness import contestants
honest = contestants.build
def cheat(*args):
    rows = honest(*args)
    with torch.no_grad():
        next(row.model for row in rows if row.ours).head.bias.add_(1.0)
    return rows
contestants.build = cheat
throughput.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0
    assert "tnt_s fused disagrees with tnt_s timm: nothing was timed" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_readme_shows_the_committed_results() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
