"""Memory of a training step against timm, by batch, with and without activation checkpointing.

    python bench/memory.py
    python bench/memory.py --models tnt_b --batch-sizes 4 16 --dtype bfloat16 --plot memory.png

Peak: of the tensor memory that a whole step (forward, loss, backward, AdamW) adds. Activations:
what the forward pass keeps for the backward pass, every storage counted once, without parameters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from harness import calls, contestants, images, machine, memory, report, timing
from torch import Tensor
from tqdm import tqdm

COLUMNS = ("model", "dtype", "batch", "img_size", "activations_mb", "peak_mb", "step_ms")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=calls.DTYPES)
    families = (*contestants.TIMM_NAMES, *contestants.CONTEXT_NAMES)
    parser.add_argument("--models", nargs="+", choices=families, default=["tnt_s", "deit_s"])
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--img-size", type=int, default=224)
    report.add_outputs(parser)
    args = parser.parse_args()
    args.batch_sizes = args.batch_sizes or ([16, 64, 256] if args.device == "cuda" else [1, 2, 4])
    return args


def measure(row: contestants.Contestant, checkpointing: bool, batch: Tensor, dtype: str) -> dict:
    """Figures of one model at one batch size."""
    row.model.set_grad_checkpointing(checkpointing)
    step = calls.training(row, batch, dtype)
    device = batch.device.type
    step()  # the optimizer's state exists from here on

    def forward() -> Tensor:
        with calls.precision(device, dtype):
            return row.model(batch)

    return {
        "model": row.name + " checkpointed" * checkpointing,
        "dtype": dtype,
        "batch": len(batch),
        "img_size": batch.shape[-1],
        "activations_mb": memory.saved_bytes(forward, list(row.model.parameters())) / 1e6,
        "peak_mb": memory.peak_bytes(step, device) / 1e6,
        "step_ms": timing.Spread.of(timing.repeat(step, device, 3)).median_ms,
    }


def print_table(rows: list[dict]) -> None:
    """One line per model and batch, with the ratios to timm's plain model."""
    plain = {(row["model"].split()[0], row["batch"]): row for row in rows if _is_baseline(row)}
    lines = []
    for row in rows:
        base = plain[row["model"].split()[0], row["batch"]]
        lines.append(
            [row["model"], str(row["batch"])]
            + [f"{row[key]:.0f}" for key in COLUMNS[4:]]
            + [f"{row[key] / base[key]:.2f}" for key in COLUMNS[4:]]
        )
    heads = ["model", "batch", "activations MB", "peak MB", "step ms"]
    over = [f"{name} / timm's" for name in ("activations", "peak", "step")]
    title = f"A training step, {rows[0]['dtype']}, {rows[0]['img_size']} px"
    report.print_rows(title, heads + over, lines)


def _is_baseline(row: dict) -> bool:
    return row["model"].endswith("timm")


def write_plot(path: Path, here: dict, rows: list[dict]) -> None:
    """Activations and peak over batch."""
    with report.figure(path, (11, 4.2), report.caption(here)) as figure:
        panels = (("activations_mb", "kept for backward, MB"), ("peak_mb", "peak of a step, MB"))
        for axis, (key, label) in zip(figure.subplots(1, 2), panels):
            for name in dict.fromkeys(row["model"] for row in rows):
                points = [(row["batch"], row[key]) for row in rows if row["model"] == name]
                style = "o--" if "checkpointed" in name else "o-"
                color = "tab:blue" if "fused" in name else "tab:gray"
                color = "tab:green" if "deit" in name or "vit" in name else color
                axis.plot(*zip(*points), style, label=name, color=color)
            axis.set(xlabel="batch, images", ylabel=label, ylim=(0, None))
            axis.set_xticks(sorted({row["batch"] for row in rows}))
            axis.grid(alpha=0.3)
        figure.axes[0].legend(fontsize=8)


def main() -> None:
    """Measure every model at every batch size that fits."""
    args = parse()
    here = machine.describe(args.device, args.device == "cuda" or machine.pin_heap())
    models = [
        (row, checkpointing)
        for family in args.models
        for row in contestants.build(family, args.img_size, args.device)
        for checkpointing in (False, True)
    ]
    rows: list[dict] = []
    try:
        with tqdm(total=len(models) * len(args.batch_sizes), unit="model") as bar:
            for size in args.batch_sizes:
                batch = images.photo_batch(size, args.img_size).to(args.device)
                for row, checkpointing in models:
                    rows.append(measure(row, checkpointing, batch, args.dtype))
                    memory.release(args.device)
                    bar.update()
    finally:
        if rows:
            report.print_machine(here)
            print_table(rows)
            report.write_outputs(
                args, here, rows, COLUMNS, lambda path: write_plot(path, here, rows)
            )


if __name__ == "__main__":
    main()
