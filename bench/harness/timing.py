"""Interleaved timing: contestants take turns in one process, so drift hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Median and 20 % / 80 % quantiles of repeated runs, milliseconds."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int

    @classmethod
    def of(cls, times_ms: list[float]) -> Spread:
        """Summarise at least one run."""
        ordered = sorted(times_ms)
        last = len(ordered) - 1
        low, high = ordered[round(0.2 * last)], ordered[round(0.8 * last)]
        return cls(statistics.median(ordered), low, high, len(ordered))


def _timer(device: str) -> Callable[[Callable[[], object]], float]:
    if device == "cuda":

        def run(call: Callable[[], object]) -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
    else:

        def run(call: Callable[[], object]) -> float:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3

    return run


def repeat(call: Callable[[], object], device: str, runs: int, warmups: int = 1) -> list[float]:
    """Times of one call in ms, after `warmups` untimed ones."""
    return interleave({"": call}, device, runs, warmups)[""]


def interleave(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    rounds: int,
    warmups: int = 2,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Times of every call in ms, one run of each per round after `warmups` untimed ones.

    The order is reversed every other round, so that no call always follows the same neighbour.
    """
    run = _timer(device)
    names = list(calls)
    for name in names:
        for _ in range(warmups):
            calls[name]()
            on_run(name)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            times[name].append(run(calls[name]))
            on_run(name)
    return times


def paired_ratio(numerator: list[float], denominator: list[float]) -> Spread:
    """Spread of the round-by-round ratio (unit: times, not ms)."""
    return Spread.of([a / b for a, b in zip(numerator, denominator)])
