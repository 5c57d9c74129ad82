"""Kernel bodies of pixel_embed against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from emulation import pixels
from emulation.pixels import DTYPES, compute_dtype, shared_bytes
from tolerance import assert_error_rule
from torch import Tensor

from tnt_kernels.backends.native_pixels import (
    pixel_embed_backward_shared_bytes,
    pixel_embed_refusal,
    pixel_embed_shared_bytes,
)
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import case_id

SPEC = SPECS["pixel_embed"]
# beyond the spec's: an odd number of patches in a group of several, a window of 5, a width
# of several passes that no group of channels fills, more tokens than a tile in an odd number,
# patches that begin at no multiple of 8 pixels although 16 of each row are read
FULL = tuple(case for case in SPEC.cases if case["B"] > 0)
_NARROW = {"B": 1, "Cin": 2, "H": 20, "W": 60, "C": 6, "patch": 20, "stride": 10}
OTHERS = (
    {"B": 1, "Cin": 3, "H": 16, "W": 80, "C": 96, "patch": 16, "stride": 8},
    {"B": 1, "Cin": 3, "H": 16, "W": 16, "C": 26, "patch": 16, "stride": 4, "k": 5},
    {"B": 1, "Cin": 2, "H": 12, "W": 24, "C": 40, "patch": 12, "stride": 2, "k": 3},
    {"B": 2, "Cin": 1, "H": 24, "W": 24, "C": 8, "patch": 12, "stride": 4, "unfold_first": False},
    _NARROW,
    {**_NARROW, "uint8": True},
)
CASES = (*FULL, *OTHERS)
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=pixels.dtype_id)
every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
# whole and partial groups of channels, one and several patches in a group, both orders
SOME = (*(FULL[i] for i in (0, 3, 4, 7)), OTHERS[0], *[c for c in FULL if "uint8" in c][2:6])
some_cases = pytest.mark.parametrize("case", SOME, ids=case_id)


def reference(args: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    return SPEC.reference(*cast(args, dtype).values())


def cast(args: Mapping[str, Any], dtype: torch.dtype) -> dict:
    """The arguments at `dtype`, but uint8 images and their normalisation."""
    return {**args, **{name: args[name].detach().to(dtype) for name in differentiable(args)}}


def differentiable(args: Mapping[str, Any]) -> list:
    """Names of the inputs that have a gradient."""
    names = (name for name in ("images", *SPEC.weights) if args[name] is not None)
    return [name for name in names if args[name].is_floating_point()]


def assert_forward(kernels: ModuleType, args: Mapping[str, Any]) -> None:
    out = pixels.pixel_embed(kernels, args)
    exact, pytorch = reference(args, torch.float64), reference(args, compute_dtype(args))
    assert_error_rule(out, pytorch, exact, "pixel_embed")


@every_type
@every_case
def test_forward_obeys_the_error_rule(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    assert pixel_embed_refusal(SPEC.dims(SPEC.make_args(case, dtype, "cpu")), dtype, True) is None
    assert_forward(pixel_kernels, SPEC.make_args(case, dtype, "cpu", seed=1))


def assert_backward(kernels: ModuleType, args: Mapping[str, Any], **setting: Any) -> dict:
    """Every gradient obeys the error rule; returns them."""
    exact, pytorch = gradients(args, torch.float64), gradients(args, compute_dtype(args))
    found = pixels.pixel_embed_backward(kernels, args, incoming(args), **setting)
    for name, expected in exact.items():
        dtype = args[name].dtype
        assert_error_rule(found[name].to(dtype), pytorch[name], expected, f"gradient of {name}")
    return found


def incoming(args: Mapping[str, Any]) -> Tensor:
    """A gradient of the output, the same at every call, exact in the type of the images."""
    shape = reference(args, compute_dtype(args)).shape
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(99))
    return dy.to(compute_dtype(args))


def gradients(args: Mapping[str, Any], dtype: torch.dtype) -> dict:
    """Gradients of all tensors at `dtype`."""
    leaves = cast(args, dtype)
    for name in differentiable(args):
        leaves[name].requires_grad_()
    SPEC.reference(*leaves.values()).backward(incoming(args).to(dtype))
    return {name: leaves[name].grad for name in differentiable(args)}


@every_type
@every_case
def test_gradients_obey_the_error_rule(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    assert_backward(pixel_kernels, SPEC.make_args(case, dtype, "cpu", seed=2))


@every_type
@some_cases
def test_gradients_are_reproducible(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    """Bit for bit for one number of partial sums, whatever runs first."""
    args = SPEC.make_args({**case, "B": 3}, dtype, "cpu")
    expected = assert_backward(pixel_kernels, args, blocks=3)
    found = pixels.pixel_embed_backward(
        pixel_kernels, args, incoming(args), blocks=3, reversed=True, guard_end=False
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@every_type
@some_cases
def test_launch_does_not_change_a_bit(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    args = SPEC.make_args(case, dtype, "cpu")
    expected = pixels.pixel_embed(pixel_kernels, args, blocks=1, warps=1)
    for blocks, warps in ((1, 8), (2, 3), (7, 2)):
        for flag in (False, True):
            setting = {"blocks": blocks, "warps": warps, "reversed": flag, "guard_end": flag}
            assert torch.equal(pixels.pixel_embed(pixel_kernels, args, **setting), expected)


@every_type
def test_tails_equal_the_full_batch(pixel_kernels: ModuleType, dtype: torch.dtype) -> None:
    for stride, dim in ((8, 96), (4, 40), (2, 6)):
        case = {"B": 7, "Cin": 3, "H": 16, "W": 16, "C": dim, "patch": 16, "stride": stride}
        args = SPEC.make_args(case, dtype, "cpu")
        full = pixels.pixel_embed(pixel_kernels, args)
        for batch in (1, 2, 5):
            part = {**args, "images": args["images"][:batch]}
            out = pixels.pixel_embed(pixel_kernels, part, guard_end=batch % 2 == 0)
            assert torch.equal(out, full[:batch])


@every_type
@some_cases
def test_weights_of_any_stride_and_of_float32(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    args = SPEC.make_args(case, dtype, "cpu")
    expected = pixels.pixel_embed(pixel_kernels, args)
    flat = args["weight"].flatten(1).t().contiguous().t()
    strided = {**args, "weight": flat.unflatten(1, args["weight"].shape[1:])}
    assert not strided["weight"].is_contiguous()
    assert torch.equal(pixels.pixel_embed(pixel_kernels, strided), expected)
    single = dict(args)
    for name in differentiable(args):
        if name in SPEC.weights and name != SPEC.typed_by(args):
            single[name] = args[name].float()
    assert torch.equal(pixels.pixel_embed(pixel_kernels, single), expected)


@every_type
@pytest.mark.parametrize("unfold_first", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_reaches_the_windows_that_see_it(
    pixel_kernels: ModuleType, value: float, unfold_first: bool, dtype: torch.dtype
) -> None:
    case = {"B": 1, "Cin": 3, "H": 32, "W": 32, "C": 24, "patch": 16, "stride": 4}
    args = SPEC.make_args({**case, "unfold_first": unfold_first}, dtype, "cpu")
    clean = pixels.pixel_embed(pixel_kernels, args)
    for row, column in ((16, 15), (7, 20), (31, 3)):
        args["images"][0, 1, row, column] = value
    out = pixels.pixel_embed(pixel_kernels, args)
    seen = ~reference(args, torch.float64).isfinite()
    assert seen.any() and not seen.all()
    assert torch.equal(~out.isfinite(), seen)
    assert torch.equal(out[~seen], clean[~seen])


def test_shared_memory_is_never_more_than_the_refusal_counts(pixel_kernels: ModuleType) -> None:
    large = {"B": 1, "Cin": 3, "H": 64, "W": 64, "C": 24, "patch": 64, "stride": 4}
    for dtype in DTYPES:
        for case in (*CASES, large):
            args = SPEC.make_args(case, dtype, "cpu")
            forward, backward = shared_bytes(pixel_kernels, args)
            dims, size = SPEC.dims(args), dtype.itemsize
            counted = pixel_embed_shared_bytes(dims, size)
            assert 0.5 * counted < forward <= counted
            assert backward <= pixel_embed_backward_shared_bytes(dims, size)
    assert backward > 99 * 1024  # the large one, in float32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k": 9}, "window k=9 is not one of 3, 5, 7"),
        ({"k": 1}, "window k=1 is not one of 3, 5, 7"),
        ({"stride": 1}, "stride=1 is odd"),
        ({"patch": (16, 18), "W": 36, "stride": 2}, "the patch width 18 is not a multiple of 4"),
        ({"C": 23}, "C=23 is odd"),
        ({"C": 512}, "weights and one patch take"),
        ({"patch": 64, "H": 64, "W": 64, "C": 24}, "bytes of shared memory, 101376 are had"),
    ],
    ids=str,
)
def test_refusals_say_why(changes: dict, reason: str) -> None:
    case = {"B": 1, "Cin": 3, "H": 16, "W": 16, "C": 24, "patch": 16, "stride": 4, **changes}
    dims = SPEC.dims(SPEC.make_args(case, torch.float32, "cpu"))
    assert reason in pixel_embed_refusal(dims, torch.float32, True)


def test_every_kernel_in_the_sources_is_executed(pixel_kernels: ModuleType) -> None:
    for dim, uint8, dtype in itertools.product((24, 40), (False, True), DTYPES):
        case = {"B": 1, "Cin": 1, "H": 16, "W": 16, "C": dim, "patch": 16, "stride": 4}
        args = SPEC.make_args({**case, "uint8": uint8}, dtype, "cpu")
        pixels.pixel_embed(pixel_kernels, args)
        pixels.pixel_embed_backward(pixel_kernels, args, incoming(args))
    kernels = pixels.kernels_in("pixel_embed") | pixels.kernels_in("tile")
    bodies = {body for body in pixels.BODIES if body.split("-")[0] in kernels}
    assert {body.split("-")[0] for body in bodies} == kernels
    assert bodies <= pixels.executed
