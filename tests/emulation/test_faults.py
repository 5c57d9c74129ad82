"""Faults planted in the bodies: every one must be noticed, or the tests above prove little."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from emulation import calls
from emulation.build import EmulatorBuild, load
from emulation.calls import emulate
from emulation.faults import CONFIGS, FAULTS, SIZES, Fault, plant
from emulation.test_inner_block import assert_forward, make_args


@pytest.fixture(scope="module")
def modules() -> dict:
    """A module per fault, and one without, all bf16 kernels of a few configurations."""
    pytest.importorskip("pybind11")
    build = EmulatorBuild("faulty")
    paths = {None: build.add("sound", "csrc", CONFIGS, ("BFloat16",))}
    for fault in FAULTS:
        folder = plant(fault)
        paths[fault.name] = build.add(folder.name, str(folder), CONFIGS, ("BFloat16",))
    build.run()
    calls.planted += len(FAULTS)
    return {name: load(path) for name, path in paths.items()}


def check(kernels: ModuleType) -> None:
    """A minute's share of test_inner_block.py: what a fault must not pass."""
    for size in SIZES:
        body = (torch.bfloat16, *size)
        args = make_args(body, 5, bias=True, drop_path=0.4)
        assert_forward(kernels, args)
        expected, _ = emulate(kernels, args, blocks=1)
        assert torch.equal(emulate(kernels, args, blocks=3, reversed=True)[0], expected)
        wide = {**args, "fc2_weight": args["fc2_weight"] * 1e7}
        assert_forward(kernels, wide)
        args["x"][2, 0, 0] = float("nan")
        others = torch.arange(5) != 2
        assert torch.equal(emulate(kernels, args)[0][others], expected[others])


def test_without_a_fault_the_check_passes(modules: dict) -> None:
    check(modules[None])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught(modules: dict, fault: Fault) -> None:
    kernels = modules[fault.name]
    with pytest.raises((AssertionError, kernels.Fault)):
        check(kernels)
    calls.caught.add(fault.name)
