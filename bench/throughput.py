"""Images per second of fused TNT against timm's TNT, DeiT and others, inference and training.

    python bench/throughput.py                        the default set for this machine
    python bench/throughput.py --quick                TNT-S and DeiT-S, few runs: 3 minutes on a CPU
    python bench/throughput.py --profile traces/      and where the time goes, with Chrome traces
    python bench/throughput.py --help

A real photo is repeated to a batch. Contestants of one family share weights and must agree before
anything is timed; then they take turns in one process. Medians with 20 % / 80 % quantiles. A batch
that does not fit into memory is halved.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from harness import calls, contestants, images, machine, memory, report, stages, tables, timing
from torch import Tensor
from tqdm import tqdm

from tnt_kernels.backends import BACKENDS

FLOAT32_LIMIT = 2e-5
"""Relative error allowed between two float32 evaluations of one model."""


def parse() -> argparse.Namespace:
    """Command line; every option has a default that suits the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", nargs="+", choices=calls.DTYPES, help="16 bits: autocast")
    parser.add_argument("--models", nargs="+", choices=contestants.MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--img-size", nargs="+", type=int, default=[224])
    parser.add_argument("--tasks", nargs="+", choices=calls.TASKS, default=list(calls.TASKS))
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, help="rows of these, not of auto"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compiled contestants too (default: for inference, unless --quick)",
    )
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        help="CUDA graphs of the eager contestants too (default: on a GPU)",
    )
    parser.add_argument("--rounds", type=int, help="timed runs of each contestant")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--photo", type=Path, help="image file instead of the bundled photo")
    parser.add_argument("--quick", action="store_true", help="TNT-S and DeiT-S, no compilation")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="stage times; traces into DIR")
    report.add_outputs(parser)
    args = parser.parse_args()
    on_gpu, quick = args.device == "cuda", args.quick
    if args.graphs and not on_gpu:
        parser.error("--graphs needs --device cuda")
    args.dtype = args.dtype or (
        ["bfloat16"] if on_gpu else ["float32"] + ["bfloat16"] * (not quick)
    )
    some = ["tnt_s", "deit_s"] if quick else ["tnt_s", "tnt_b", "deit_s", "deit_b"]
    args.models = args.models or some
    args.batch_sizes = args.batch_sizes or ([256] if on_gpu else [8])
    args.backends = args.backends or [None]
    args.rounds = args.rounds or (50 if on_gpu else 5)
    return args


def modes(task: str, args: argparse.Namespace) -> list[str]:
    """In which modes the contestants of a task run."""
    compiled = args.compile
    if compiled is None:
        compiled = task == "inference" and not args.quick
    graphs = args.device == "cuda" if args.graphs is None else args.graphs
    return ["eager"] + ["compiled"] * compiled + ["graph"] * graphs


def check_agreement(rows: list, batch: Tensor, dtype: str) -> None:
    """Contestants that share weights must agree before they are timed.

    float32: relative error below 2e-5. 16 bits: error against float32 at most twice timm's.
    Raises: SystemExit with the figures otherwise.
    """
    peers = {row.family: row for row in rows if row.mode == "eager" and not row.ours}

    def logits(row: contestants.Contestant, at: str) -> Tensor:
        return calls.inference(row, batch[:2], at)().float()

    def error(value: Tensor, expected: Tensor) -> float:
        return ((value - expected).norm() / expected.norm()).item()

    for row in rows:
        if not row.ours or row.mode != "eager":
            continue
        peer = peers[row.family]
        exact = logits(peer, "float32")
        found = error(logits(row, dtype), exact)
        allowed = FLOAT32_LIMIT if dtype == "float32" else 2 * error(logits(peer, dtype), exact)
        tqdm.write(f"{row.name} against {peer.name}, {dtype}: error {found:.1e} of {allowed:.1e}")
        if not found <= allowed:
            raise SystemExit(f"{row.name} disagrees with {peer.name}: nothing was timed")


def build(task: str, img_size: int, args: argparse.Namespace) -> list[contestants.Contestant]:
    """All rows of a task; a contestant whose package is absent is left out and named."""
    rows = []
    for family in args.models:
        try:
            found = contestants.build(
                family, img_size, args.device, modes(task, args), args.backends
            )
        except contestants.NotInstalled as absent:
            tqdm.write(f"left out: {absent}")
            continue
        rows += found
    return rows


def measure(task: str, dtype: str, size: int, img_size: int, args: argparse.Namespace) -> list:
    """Rows of one task at one dtype, batch size and image size."""
    batch = images.photo_batch(size, img_size, args.photo).to(args.device)
    rows = build(task, img_size, args)
    check_agreement(rows, batch, dtype)
    timed = {row.name: calls.TASKS[task](row, batch, dtype) for row in rows}
    warmups = 2
    title = f"{task} {dtype} batch {size}"
    with tqdm(total=len(timed) * (args.rounds + warmups), desc=title, unit="run") as bar:

        def on_run(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        times = timing.interleave(timed, args.device, args.rounds, warmups, on_run)
    results = []
    for row in rows:
        spread = timing.Spread.of(times[row.name])
        baseline = times.get(f"{row.family} timm")
        results.append(
            {
                "model": row.name,
                "task": task,
                "dtype": dtype,
                "batch": size,
                "img_size": img_size,
                "median_ms": spread.median_ms,
                "low_ms": spread.low_ms,
                "high_ms": spread.high_ms,
                "runs": spread.runs,
                "images_per_s": 1e3 * size / spread.median_ms,
                "vs_baseline": baseline
                and timing.paired_ratio(baseline, times[row.name]).median_ms,
                "peak_mb": memory.peak_bytes(timed[row.name], args.device) / 1e6,
            }
        )
    return results


def measure_what_fits(task: str, dtype: str, size: int, img: int, args: argparse.Namespace) -> list:
    """`measure`, with half the batch as long as memory does not suffice."""
    while True:
        try:
            return measure(task, dtype, size, img, args)
        except RuntimeError as error:
            if not memory.is_exhausted(error) or size == 1:
                raise
        tqdm.write(f"{task} {dtype} batch {size} at {img} px: out of memory, trying {size // 2}")
        size //= 2
        memory.release(args.device)


def profile(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Stage times of the eager TNT contestants at the first batch size, and their traces."""
    found = {}
    img_size, dtype = args.img_size[0], args.dtype[0]
    batch = images.photo_batch(args.batch_sizes[0], img_size, args.photo).to(args.device)
    for family in args.models:
        if family not in contestants.TIMM_NAMES:
            continue
        for row in contestants.build(family, img_size, args.device, ["eager"], args.backends):
            call = calls.inference(row, batch, dtype)
            trace = args.profile / f"{row.name.replace(' ', '-')}-{dtype}.json"
            found[row.name] = stages.breakdown(row.model, row.ours, call, args.device, trace)
    return found


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
                for img_size in args.img_size:
                    for size in args.batch_sizes:
                        results += measure_what_fits(task, dtype, size, img_size, args)
                        torch._dynamo.reset()
                        memory.release(args.device)
    finally:
        if results:
            report.print_machine(here)
            tables.print_tables(results)
            report.write_outputs(
                args,
                here,
                results,
                tables.COLUMNS,
                lambda path: tables.write_plot(path, here, results),
            )
    if args.profile:
        tables.print_stages(profile(args))


if __name__ == "__main__":
    main()
