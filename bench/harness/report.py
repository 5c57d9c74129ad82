"""Results as a table on the terminal, JSON, CSV and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

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


def print_table(machine: dict, rows: Sequence[dict], baseline: str) -> None:
    """One table per task and dtype; `vs_baseline` is baseline's time over the row's."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)
    console.print("  ".join(f"{key}={value}" for key, value in machine.items()), soft_wrap=True)
    groups = dict.fromkeys((row["task"], row["dtype"], row["img_size"]) for row in rows)
    for task, dtype, img_size in groups:
        table = Table(title=f"{task}, {dtype}, {img_size} px")
        heads = ("model", "batch", "median ms", "20-80 %", "images/s", f"x {baseline}", "peak MB")
        for head in heads:
            table.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
        for row in rows:
            if (row["task"], row["dtype"], row["img_size"]) != (task, dtype, img_size):
                continue
            ratio = row["vs_baseline"]
            table.add_row(
                row["model"],
                str(row["batch"]),
                f"{row['median_ms']:.1f}",
                f"{row['low_ms']:.1f}-{row['high_ms']:.1f}",
                f"{row['images_per_s']:.1f}",
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            )
        console.print(table)


def write_json(path: Path, machine: dict, rows: Sequence[dict]) -> None:
    """Machine and rows in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Rows only, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_plot(path: Path, machine: dict, rows: Sequence[dict]) -> None:
    """Throughput bars with their spread, one panel per task and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((row["task"], row["dtype"], row["img_size"]) for row in rows))
    size = (max(8.0, 6.0 * len(groups)), 1.9 + 0.34 * len(rows) / len(groups))
    figure, axes = plt.subplots(1, len(groups), figsize=size, squeeze=False)
    for axis, (task, dtype, img_size) in zip(axes[0], groups):
        members = [
            row
            for row in rows
            if (row["task"], row["dtype"], row["img_size"]) == (task, dtype, img_size)
        ][::-1]
        labels = [f"{row['model']}, batch {row['batch']}" for row in members]
        speed = [row["images_per_s"] for row in members]
        low = [s - 1e3 * r["batch"] / r["high_ms"] for s, r in zip(speed, members)]
        high = [1e3 * r["batch"] / r["low_ms"] - s for s, r in zip(speed, members)]
        colors = ["tab:blue" if "fused" in row["model"] else "tab:gray" for row in members]
        error = [[max(0.0, value) for value in side] for side in (low, high)]
        axis.barh(labels, speed, xerr=error, color=colors, capsize=2)
        axis.set_xlabel("images / s (median, 20-80 %)")
        axis.set_title(f"{task}, {dtype}, {img_size} px")
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(
        f"{machine['device']}\n{machine['threads']} threads, PyTorch {machine['torch']}", fontsize=9
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
