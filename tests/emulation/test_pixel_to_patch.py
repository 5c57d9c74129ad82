"""Kernel bodies of pixel_to_patch against the definition."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any, Optional

import pytest
import torch
from emulation import pixels
from emulation.pixels import DTYPES, TF32
from emulation.test_inner_block import RoundedProducts
from tolerance import assert_error_rule
from torch import Tensor

from tnt_kernels.backends.native_pixels import pixel_to_patch_refusal
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import case_id

SPEC = SPECS["pixel_to_patch"]
# images that begin inside a block, and a block of fewer rows than it has
CASES = tuple(
    {"B": batch, "N": patches, "S": s, "C": c, "D": s * c, "dialect": dialect}
    for batch, patches, s, c in ((5, 14, 16, 24), (2, 17, 16, 40), (1, 9, 64, 6), (5, 2, 4, 96))
    for dialect in ("published", "legacy", "stem")
)
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=pixels.dtype_id)
every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
# both widths, all dialects
some_cases = pytest.mark.parametrize("case", [CASES[i] for i in (10, 3, 8)], ids=case_id)


def make_args(case: Mapping[str, Any], dtype: Any, seed: int = 0) -> dict:
    tf32 = dtype == TF32
    args = SPEC.make_args(case, torch.float32 if tf32 else dtype, "cpu", seed)
    return {**args, "tf32": tf32}


def cast(args: Mapping[str, Any], dtype: Optional[torch.dtype]) -> dict:
    """Leaves in `dtype`, or in their own types, of the op's arguments alone."""
    return {
        k: args[k].detach().to(dtype or args[k].dtype).requires_grad_()
        if isinstance(args[k], Tensor)
        else args[k]
        for k in SPEC.argument_names
    }


def incoming(args: Mapping[str, Any]) -> Tensor:
    """A gradient of the output, the same at every call, in its type."""
    out = SPEC.reference(*cast(args, None).values())
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(99))
    return dy.to(out.dtype)


def reference(args: Mapping[str, Any], dtype: Optional[torch.dtype]) -> tuple:
    """Output, and the gradients by name, at `dtype` or at the arguments' types."""
    leaves = cast(args, dtype)
    out = SPEC.reference(*leaves.values())
    out.backward(incoming(args).to(out.dtype))
    tensors = {k: v for k, v in leaves.items() if isinstance(v, Tensor) and k != "patch_tokens"}
    return out.detach(), {k: v.grad for k, v in tensors.items()}


def assert_forward(kernels: ModuleType, args: Mapping[str, Any], **setting: Any) -> tuple:
    out, projection = pixels.pixel_to_patch(kernels, args, **setting)
    with RoundedProducts() if args["tf32"] else nullcontext():
        pytorch = reference(args, None)[0]
    assert_error_rule(out, pytorch, reference(args, torch.float64)[0], "pixel_to_patch")
    if args["patch_tokens"] is not None:
        assert torch.equal(out[:, 0], args["patch_tokens"][:, 0])
    return out, projection


def assert_backward(kernels: ModuleType, args: Mapping[str, Any], **setting: Any) -> dict:
    """Every gradient obeys the error rule; returns them."""
    _, projection = pixels.pixel_to_patch(kernels, args)
    found = pixels.pixel_to_patch_backward(kernels, args, incoming(args), projection, **setting)
    exact, pytorch = reference(args, torch.float64)[1], reference(args, None)[1]
    for name, expected in exact.items():
        value = found[name].to(pytorch[name].dtype)
        assert_error_rule(value, pytorch[name], expected, f"gradient of {name}")
    return found


@pytest.mark.parametrize("dtype", [*DTYPES, TF32], ids=pixels.dtype_id)
@every_case
def test_forward_obeys_the_error_rule(pixel_kernels: ModuleType, case: dict, dtype: Any) -> None:
    args = make_args(case, dtype, seed=1)
    assert pixel_to_patch_refusal(SPEC.dims(args)) is None
    assert_forward(pixel_kernels, args)


@every_type
@every_case
def test_gradients_obey_the_error_rule(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    assert_backward(pixel_kernels, make_args(case, dtype, seed=2))


@every_type
@some_cases
def test_order_does_not_change_a_bit(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    """Nor do other places in memory; gradients for one number of partial sums."""
    args = make_args(case, dtype)
    other = {"reversed": True, "guard_end": False}
    expected = pixels.pixel_to_patch(pixel_kernels, args)
    found = pixels.pixel_to_patch(pixel_kernels, args, blocks=5, **other)
    assert torch.equal(found[0], expected[0])
    assert (found[1] is None) == (args["norm2_weight"] is None)
    assert found[1] is None or torch.equal(found[1], expected[1])
    call = (pixel_kernels, args, incoming(args), expected[1])
    values = [pixels.pixel_to_patch_backward(*call, blocks=3, **setting) for setting in ({}, other)]
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])


