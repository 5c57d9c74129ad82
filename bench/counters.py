"""Figures that are the same at every run: what CI compares instead of times.

    python bench/counters.py --json fresh.json
    python bench/compare.py bench/results/counters.json fresh.json --tolerance 0.01

Per model, at batch 2 and 224 px on the CPU: operators dispatched, peak of tensor memory and
multiply-accumulates of a forward pass; operators, peak and bytes kept for backward of a training
step. They depend on the code and on PyTorch's version, not on the processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import calls, contestants, costs, machine, memory, report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BATCH = 2
COLUMNS = ("model", "task", "operators", "peak_bytes", "saved_bytes", "macs")


class CountOperators(TorchDispatchMode):
    """Counts the operators that reach a backend."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(call: Callable[[], object]) -> int:
    """Operators that `call` dispatches."""
    with CountOperators() as counter:
        call()
    return counter.count


def measure(row: contestants.Contestant, batch: Tensor) -> list[dict]:
    """Counters of inference and of a training step."""

    def forward() -> Tensor:
        with torch.no_grad():
            return row.model(batch)

    row.model.eval()
    inference = {
        "operators": operators(forward),
        "peak_bytes": memory.peak_bytes(forward, "cpu"),
        "saved_bytes": None,
        "macs": sum(costs.by_flop_counter(row.model).values()),
    }
    step = calls.training(row, batch, "float32")
    step()  # the optimizer's state exists from here on
    training = {
        "operators": operators(step),
        "peak_bytes": memory.peak_bytes(step, "cpu"),
        "saved_bytes": memory.saved_bytes(lambda: row.model(batch), list(row.model.parameters())),
        "macs": None,
    }
    named = (("inference", inference), ("training", training))
    return [{"model": row.name, "task": task, **counters} for task, counters in named]


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=contestants.TIMM_NAMES, default=["tnt_s"])
    report.add_outputs(parser, plot=False)
    args = parser.parse_args()
    batch = torch.zeros(BATCH, 3, 224, 224)
    rows = [
        counters
        for family in args.models
        for row in contestants.build(family, 224, "cpu")
        for counters in measure(row, batch)
    ]
    lines = [
        [str("-" if row[column] is None else row[column]) for column in COLUMNS] for row in rows
    ]
    report.print_rows(f"Counters, batch {BATCH}", COLUMNS, lines)
    report.write_outputs(args, machine.describe("cpu", False), rows, COLUMNS)


if __name__ == "__main__":
    main()
