"""The three counts of bench/flops.py agree, and are those of the paper."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

pytest.importorskip("fvcore")

import flops  # noqa: E402
from harness import costs  # noqa: E402


@pytest.mark.parametrize("row", costs.ROWS, ids=lambda row: row.label)
def test_counts_are_those_of_the_paper(row: costs.Row) -> None:
    model = row.build()
    params, macs = sum(costs.parameters(model).values()), sum(costs.by_equations(model).values())
    assert params == sum(p.numel() for p in model.parameters())
    if row.params_m is not None:
        assert params / 1e6 == pytest.approx(row.params_m, rel=0.006)
    if row.gmacs is not None:
        assert macs / 1e9 == pytest.approx(row.gmacs, rel=0.006)


@pytest.mark.parametrize("label", ["TNT-S + SE", "p' = 8 (S = 64, C = 6)"])
def test_the_three_counts_agree(label: str) -> None:
    """bench/flops.py itself fails if they do not, for any model."""
    row = next(row for row in costs.ROWS if row.label == label)
    assert flops.disagreement(flops.measure(row)) <= flops.TOLERANCE


def test_a_disagreement_is_noticed() -> None:
    row = {"macs": 1000, "flop_counter": 1000, "fvcore": 998}
    assert flops.disagreement(row) > flops.TOLERANCE


def test_the_example_of_the_paper() -> None:
    text = flops.equation_example()
    assert "1603 M" in text
    assert "1446 M: 1.108" in text
    assert "1.084 (1.08)" in text