@every_type
def test_gradients_do_not_depend_on_which_are_wanted(
    pixel_kernels: ModuleType, dtype: torch.dtype
) -> None:
    args = make_args(CASES[0], dtype)
    _, projection = pixels.pixel_to_patch(pixel_kernels, args)
    call = (pixel_kernels, args, incoming(args), projection)
    full = pixels.pixel_to_patch_backward(*call)
    for need in ((True, False), (False, True)):
        found = pixels.pixel_to_patch_backward(*call, need)
        assert found.keys() == {name for name in full if need[0 if name == "pixels" else 1]}
        assert all(torch.equal(value, full[name]) for name, value in found.items())


@every_type
def test_tails_equal_the_full_batch(pixel_kernels: ModuleType, dtype: torch.dtype) -> None:
    args = make_args({**CASES[2], "B": 1, "N": 67}, dtype)  # the stem
    full, _ = pixels.pixel_to_patch(pixel_kernels, args)
    for patches in (1, 33, 64):
        part = {**args, "pixels": args["pixels"][:patches]}
        out, _ = pixels.pixel_to_patch(pixel_kernels, part, guard_end=patches % 2 == 0)
        assert torch.equal(out, full[:patches])


@pytest.mark.parametrize("tokens", DTYPES, ids=pixels.dtype_id)
@every_type
def test_tokens_of_any_type(
    pixel_kernels: ModuleType, dtype: torch.dtype, tokens: torch.dtype
) -> None:
    args = make_args(CASES[0], dtype)
    args["patch_tokens"] = args["patch_tokens"].to(tokens)
    assert_forward(pixel_kernels, args)
    assert_backward(pixel_kernels, args)


@every_type
@some_cases
def test_weights_of_any_stride_and_of_float32(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    args = make_args(case, dtype)
    expected, _ = pixels.pixel_to_patch(pixel_kernels, args)
    strided = {**args, "proj_weight": args["proj_weight"].t().contiguous().t()}
    assert torch.equal(pixels.pixel_to_patch(pixel_kernels, strided)[0], expected)
    single = {k: v.float() if k in SPEC.weights and v is not None else v for k, v in args.items()}
    assert torch.equal(pixels.pixel_to_patch(pixel_kernels, single)[0], expected)


@every_type
@some_cases
def test_not_a_number_stays_in_its_patch(
    pixel_kernels: ModuleType, case: dict, dtype: torch.dtype
) -> None:
    args = make_args({**case, "B": 1, "N": 6}, dtype)
    clean, _ = pixels.pixel_to_patch(pixel_kernels, args)
    args["pixels"][4, 1, 3], args["pixels"][1, 0, 2] = float("nan"), float("inf")
    out, _ = pixels.pixel_to_patch(pixel_kernels, args)
    out, clean = (x.flatten(0, -2)[-6:] for x in (out, clean))
    assert out[[1, 4]].isnan().all()
    others = torch.tensor([0, 2, 3, 5])
    assert torch.equal(out[others], clean[others])


@every_type
def test_large_and_shifted_inputs(pixel_kernels: ModuleType, dtype: torch.dtype) -> None:
    for scale, shift in ((100.0, 0.0), (0.01, 0.0), (1.0, 30.0)):
        args = make_args(CASES[0], dtype)
        args["pixels"] = args["pixels"] * scale + shift
        assert_forward(pixel_kernels, args)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"S": 16, "C": 16}, "S*C=256 is not one of 384, 640"),
        ({"D": 192}, "D=192 is not S*C=384"),
        (
            {"S": 12, "C": 32, "dialect": "legacy"},
            "the norm over C=32 channels is not one over 6, 12, 24, 48, 96, 192",
        ),
    ],
    ids=str,
)
def test_refusals_say_why(changes: dict, reason: str) -> None:
    case = {"B": 1, "N": 2, "S": 16, "C": 24, "D": 384, "dialect": "published", **changes}
    assert reason in pixel_to_patch_refusal(SPEC.dims(make_args(case, torch.float32)))


def test_bf16_weights_beyond_the_range_of_fp16(pixel_kernels: ModuleType) -> None:
    args = make_args(CASES[9], torch.bfloat16)
    args["proj_weight"] = args["proj_weight"] * 1e8
    out, projection = assert_forward(pixel_kernels, args)
    assert out.isfinite().all() and projection.abs().max() > 1e5


def test_every_kernel_in_the_sources_is_executed(pixel_kernels: ModuleType) -> None:
    for case in (CASES[0], CASES[3]):
        for dtype in (*DTYPES, TF32):
            args = make_args({**case, "B": 1, "N": 1}, dtype)
            _, projection = pixels.pixel_to_patch(pixel_kernels, args)
            pixels.pixel_to_patch_backward(pixel_kernels, args, incoming(args), projection)
    kernels = pixels.kernels_in("pixel_to_patch")
    bodies = {body for body in pixels.BODIES if body.split("-")[0] in kernels}
    assert {body.split("-")[0] for body in bodies} == kernels
    assert bodies <= pixels.executed
