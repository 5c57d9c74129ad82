"""Throughput rows as tables and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import report

COLUMNS = (
    "model",
    "task",
    "dtype",
    "batch",
    "img_size",
    "median_ms",
    "low_ms",
    "high_ms",
    "runs",
    "images_per_s",
    "vs_baseline",
    "peak_mb",
)


def panels(rows: Sequence[Mapping]) -> dict[str, list]:
    """Rows by title: one panel per task, dtype and image size."""
    found: dict[str, list] = {}
    for row in rows:
        precision = row["dtype"] if row["dtype"] == "float32" else f"{row['dtype']} autocast"
        found.setdefault(f"{row['task']}, {precision}, {row['img_size']} px", []).append(row)
    return found


HEADS = ("model", "batch", "median ms", "20-80 %", "images/s", "times timm eager", "peak MB")


def cells(row: Mapping) -> list[str]:
    """A row under HEADS; `vs_baseline` is the time of timm's eager model over the row's."""
    return [
        row["model"],
        str(row["batch"]),
        f"{row['median_ms']:.1f}",
        f"{row['low_ms']:.1f}-{row['high_ms']:.1f}",
        f"{row['images_per_s']:.1f}",
        "-" if row["vs_baseline"] is None else f"{row['vs_baseline']:.2f}",
        "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
    ]


def print_tables(rows: Sequence[Mapping]) -> None:
    """One table per panel."""
    for title, members in panels(rows).items():
        report.print_rows(title, HEADS, [cells(row) for row in members])


def print_stages(breakdowns: Mapping[str, Mapping[str, float]]) -> None:
    """Milliseconds of a forward pass by stage, one line per model."""
    stages = list(next(iter(breakdowns.values())))
    lines = [
        (name, *(f"{found[stage]:.1f}" for stage in stages), f"{sum(found.values()):.1f}")
        for name, found in breakdowns.items()
    ]
    report.print_rows("ms of a forward pass, under the profiler", ("model", *stages, "sum"), lines)


def write_plot(path: Path, machine: Mapping, rows: Sequence[Mapping]) -> None:
    """Throughput bars with their spread, one panel per task, dtype and image size."""
    groups = panels(rows)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    tallest = max(map(len, groups.values()))
    size = (6.5 * columns, lines * (1.1 + 0.3 * tallest) + 0.6)
    with report.figure(path, size, report.caption(machine)) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).flat
        for axis, (title, members) in zip(axes, groups.items()):
            members = members[::-1]
            labels = [f"{row['model']}, batch {row['batch']}" for row in members]
            speed = [row["images_per_s"] for row in members]
            low = [s - 1e3 * r["batch"] / r["high_ms"] for s, r in zip(speed, members)]
            high = [1e3 * r["batch"] / r["low_ms"] - s for s, r in zip(speed, members)]
            error = [[max(0.0, value) for value in side] for side in (low, high)]
            colors = ["tab:blue" if "fused" in row["model"] else "tab:gray" for row in members]
            axis.barh(labels, speed, xerr=error, color=colors, capsize=2)
            axis.set_xlabel("images / s (median, 20-80 %)")
            axis.set_title(title, fontsize=10)
            axis.tick_params(axis="y", labelsize=8)
            axis.grid(axis="x", alpha=0.3)
        for axis in list(figure.axes)[len(groups) :]:
            axis.set_visible(False)
