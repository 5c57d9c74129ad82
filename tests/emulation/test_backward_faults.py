"""Faults planted in the backward bodies: every one must be noticed."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from emulation import calls
from emulation.backward_faults import BACKWARD_FAULTS, SIZES, configs, size_of
from emulation.backwards import BackwardBuild
from emulation.build import load
from emulation.faults import Fault, plant
from emulation.test_inner_backward import add_draw, emulated, make_case
from tolerance import assert_error_rule


@pytest.fixture(scope="module")
def modules() -> dict:
    """A module per fault, and one without, bf16 kernels of a few configurations."""
    pytest.importorskip("pybind11")
    build = BackwardBuild("faulty-backward")
    paths = {None: build.add_backward("sound-backward", "csrc", configs(SIZES), ("BFloat16",))}
    for fault in BACKWARD_FAULTS:
        folder = plant(fault)
        paths[fault.name] = build.add_backward(
            folder.name, str(folder), configs([size_of(fault)]), ("BFloat16",)
        )
    build.run()
    calls.planted += len(BACKWARD_FAULTS)
    return {name: load(path) for name, path in paths.items()}


def check(kernels: ModuleType, sizes: Sequence[tuple]) -> None:
    """A second's share of test_inner_backward.py: what a fault must not pass."""
    for size in sizes:
        args, dy = make_case((torch.bfloat16, *size), 21, bias=True, drop_path=0.4)
        pools: tuple = ({}, {}, {})
        add_draw(pools, kernels, args, dy)
        for name in pools[0]:
            assert_error_rule(*(pool[name][0] for pool in pools), name)
        expected, dw = emulated(kernels, args, dy, args["x"])
        assert torch.equal(emulated(kernels, args, dy, args["x"], reversed=True)[1], dw)
        dy[10, 0, 0] = float("nan")
        others = torch.arange(21) != 10
        found, _ = emulated(kernels, args, dy, args["x"])
        assert torch.equal(found[others], expected[others])


def test_without_a_fault_the_check_passes(modules: dict) -> None:
    check(modules[None], SIZES)


@pytest.mark.parametrize("fault", BACKWARD_FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught(modules: dict, fault: Fault) -> None:
    kernels = modules[fault.name]
    with pytest.raises((AssertionError, kernels.Fault)):
        check(kernels, [size_of(fault)])
    calls.caught.add(fault.name)
