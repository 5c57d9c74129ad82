"""Kernel bodies of inner_block, inner_attention and inner_mlp against the definitions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from emulation.calls import BODIES, SIZES, TF32, body_id, emulate
from tolerance import assert_error_rule, relative_error
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tnt_kernels.reference import SPECS

SPEC = SPECS["inner_block"]
every_body = pytest.mark.parametrize("body", BODIES, ids=body_id)
# a configuration of every (S, C), in every kind of arithmetic
some_bodies = pytest.mark.parametrize(
    "body",
    [body for body in BODIES if body[1:] in ((16, 24, 4), (16, 40, 2), (64, 6, 2), (4, 96, 8))],
    ids=body_id,
)


def make_args(body: tuple, patches: int, **options: Any) -> dict:
    dtype, tokens, dim, heads = body
    case = {"P": patches, "S": tokens, "C": dim, "heads": heads, **options}
    tf32 = dtype == TF32
    args = SPEC.make_args(case, torch.float32 if tf32 else dtype, "cpu", seed=patches)
    return {**args, "tf32": tf32}


class RoundedProducts(TorchFunctionMode):
    """Matrix products of operands rounded to TF32, which is what PyTorch does on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.functional.linear, Tensor.matmul, Tensor.__matmul__):
            args = (rounded_to_tf32(args[0]), rounded_to_tf32(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def rounded_to_tf32(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & -0x2000).view(torch.float32)


def reference(args: Mapping[str, Any], dtype: torch.dtype) -> dict:
    """Results of the block and of its halves, at `dtype`."""
    cast = {
        k: v.to(dtype) if k in ("x", *SPEC.weights) and v is not None else v
        for k, v in args.items()
    }
    attention = {**cast, "drop_path": cast["drop_path_attn"]}
    mlp = {**cast, "drop_path": cast["drop_path_mlp"]}

    def run(name: str, values: Mapping[str, Any]) -> Tensor:
        spec = SPECS[name]
        return spec.reference(*(values[n] for n in spec.argument_names))

    return {
        "inner_block": run("inner_block", cast),
        "inner_attention": run("inner_attention", attention),
        "inner_mlp": run("inner_mlp", mlp),
    }


def assert_forward(kernels: ModuleType, args: dict) -> None:
    """The block, what it keeps for backward, and each half obey the error rule."""
    exact = reference(args, torch.float64)
    with RoundedProducts() if args["tf32"] else nullcontext():
        pytorch = reference(args, args["x"].dtype)
    out, mid = emulate(kernels, args)
    results = {
        "inner_block": out,
        "inner_attention": emulate(kernels, args, mlp=False)[0],
        "inner_mlp": emulate(kernels, args, attention=False)[0],
    }
    for name, result in results.items():
        assert_error_rule(result, pytorch[name], exact[name], name)
    assert torch.equal(mid, results["inner_attention"])


def test_every_compiled_body_is_tested(kernels: ModuleType) -> None:
    names = [f"S{tokens}-C{dim}-heads{heads}" for tokens, dim, heads in SIZES]
    assert kernels.names() == dict.fromkeys(("bfloat16", "float16", "float32", "tf32"), names)


@every_body
def test_forward_obeys_the_error_rule(kernels: ModuleType, body: tuple) -> None:
    assert_forward(kernels, make_args(body, 13))
    assert_forward(kernels, make_args(body, 7, bias=True, drop_path=0.4))


@some_bodies
def test_tails_equal_the_full_batch(kernels: ModuleType, body: tuple) -> None:
    args = make_args(body, 9, bias=True, drop_path=0.4)
    full, full_mid = emulate(kernels, args)
    for patches in range(1, 9):
        part = dict(args)
        for name in ("x", "drop_path_attn", "drop_path_mlp"):
            part[name] = args[name][:patches]
        out, mid = emulate(kernels, part, guard_end=patches % 2 == 0)
        assert torch.equal(out, full[:patches]) and torch.equal(mid, full_mid[:patches])


@some_bodies
def test_grid_and_order_do_not_change_a_bit(kernels: ModuleType, body: tuple) -> None:
    args = make_args(body, 37, bias=True, drop_path=0.4)
    expected = emulate(kernels, args, blocks=1)
    for blocks in (2, 3, 7):
        for reversed_order in (False, True):
            found = emulate(kernels, args, blocks=blocks, reversed_order=reversed_order)
            assert all(map(torch.equal, found, expected))


@some_bodies
def test_weights_of_any_stride_and_of_float32(kernels: ModuleType, body: tuple) -> None:
    args = make_args(body, 3, bias=True)
    expected, _ = emulate(kernels, args)
    strided = dict(args)
    for name in SPEC.weights:
        if name.endswith("_weight") and args[name].dim() == 2:
            strided[name] = args[name].t().contiguous().t()
    assert torch.equal(emulate(kernels, strided)[0], expected)
    single = {k: v.float() if k in SPEC.weights and v is not None else v for k, v in args.items()}
    assert torch.equal(emulate(kernels, single)[0], expected)


@some_bodies
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_stays_in_its_patch(kernels: ModuleType, body: tuple, value: float) -> None:
    args = make_args(body, 9, bias=True)
    clean, _ = emulate(kernels, args)
    args["x"][4, 1, 3] = value
    out, _ = emulate(kernels, args)
    assert out[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(out[others], clean[others])


@some_bodies
def test_dropped_branches_leave_x(kernels: ModuleType, body: tuple) -> None:
    args = make_args(body, 6)
    kept = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    args["drop_path_attn"] = args["drop_path_mlp"] = kept
    out, mid = emulate(kernels, args)
    dropped = kept == 0
    assert torch.equal(out[dropped], args["x"][dropped])
    assert torch.equal(mid[dropped], args["x"][dropped])
    assert not torch.equal(out[~dropped], args["x"][~dropped])


@some_bodies
def test_large_and_shifted_inputs(kernels: ModuleType, body: tuple) -> None:
    for scale, shift in ((100.0, 0.0), (0.01, 0.0), (1.0, 30.0)):
        args = make_args(body, 5)
        args["x"] = args["x"] * scale + shift
        assert_forward(kernels, args)


def test_tf32_is_taken_only_where_it_is_allowed(kernels: ModuleType) -> None:
    """Products of rounded operands are 100 times less accurate, and not by accident equal."""
    args = make_args((torch.float32, 16, 24, 4), 13)
    exact = reference(args, torch.float64)["inner_block"]
    full, _ = emulate(kernels, args)
    rounded, _ = emulate(kernels, {**args, "tf32": True})
    assert relative_error(full, exact) < 0.01 * relative_error(rounded, exact)
