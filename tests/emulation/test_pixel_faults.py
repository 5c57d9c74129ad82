"""Faults planted in the bodies of the pixel ops: every one must be noticed."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from emulation import calls, pixels, test_pixel_embed, test_pixel_to_patch
from emulation.build import load
from emulation.faults import Fault, plant
from emulation.pixel_faults import EMBED_FAULTS, PATCH_FAULTS, UINT8_FAULTS


@pytest.fixture(scope="module")
def modules() -> dict:
    """A module per fault, and one without: the bf16 kernels of the op that the fault is in."""
    pytest.importorskip("pybind11")
    build = pixels.PixelBuild("pixels")  # what has no fault is compiled once for all tests
    paths = {None: build.add_pixels("pixel_ops")}
    embed_faults = (*EMBED_FAULTS, *UINT8_FAULTS)
    for source, faults in (("pixel_embed.cpp", embed_faults), ("pixel_to_patch.cpp", PATCH_FAULTS)):
        for fault in faults:
            folder = plant(fault)
            path = build.add_pixels(folder.name, str(folder), ("BFloat16",), (source,))
            paths[fault.name] = path
        calls.planted += len(faults)
    build.run()
    return {name: load(path) for name, path in paths.items()}


UINT8 = [case for case in test_pixel_embed.FULL if "uint8" in case]
FLOATING = [test_pixel_embed.FULL[i] for i in (0, 3, 5, 9)]
FLOATING += [test_pixel_embed.OTHERS[i] for i in (0, 4)]


def check_pixel_embed(kernels: ModuleType, cases: Sequence[dict] = (*FLOATING, *UINT8[:4])) -> None:
    """A second's share of test_pixel_embed.py: what a fault must not pass."""
    for case in cases:
        args = test_pixel_embed.SPEC.make_args(case, torch.bfloat16, "cpu")
        test_pixel_embed.assert_forward(kernels, args)
        expected = pixels.pixel_embed(kernels, args, blocks=1)
        assert torch.equal(pixels.pixel_embed(kernels, args, blocks=3, reversed=True), expected)
        expected = test_pixel_embed.assert_backward(kernels, args, blocks=2)
        dy = test_pixel_embed.incoming(args)
        found = pixels.pixel_embed_backward(kernels, args, dy, blocks=2, reversed=True)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def check_pixel_to_patch(kernels: ModuleType) -> None:
    """The same of test_pixel_to_patch.py: each dialect, images that begin inside a block."""
    for case in test_pixel_to_patch.CASES[9:]:
        args = test_pixel_to_patch.make_args(case, torch.bfloat16)
        expected, _ = test_pixel_to_patch.assert_forward(kernels, args)
        found, projection = pixels.pixel_to_patch(kernels, args, reversed=True)
        assert torch.equal(found, expected)
        expected = test_pixel_to_patch.assert_backward(kernels, args)
        dy = test_pixel_to_patch.incoming(args)
        found = pixels.pixel_to_patch_backward(kernels, args, dy, projection, reversed=True)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_without_a_fault_the_checks_pass(modules: dict) -> None:
    check_pixel_embed(modules[None])
    check_pixel_to_patch(modules[None])


@pytest.mark.parametrize(
    "fault",
    [*EMBED_FAULTS, *UINT8_FAULTS, *PATCH_FAULTS],
    ids=lambda fault: fault.name.replace(" ", "-"),
)
def test_fault_is_caught(modules: dict, fault: Fault) -> None:
    kernels = modules[fault.name]
    check = check_pixel_to_patch if fault in PATCH_FAULTS else check_pixel_embed
    if fault in UINT8_FAULTS:
        check(kernels, FLOATING)
    with pytest.raises((AssertionError, kernels.Fault)):
        check(kernels)
    calls.caught.add(fault.name)
