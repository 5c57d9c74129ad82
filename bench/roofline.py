"""Every kernel against what this very machine can do: measured time over the roofline's floor.

    python bench/roofline.py
    python bench/roofline.py --ops inner_block --dtype float32 bfloat16 --plot roofline.png

The roofs are measured too: a copy for bytes, a matrix product per dtype for operations. The floor
of a kernel is the longer of its bytes over the one and its operations over the other. Bytes are
the least traffic, every input read once and every output written once; operations are twice the
multiply-accumulates of the operator's spec, twice those again for the backward pass, without what
it recomputes. Each backend's output is checked before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from harness import calls, machine, report, timing
from torch import Tensor
from tqdm import tqdm

from tnt_kernels.backends import BACKENDS
from tnt_kernels.dispatch import describe
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

WIDTHS = {"tnt_s": (24, 384, 6), "tnt_b": (40, 640, 10)}
"""Inner width, outer width, outer heads."""
PATCHES = 196
COLUMNS = ("op", "model", "dtype", "direction", "backend", "batch", "median_ms", "low_ms")
COLUMNS += ("high_ms", "runs", "gbytes", "gflop", "floor_ms", "bound", "fraction", "vs_eager")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}


def case(op: str, model: str, batch: int) -> dict:
    """Sizes of an operator in a model at 224 px."""
    inner, outer, heads = WIDTHS[model]
    if op == "pixel_embed":
        image = {"B": batch, "Cin": 3, "H": 224, "W": 224}
        return {**image, "C": inner, "patch": 16, "stride": 4, "unfold_first": True}
    if op == "pixel_to_patch":
        sizes = {"B": batch, "N": PATCHES, "S": 16, "C": inner}
        return {**sizes, "D": outer, "dialect": "published"}
    if op == "outer_attention":
        return {"B": batch, "N": PATCHES + 1, "heads": heads, "head_dim": outer // heads}
    return {"P": batch * PATCHES, "S": 16, "C": inner, "heads": 4}


def roofs(device: str, dtypes: list[str], rounds: int) -> dict[str, float]:
    """Bytes per ms of a copy ("copy") and operations per ms of a product per dtype."""
    source = torch.ones(2**28, dtype=torch.uint8, device=device)  # 256 MiB, beyond any cache
    target = torch.empty_like(source)
    copy = timing.repeat(lambda: target.copy_(source), device, rounds, 2)
    found = {"copy": 2 * source.numel() / min(copy)}
    side = 2048 if device == "cpu" else 8192
    for name in dtypes:
        dtype = calls.DTYPES[name] or torch.float32
        a = torch.ones(side, side, device=device, dtype=dtype)
        product = timing.repeat(lambda a=a: a @ a, device, rounds, 2)
        found[name] = 2 * side**3 / min(product)
    return found


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))


def _nbytes(values: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(values))


def with_gradients(spec: OpSpec, args: Mapping[str, Any]) -> dict:
    """The arguments with gradients wanted for the activation and the weights."""
    wanted = {spec.activation, *spec.weights, spec.passthrough}
    return {
        name: value.detach().requires_grad_() if name in wanted and value is not None else value
        for name, value in args.items()
    }


def kernel_calls(
    spec: OpSpec, args: dict, direction: str, backends: list[str]
) -> tuple[dict[str, Callable], int]:
    """The call of every backend that takes it, and the least bytes that it moves."""
    found, moved = {}, 0
    if direction == "backward":
        args = with_gradients(spec, args)
    for name in backends:
        backend = BACKENDS[name]
        if backend.refusal(describe(spec.name, args)) is not None:
            continue
        if direction == "forward":
            found[name] = _forward(backend, spec, args)
            moved = _nbytes(args.values()) + found[name]().nbytes
        else:
            found[name], moved = _backward(backend, spec, args)
    return found, moved


def _forward(backend: Any, spec: OpSpec, args: dict) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return backend.run(spec.name, args)

    return call


def _backward(backend: Any, spec: OpSpec, args: dict) -> tuple[Callable[[], Tensor], int]:
    leaves = [tensor for tensor in _tensors(args.values()) if tensor.requires_grad]
    out = backend.run(spec.name, args)
    dy = torch.ones_like(out)

    def call() -> Tensor:
        return torch.autograd.grad(out, leaves, dy, retain_graph=True)[0]

    return call, _nbytes(args.values()) + dy.nbytes + _nbytes(leaves)


def check(name: str, calls_: Mapping[str, Callable], dtype: str) -> None:
    """Every backend must agree with the definition before any is timed.

    Raises: SystemExit with the error otherwise.
    """
    expected = calls_["reference"]().double()
    for backend, call in calls_.items():
        error = ((call().double() - expected).norm() / expected.norm()).item()
        if not error < TOLERANCE[dtype]:
            raise SystemExit(f"{name}, {backend}: relative error {error:.1e}: nothing was timed")


def measure(op: str, model: str, dtype: str, direction: str, roof: dict, args: Any) -> list[dict]:
    """Rows of one operator, one per backend."""
    spec = SPECS[op]
    given = spec.make_args(case(op, model, args.batch), calls.DTYPES[dtype], args.device)
    todo, moved = kernel_calls(spec, given, direction, args.backends)
    check(f"{op} {model} {dtype} {direction}", todo, dtype)
    times = timing.interleave(todo, args.device, args.rounds, 2)
    operations = 2 * spec.macs(given) * (2 if direction == "backward" else 1)
    floors = {"bytes": moved / roof["copy"], "operations": operations / roof[dtype]}
    bound = max(floors, key=floors.get)
    rows = []
    for backend, samples in times.items():
        spread = timing.Spread.of(samples)
        figures = (spread.median_ms, spread.low_ms, spread.high_ms, spread.runs)
        work = (moved / 1e9, operations / 1e9, floors[bound], bound)
        ratio = timing.paired_ratio(times["reference"], samples).median_ms
        line = (op, model, dtype, direction, backend, args.batch, *figures, *work)
        rows.append(dict(zip(COLUMNS, (*line, floors[bound] / spread.median_ms, ratio))))
    return rows


def print_table(roof: dict, rows: list[dict]) -> None:
    """The roofs, then one line per kernel and backend."""
    products = ", ".join(f"{n} {v / 1e9:.2f} TFLOP/s" for n, v in roof.items() if n != "copy")
    print(f"measured roofs: copy {roof['copy'] / 1e6:.1f} GB/s; products {products}")
    lines = [
        [
            f"{row['op']} {row['direction']}",
            row["model"],
            row["dtype"],
            row["backend"],
            f"{row['median_ms']:.3f}",
            f"{row['low_ms']:.3f}-{row['high_ms']:.3f}",
            f"{row['floor_ms']:.3f}",
            row["bound"],
            f"{100 * row['fraction']:.0f} %",
            f"{row['vs_eager']:.2f}",
        ]
        for row in rows
    ]
    heads = ["kernel", "model", "dtype", "backend", "median ms", "20-80 %", "floor ms", "bound by"]
    title = f"Kernels, batch {rows[0]['batch']}; the reference is PyTorch eager"
    report.print_rows(title, [*heads, "of floor", "x eager"], lines)


def write_plot(path: Path, here: dict, roof: dict, rows: list[dict]) -> None:
    """Operations per second over intensity, one panel per dtype, under the measured roofs."""
    dtypes = [name for name in roof if name != "copy"]
    colors = dict(zip(SPECS, ("tab:blue", "tab:cyan", "tab:purple", "tab:orange", "tab:green")))
    colors["outer_attention"] = "tab:red"
    with report.figure(path, (6.5 * len(dtypes), 5.4), report.caption(here)) as figure:
        for axis, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes):
            members = [row for row in rows if row["dtype"] == dtype]
            intensity = [row["gflop"] / row["gbytes"] for row in members]
            span = [min(intensity) / 2, max([*intensity, 2 * roof[dtype] / roof["copy"]]) * 2]
            ridge = roof[dtype] / roof["copy"]
            edge = [span[0], min(max(ridge, span[0]), span[1]), span[1]]
            height = [min(x * roof["copy"], roof[dtype]) / 1e6 for x in edge]
            axis.plot(edge, height, color="black", label="measured roof")
            for row, x in zip(members, intensity):
                eager = row["backend"] == "reference"
                axis.scatter(
                    x,
                    row["gflop"] / row["median_ms"] * 1e3,
                    marker="o" if row["direction"] == "forward" else "s",
                    facecolors="none" if eager else colors[row["op"]],
                    edgecolors=colors[row["op"]],
                )
            for op in dict.fromkeys(row["op"] for row in members):
                axis.scatter([], [], color=colors[op], label=op)
            axis.scatter([], [], marker="o", color="gray", label="forward")
            axis.scatter([], [], marker="s", color="gray", label="backward")
            axis.scatter([], [], facecolors="none", edgecolors="gray", label="PyTorch eager")
            report.logarithmic(axis.xaxis)
            report.logarithmic(axis.yaxis)
            axis.set(title=dtype, xlabel="operations per byte", ylabel="GFLOP/s")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)


def main() -> None:
    """Measure the roofs, then every kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ops = ("pixel_embed", "inner_block", "pixel_to_patch", "outer_attention")
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--ops", nargs="+", choices=tuple(SPECS), default=ops)
    parser.add_argument("--models", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--dtype", nargs="+", choices=calls.DTYPES)
    parser.add_argument("--directions", nargs="+", choices=("forward", "backward"))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--rounds", type=int, help="timed runs of each kernel")
    report.add_outputs(parser)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.batch = args.batch or (256 if on_gpu else 8)
    args.rounds = args.rounds or (30 if on_gpu else 15)
    args.backends = list(dict.fromkeys([*args.backends, "reference"]))
    dtypes = args.dtype or ["float32", "bfloat16"]
    here = machine.describe(args.device, on_gpu or machine.pin_heap())
    roof = roofs(args.device, dtypes, args.rounds)
    rows: list[dict] = []
    todo = [
        (op, model, dtype, direction)
        for direction in args.directions or ("forward", "backward")
        for op in args.ops
        for model in args.models
        for dtype in dtypes
    ]
    try:
        for item in tqdm(todo, unit="kernel"):
            rows += measure(*item, roof, args)
    finally:
        if rows:
            report.print_machine(here)
            print_table(roof, rows)
            report.write_outputs(
                args,
                {**here, "roofs": roof},
                rows,
                COLUMNS,
                lambda path: write_plot(path, here, roof, rows),
            )


if __name__ == "__main__":
    main()
