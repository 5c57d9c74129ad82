"""Results as a table on the terminal, JSON, CSV and a picture."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional


def add_outputs(parser: argparse.ArgumentParser, plot: bool = True) -> None:
    """The options that every bench has; `plot` for those that draw."""
    parser.add_argument("--json", type=Path, help="write machine and rows")
    parser.add_argument("--csv", type=Path, help="write rows")
    if plot:
        parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the rows")


def write_outputs(
    args: argparse.Namespace,
    machine: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    write_plot: Optional[Callable[[Path], None]] = None,
) -> None:
    """Write what the options of `add_outputs` ask for."""
    if args.json:
        write_json(args.json, machine, rows)
    if args.csv:
        write_csv(args.csv, rows, columns)
    if write_plot is not None and args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        write_plot(args.plot)


def write_json(path: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Machine and rows in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows only, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def print_machine(machine: Mapping[str, Any]) -> None:
    """What the figures below it were taken on."""
    _console().print("  ".join(f"{key}={value}" for key, value in machine.items()), soft_wrap=True)


def print_rows(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; the first column is text, the others are numbers."""
    from rich.table import Table

    table = Table(title=title)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


@contextmanager
def figure(path: Path, size: tuple, title: Optional[str] = None) -> Iterator[Any]:
    """A matplotlib figure that is saved to `path` in the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing = plt.figure(figsize=size, layout="constrained")
    if title is not None:
        drawing.suptitle(title, fontsize=9)
    yield drawing
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


def caption(machine: Mapping[str, Any]) -> str:
    """What a picture must say of the machine."""
    threads = "" if "cuda" in machine else f"{machine['threads']} threads, "
    return f"{machine['device']}\n{threads}PyTorch {machine['torch']}, {machine['commit']}"


def logarithmic(axis: Any) -> None:
    """A matplotlib x or y axis (`axes.xaxis`) in logarithms, labelled in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    setter = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    setter("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
