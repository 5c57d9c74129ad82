"""How the time of a forward pass grows with batch, image size, depth and threads.

    python bench/scaling.py
    python bench/scaling.py --axes batch depth --models tnt_s --plot scaling.png

Each axis is swept with the others held still; the exponent is the slope of a least-squares line
through the logarithms: 1 is proportional, 0 is free. Points are medians of interleaved runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import calls, contestants, images, machine, report, timing
from tqdm import tqdm

COLUMNS = ("model", "axis", "value", "work", "median_ms", "low_ms", "high_ms", "runs", "exponent")
DEFAULTS = {"batch": 4, "image": 224, "depth": 12}


def sweeps(device: str) -> dict[str, list[int]]:
    """Values of every axis that suit the machine."""
    found = {
        "batch": [1, 2, 4, 8] if device == "cpu" else [1, 8, 64, 256],
        "image": [112, 160, 224, 320],
        "depth": [3, 6, 12],
    }
    if device == "cpu" and torch.get_num_threads() > 1:
        most = torch.get_num_threads()
        found["threads"] = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i < most)})
    return found


def models(families: Sequence[str], image: int, depth: int, device: str) -> list:
    """Eager contestants cut to `depth` blocks."""
    rows = [row for name in families for row in contestants.build(name, image, device)]
    for row in rows:
        row.model.blocks = row.model.blocks[:depth]
    return rows


def on_threads(call: Callable[[], object], threads: int) -> Callable[[], object]:
    """`call` with so many CPU threads."""

    def run() -> object:
        torch.set_num_threads(threads)
        return call()

    return run


def sweep(axis: str, values: list[int], args: argparse.Namespace) -> list[dict]:
    """Times along one axis, all points interleaved."""
    most, todo = torch.get_num_threads(), {}
    for value in values:
        at = {**DEFAULTS, **({axis: value} if axis in DEFAULTS else {})}
        batch = images.photo_batch(at["batch"], at["image"]).to(args.device)
        for row in models(args.models, at["image"], at["depth"], args.device):
            call = calls.inference(row, batch, args.dtype)
            threads = value if axis == "threads" else most
            todo[row.name, value] = on_threads(call, threads) if args.device == "cpu" else call
    with tqdm(total=len(todo) * (args.rounds + 1), desc=axis, unit="run") as bar:
        times = timing.interleave(todo, args.device, args.rounds, 1, lambda _: bar.update())
    torch.set_num_threads(most)
    rows = []
    for name in dict.fromkeys(name for name, _ in todo):
        spreads = [timing.Spread.of(times[name, value]) for value in values]
        # an image's tokens grow with its area
        work = [value**2 if axis == "image" else value for value in values]
        slope = np.polyfit(np.log(work), np.log([s.median_ms for s in spreads]), 1)[0]
        for value, amount, spread in zip(values, work, spreads):
            figures = (spread.median_ms, spread.low_ms, spread.high_ms, spread.runs)
            line = (name, axis, value, amount, *figures, float(slope))
            rows.append(dict(zip(COLUMNS, line)))
    return rows


def print_table(rows: list[dict]) -> None:
    """One line per model and axis."""
    lines = []
    for name, axis in dict.fromkeys((row["model"], row["axis"]) for row in rows):
        points = [row for row in rows if (row["model"], row["axis"]) == (name, axis)]
        shown = "  ".join(f"{row['value']}: {row['median_ms']:.1f}" for row in points)
        lines.append([name, axis, f"{points[0]['exponent']:+.2f}", shown])
    heads = ["model", "axis", "exponent", "value: median ms"]
    report.print_rows("Growth of a forward pass (image: over its area)", heads, lines)


def write_plot(path: Path, here: dict, rows: list[dict]) -> None:
    """One log-log panel per axis, exponents in the legends."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    labels = {"batch": "batch, images", "image": "image side, px", "depth": "blocks"}
    with report.figure(path, (4.2 * len(axes), 4.2), report.caption(here)) as figure:
        for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes):
            for name in dict.fromkeys(row["model"] for row in rows):
                points = [row for row in rows if (row["model"], row["axis"]) == (name, axis)]
                values, medians = ([p[key] for p in points] for key in ("value", "median_ms"))
                bars = [
                    [p["median_ms"] - p["low_ms"] for p in points],
                    [p["high_ms"] - p["median_ms"] for p in points],
                ]
                label = f"{name}: {points[0]['exponent']:+.2f}"
                panel.errorbar(values, medians, yerr=bars, fmt="o-", capsize=2, label=label)
            panel.set_xscale("log", base=2)
            report.logarithmic(panel.yaxis)
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
            panel.set(xlabel=labels.get(axis, axis), ylabel="ms of a forward pass", title=axis)
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7, title="exponent", title_fontsize=7)


def main() -> None:
    """Sweep every axis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=calls.DTYPES)
    families = ("tnt_s", "tnt_b", "deit_s", "deit_b")  # models with `blocks`
    parser.add_argument("--models", nargs="+", choices=families, default=["tnt_s", "deit_s"])
    parser.add_argument("--axes", nargs="+", choices=("batch", "image", "depth", "threads"))
    parser.add_argument("--rounds", type=int, default=5)
    report.add_outputs(parser)
    args = parser.parse_args()
    here = machine.describe(args.device, args.device == "cuda" or machine.pin_heap())
    possible = sweeps(args.device)
    rows: list[dict] = []
    try:
        for axis in args.axes or possible:
            if axis not in possible:
                raise SystemExit(f"--axes {axis}: this machine has one setting only")
            rows += sweep(axis, possible[axis], args)
    finally:
        if rows:
            report.print_machine(here)
            print_table(rows)
            report.write_outputs(
                args, here, rows, COLUMNS, lambda path: write_plot(path, here, rows)
            )


if __name__ == "__main__":
    main()
