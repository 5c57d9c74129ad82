"""Faults planted in the bodies of the pixel ops: every one must be noticed."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from emulation import calls, pixels, test_pixel_embed
from emulation.build import load
from emulation.faults import Fault, plant
from emulation.pixel_faults import EMBED_FAULTS


@pytest.fixture(scope="module")
def modules() -> dict:
    """A module per fault, and one without: the bf16 kernels of the op that the fault is in."""
    pytest.importorskip("pybind11")
    build = pixels.PixelBuild("faulty-pixels")
    paths = {None: build.add_pixels("sound")}
    for fault in EMBED_FAULTS:
        folder = plant(fault)
        paths[fault.name] = build.add_pixels(
            folder.name, str(folder), ("BFloat16",), ("pixel_embed.cpp",)
        )
    build.run()
    calls.planted += len(EMBED_FAULTS)
    return {name: load(path) for name, path in paths.items()}


def check_pixel_embed(kernels: ModuleType) -> None:
    """A second's share of test_pixel_embed.py: what a fault must not pass."""
    for index in (0, 3, 5, 9, 13):
        case = test_pixel_embed.CASES[index]
        args = test_pixel_embed.SPEC.make_args(case, torch.bfloat16, "cpu")
        test_pixel_embed.assert_forward(kernels, args)
        expected = pixels.pixel_embed(kernels, args, blocks=1)
        assert torch.equal(pixels.pixel_embed(kernels, args, blocks=3, reversed=True), expected)
        expected = test_pixel_embed.assert_backward(kernels, args, blocks=2)
        dy = test_pixel_embed.incoming(args)
        found = pixels.pixel_embed_backward(kernels, args, dy, blocks=2, reversed=True)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_without_a_fault_the_check_passes(modules: dict) -> None:
    check_pixel_embed(modules[None])


@pytest.mark.parametrize("fault", EMBED_FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught(modules: dict, fault: Fault) -> None:
    kernels = modules[fault.name]
    with pytest.raises((AssertionError, kernels.Fault)):
        check_pixel_embed(kernels)
    calls.caught.add(fault.name)
