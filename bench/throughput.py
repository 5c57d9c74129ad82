"""Images per second of fused TNT against timm's TNT and DeiT, inference and training.

    python bench/throughput.py                        the default set for this machine
    python bench/throughput.py --quick                TNT-S only, few runs
    python bench/throughput.py --help

A real photo is repeated to a batch. Contestants of one family share weights and must agree before
anything is timed; then they take turns in one process. Medians with 20 % / 80 % quantiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import contestants, images, machine, memory, report, timing
from torch import Tensor
from tqdm import tqdm

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT32_LIMIT = 2e-5
"""Relative error allowed between two float32 evaluations of one model."""


def parse() -> argparse.Namespace:
    """Command line; every option has a default that suits the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="bfloat16, float16: autocast")
    parser.add_argument("--models", nargs="+", choices=contestants.MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--tasks", nargs="+", choices=("inference", "training"))
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compiled contestants too (default: for inference, unless --quick)",
    )
    parser.add_argument("--rounds", type=int, help="timed runs of each contestant")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--photo", type=Path, help="image file instead of the bundled photo")
    parser.add_argument("--quick", action="store_true", help="TNT-S and DeiT-S, no compilation")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    on_gpu, quick = args.device == "cuda", args.quick
    args.dtype = args.dtype or (
        ["bfloat16"] if on_gpu else ["float32"] + ["bfloat16"] * (not quick)
    )
    args.models = args.models or (["tnt_s", "deit_s"] if quick else list(contestants.MODELS))
    args.batch_sizes = args.batch_sizes or ([256] if on_gpu else [8])
    args.tasks = args.tasks or ["inference", "training"]
    if args.compile is None:
        args.compile_tasks = [] if quick else ["inference"]
    else:
        args.compile_tasks = args.tasks if args.compile else []
    args.rounds = args.rounds or (50 if on_gpu else 5)
    return args


def precision(device: str, dtype: str):
    """Context in which a model runs at `dtype`."""
    if DTYPES[dtype] is None:
        return nullcontext()
    return torch.autocast(device, dtype=DTYPES[dtype])


def inference_call(run: Callable, batch: Tensor, device: str, dtype: str) -> Callable[[], Tensor]:
    """One forward pass in evaluation mode."""

    def call() -> Tensor:
        with torch.inference_mode(), precision(device, dtype):
            return run(batch)

    return call


def training_call(row: contestants.Contestant, batch: Tensor, device: str, dtype: str) -> Callable:
    """Forward, loss, backward and an AdamW step on fixed labels."""
    run = row.run_fresh()
    optimizer = torch.optim.AdamW(row.model.parameters(), lr=1e-5, fused=True)
    labels = torch.arange(len(batch), device=device)

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision(device, dtype):
            logits = run(batch)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def check_agreement(rows: list, batch: Tensor, device: str, dtype: str) -> None:
    """Contestants that share weights must agree before they are timed.

    float32: relative error below 2e-5. 16 bits: error against float32 at most twice timm's.
    Raises: SystemExit with the figures otherwise.
    """
    by_name = {row.name: row for row in rows}

    def logits(row: contestants.Contestant, at: str) -> Tensor:
        return inference_call(row.model.eval(), batch[:2], device, at)().float()

    def error(value: Tensor, expected: Tensor) -> float:
        return ((value - expected).norm() / expected.norm()).item()

    for row in rows:
        if row.agrees_with is None or row.compiled:
            continue
        peer = by_name[row.agrees_with]
        exact = logits(peer, "float32")
        found = error(logits(row, dtype), exact)
        allowed = FLOAT32_LIMIT if dtype == "float32" else 2 * error(logits(peer, dtype), exact)
        tqdm.write(f"{row.name} against {peer.name}, {dtype}: error {found:.1e} of {allowed:.1e}")
        if not found <= allowed:
            raise SystemExit(f"{row.name} disagrees with {peer.name}: nothing was timed")


def measure(task: str, dtype: str, batch_size: int, args: argparse.Namespace) -> list[dict]:
    """Rows of one task at one dtype and batch size."""
    batch = images.photo_batch(batch_size, args.img_size, args.photo).to(args.device)
    rows = [
        row
        for name in args.models
        for row in contestants.build(name, args.img_size, args.device, task in args.compile_tasks)
    ]
    check_agreement(rows, batch, args.device, dtype)
    calls, peaks = {}, {}
    for row in rows:
        row.model.train(task == "training")
        if task == "training":
            calls[row.name] = training_call(row, batch, args.device, dtype)
        else:
            calls[row.name] = inference_call(row.run_fresh(), batch, args.device, dtype)
    warmups = 2
    total = len(calls) * (args.rounds + warmups)
    title = f"{task} {dtype} batch {batch_size}"
    with tqdm(total=total, desc=title, unit="run") as bar:

        def on_run(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        times = timing.interleave(calls, args.device, args.rounds, warmups, on_run)
    for row in rows:
        peaks[row.name] = memory.peak_bytes(calls[row.name], args.device)
    results = []
    for row in rows:
        spread = timing.Spread.of(times[row.name])
        baseline = row.name.split()[0] + " timm"
        results.append(
            {
                "model": row.name,
                "task": task,
                "dtype": dtype,
                "batch": batch_size,
                "img_size": args.img_size,
                "median_ms": spread.median_ms,
                "low_ms": spread.low_ms,
                "high_ms": spread.high_ms,
                "runs": spread.runs,
                "images_per_s": 1e3 * batch_size / spread.median_ms,
                "vs_baseline": timing.paired_ratio(times[baseline], times[row.name]).median_ms,
                "peak_mb": peaks[row.name] / 1e6,
            }
        )
    return results


def main() -> None:
    """Measure what was asked for; results so far are written even if a later part fails."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    here = machine.describe(args.device, args.device == "cuda" or machine.pin_heap())
    results: list[dict] = []
    try:
        for task in args.tasks:
            for dtype in args.dtype:
                for batch_size in args.batch_sizes:
                    results += measure(task, dtype, batch_size, args)
                    torch._dynamo.reset()
    finally:
        if results:
            report.print_table(here, results, "timm eager")
            if args.json:
                report.write_json(args.json, here, results)
            if args.csv:
                report.write_csv(args.csv, results)
            if args.plot:
                report.write_plot(args.plot, here, results)


if __name__ == "__main__":
    main()
