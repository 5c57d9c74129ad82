"""Compare two result files of the benches, row by row.

    python bench/compare.py before.json after.json
    python bench/compare.py bench/results/counters.json fresh.json --tolerance 0.01

Rows are matched by everything in them that is not a figure. A timing is worse only if its band
(20-80 %) lies above the other's by more than the tolerance; a counter, which has no band, if it is
larger by more than the tolerance. Exit status 1 if anything is worse, or if a row is gone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import report

TIMING = ("median_ms", "low_ms", "high_ms")
DERIVED = ("runs", "images_per_s", "vs_baseline", "vs_eager", "fraction", "exponent", "floor_ms")
DERIVED += ("bound", "step_ms")  # a time without a band says nothing
COUNTERS = ("peak_mb", "activations_mb", "operators", "peak_bytes", "saved_bytes", "macs")
COUNTERS += ("params",)
COLUMNS = ("row", "figure", "before", "after", "ratio", "verdict")


@dataclass(frozen=True)
class Finding:
    """One figure of one row in both files; `verdict` is same, better, worse, gone or new."""

    row: str
    figure: str
    before: float
    after: float
    verdict: str

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else float("nan")


def key(row: Mapping) -> str:
    """What names a row: all that is not a figure."""
    figures = {*TIMING, *DERIVED, *COUNTERS}
    names = (value for name, value in row.items() if name not in figures)
    return ", ".join(str(value) for value in names if not isinstance(value, (float, type(None))))


def _timing(before: Mapping, after: Mapping, tolerance: float) -> str:
    if after["low_ms"] > before["high_ms"] * (1 + tolerance):
        return "worse"
    return "better" if after["high_ms"] * (1 + tolerance) < before["low_ms"] else "same"


def _counter(before: float, after: float, tolerance: float) -> str:
    if after > before * (1 + tolerance):
        return "worse"
    return "better" if after * (1 + tolerance) < before else "same"


def compare(before: Sequence[Mapping], after: Sequence[Mapping], tolerance: float) -> list[Finding]:
    """All figures of all rows of both files."""
    old, new = ({key(row): row for row in rows} for rows in (before, after))
    nothing = float("nan")
    found = [Finding(name, "-", nothing, nothing, "gone") for name in old if name not in new]
    found += [Finding(name, "-", nothing, nothing, "new") for name in new if name not in old]
    for name in (name for name in old if name in new):
        a, b = old[name], new[name]
        if all(figure in row for row in (a, b) for figure in TIMING):
            verdict = _timing(a, b, tolerance)
            found.append(Finding(name, "median_ms", a["median_ms"], b["median_ms"], verdict))
        for figure in COUNTERS:
            if a.get(figure) is not None and b.get(figure) is not None:
                verdict = _counter(a[figure], b[figure], tolerance)
                found.append(Finding(name, figure, a[figure], b[figure], verdict))
    return found


def main() -> None:
    """Print what differs and fail on what is worse."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.03, help="fraction (default 0.03)")
    parser.add_argument("--all", action="store_true", help="also what is the same")
    args = parser.parse_args()
    results = []
    for path in (args.before, args.after):
        try:
            results.append(json.loads(path.read_text())["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is no result file of a bench: {error!r}") from None
    found = compare(*results, args.tolerance)
    shown = [f for f in found if args.all or f.verdict != "same"]
    lines = [
        [f.row, f.figure, f"{f.before:.4g}", f"{f.after:.4g}", f"{f.ratio:.3f}", f.verdict]
        for f in shown
    ]
    report.print_rows(f"{args.before.name} -> {args.after.name}", COLUMNS, lines)
    verdicts = [f.verdict for f in found]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts))
    print(f"{len(found)} figures: {counts or 'none in common'}")
    if not found or "worse" in verdicts or "gone" in verdicts:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
