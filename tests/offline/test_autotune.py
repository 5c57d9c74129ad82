"""What TNT_KERNELS_TRITON_AUTOTUNE=1 does, with a clock and launches that are only played."""

from __future__ import annotations

import importlib.util
import json

import pytest
from child import run_python

PLAY = """
import json
import torch
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

launched, timed = [], []

def run(self, *args, grid, warmup, **options):
    launched.append((self.fn.__name__, options["num_warps"], options["num_stages"]))

def bench(self, *args, config, **meta):
    timed.append((self.fn.__name__, config.num_warps, config.num_stages))
    us = abs(config.num_warps - 2) + config.num_stages  # two warps and one stage are best
    return [us, us, us]

JITFunction.run, Autotuner._bench = run, bench
from tnt_kernels.backends.triton import inner, launch
from tnt_kernels.reference import SPECS

launch.architecture_of = lambda device: "sm90"
spec = SPECS["inner_mlp"]

def step(dim):
    args = spec.make_args({"P": 3, "S": 16, "C": dim}, torch.float32, "cpu")
    out = inner.inner_mlp(*args.values())
    inner.inner_mlp_backward(out, *spec.backward_values(args, None), True, True)

counts = []
for dim in (24, 24, 40):
    step(dim)
    counts.append(len(timed))
print(json.dumps({"launched": launched, "timed": timed, "counts": counts}))
"""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def play(autotune: str) -> dict:
    done = run_python(PLAY, TRITON_INTERPRET="0", TNT_KERNELS_TRITON_AUTOTUNE=autotune)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_autotuning_times_each_kernel_once_per_size_and_takes_the_best() -> None:
    found = play("1")
    kernels = {name for name, *_ in found["launched"]}
    in_place = {"norm_gradients_kernel"}
    assert in_place < kernels
    assert {name for name, *_ in found["timed"]} == kernels - in_place  # not run twice in place
    for name, num_warps, num_stages in found["launched"]:
        assert name in in_place or (num_warps, num_stages) == (2, 1)
    first, again, other_size = found["counts"]
    assert first > 0 and again == first and other_size > first


@needs_triton
def test_nothing_is_timed_by_default() -> None:
    assert play("0")["timed"] == []
