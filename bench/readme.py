"""Write README's performance section, and its pictures, from the committed results.

    python bench/readme.py            rewrite the section, redraw the pictures
    python bench/readme.py --check    fail if the section is not what the results say

bench/results/<bench>-<machine>.json becomes a paragraph that names its machine, tables, and
bench/results/<bench>-<machine>.png.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import memory
import roofline
import scaling
from harness import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
START = "<!-- results: written by the benches from bench/results -->\n"
END = "<!-- end of results -->"


def _markdown(heads: Sequence[str], lines: list[list[str]]) -> list[str]:
    rule = "|---|" + "--:|" * (len(heads) - 1)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines), ""]


def _place(machine: dict, path: Path) -> str:
    """What every figure needs beside it."""
    clock = "" if machine.get("clock") in (None, "unknown") else f" at {machine['clock']}"
    threads = "" if "cuda" in machine else f", {machine['threads']} threads"
    heap = "" if "cuda" in machine else f", heap {'' if machine['heap_pinned'] else 'not '}pinned"
    return (
        f"{machine['device']}{clock}{threads}, PyTorch {machine['torch']}, timm {machine['timm']}, "
        f"commit {machine['commit']}{heap} ([{path.name}](bench/results/{path.name}))"
    )


def _picture(path: Path, text: str) -> list[str]:
    return [f"![{text}](bench/results/{path.with_suffix('.png').name})", ""]


def throughput(path: Path, machine: dict, rows: list[dict]) -> list[str]:
    """Tables of every task, dtype and image size."""
    runs = min(row["runs"] for row in rows)
    lines = [
        f"`python bench/throughput.py` on {_place(machine, path)}; contestants interleaved in one "
        f"process, at least {runs} runs each, random weights, medians with 20-80 % quantiles.",
        "",
        *_picture(path, "Images per second"),
    ]
    for title, members in tables.panels(rows).items():
        lines += [f"**{title}**", "", *_markdown(tables.HEADS, list(map(tables.cells, members)))]
    return lines


def kernels(path: Path, machine: dict, rows: list[dict]) -> list[str]:
    """Every kernel against PyTorch eager and its floor."""
    roofs = machine["roofs"]
    peaks = [f"{v / 1e9:.2f} TFLOP/s in {n} products" for n, v in roofs.items() if n != "copy"]
    lines = [
        f"`python bench/roofline.py`, batch {rows[0]['batch']}, on {_place(machine, path)}. The "
        f"floor is set by what this machine reached in the same process: "
        f"{roofs['copy'] / 1e6:.1f} GB/s in a copy, {', '.join(peaks)}; at least "
        f"{min(row['runs'] for row in rows)} interleaved runs, medians with 20-80 % quantiles.",
        "",
    ]
    heads = ["kernel", "model", "dtype", "backend", "ms", "20-80 %", "times eager", "of floor"]
    cells = [
        [
            f"{row['op']} {row['direction']}",
            row["model"],
            row["dtype"],
            row["backend"],
            f"{row['median_ms']:.2f}",
            f"{row['low_ms']:.2f}-{row['high_ms']:.2f}",
            f"{row['vs_eager']:.2f}",
            f"{100 * row['fraction']:.0f} %",
        ]
        for row in rows
        if row["backend"] != "reference"
    ]
    fold = ["<details><summary>Every kernel in numbers</summary>", ""]
    table = [*fold, *_markdown(heads, cells), "</details>", ""]
    return lines + _picture(path, "Roofline of the kernels") + table


def activations(path: Path, machine: dict, rows: list[dict]) -> list[str]:
    """Memory of a training step at the largest batch."""
    largest = max(row["batch"] for row in rows)
    lines = [
        f"`python bench/memory.py`: a training step, {rows[0]['dtype']}, batch {largest}, "
        f"{rows[0]['img_size']} px, on {_place(machine, path)}; the same at every run.",
        "",
    ]
    cells = [
        [row["model"], f"{row['activations_mb']:.0f}", f"{row['peak_mb']:.0f}"]
        for row in rows
        if row["batch"] == largest
    ]
    return lines + _markdown(["model", "kept for backward, MB", "peak, MB"], cells)


def growth(path: Path, machine: dict, rows: list[dict]) -> list[str]:
    """Exponents of a forward pass."""
    lines = [
        f"`python bench/scaling.py`: the exponents with which a forward pass grows, on "
        f"{_place(machine, path)}; {rows[0]['runs']} interleaved runs of every point.",
        "",
    ]
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    exponent = {(row["model"], row["axis"]): f"{row['exponent']:+.2f}" for row in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))
    cells = [[name, *(exponent[name, axis] for axis in axes)] for name in names]
    heads = ["model", *(axis + " area" * (axis == "image") for axis in axes)]
    return lines + _markdown(heads, cells)


SECTIONS: dict[str, Callable[[Path, dict, list[dict]], list[str]]] = {
    "throughput": throughput,
    "roofline": kernels,
    "memory": activations,
    "scaling": growth,
}
PICTURES = {
    "throughput": tables.write_plot,
    "roofline": lambda path, machine, rows: roofline.write_plot(
        path, machine, machine["roofs"], rows
    ),
    "memory": memory.write_plot,
    "scaling": scaling.write_plot,
}


def section(folder: Path = RESULTS) -> str:
    """Markdown of all result files of a folder."""
    lines = []
    for kind, write in SECTIONS.items():
        for path in sorted(folder.glob(f"{kind}-*.json")):
            result = json.loads(path.read_text())
            lines += write(path, result["machine"], result["rows"])
    return "\n".join(lines)


def draw(folder: Path = RESULTS) -> None:
    """The picture beside every result file."""
    for kind, write in PICTURES.items():
        for path in folder.glob(f"{kind}-*.json"):
            result = json.loads(path.read_text())
            write(path.with_suffix(".png"), result["machine"], result["rows"])


def main() -> None:
    """Rewrite or check README.md; its markers must be there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    pattern = re.escape(START) + r".*?" + re.escape(END)
    if not re.search(pattern, text, re.DOTALL):
        raise SystemExit(f"{readme.name}: the markers of the results section are missing")
    body = section()
    fresh = re.sub(pattern, lambda _: START + body + END, text, flags=re.DOTALL)
    if not args.check:
        readme.write_text(fresh)
        draw()
    elif fresh != text:
        raise SystemExit("README.md differs from bench/results: run `python bench/readme.py`")


if __name__ == "__main__":
    main()
