"""Kernel bodies of inner_block, inner_attention and inner_mlp against the definitions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from emulation.calls import BODIES, SIZES, TF32, body_id, calls_that_left_range, emulate
from tolerance import assert_error_rule, relative_error
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tnt_kernels.reference import SPECS

SPEC = SPECS["inner_block"]
SOME_SIZES = ((16, 24, 4), (16, 40, 2), (64, 6, 2), (4, 96, 8))
every_body = pytest.mark.parametrize("body", BODIES, ids=body_id)
# a configuration of every (S, C), in every kind of arithmetic
some_bodies = pytest.mark.parametrize(
    "body",
    [body for body in BODIES if body[1:] in SOME_SIZES],
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
    name = "inner_attention"
    assert_error_rule(mid, pytorch[name], exact[name], "what backward is given")
    # the MLP's weights may have sent the whole block the way of wide_range.cuh
    assert torch.equal(mid, results[name]) or left_range(kernels, args)


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
        for flag in (False, True):
            found = emulate(kernels, args, blocks=blocks, reversed=flag)
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


def left_range(kernels: ModuleType, args: dict) -> bool:
    """Whether the weights count as possibly beyond fp16's range."""
    before = len(calls_that_left_range)
    emulate(kernels, args)
    return len(calls_that_left_range) > before


bf16_bodies = [body for body in BODIES if body[0] is torch.bfloat16]
some_bf16_bodies = pytest.mark.parametrize(
    "body", [body for body in bf16_bodies if body[1:] in SOME_SIZES], ids=body_id
)


@pytest.mark.parametrize("body", bf16_bodies, ids=body_id)
def test_ordinary_weights_stay_in_range(kernels: ModuleType, body: tuple) -> None:
    assert not left_range(kernels, make_args(body, 2, bias=True))


@some_bf16_bodies
@pytest.mark.parametrize("scaled", SPEC.weights)
def test_weights_beyond_fp16(kernels: ModuleType, body: tuple, scaled: str) -> None:
    """bf16 weights reach 3e38, the operands of the fast path 65504."""
    args = make_args(body, 3, bias=True, drop_path=0.4)
    args[scaled] = args[scaled] * 1e7
    if scaled.startswith(("norm1", "qk")):
        # scores so that PyTorch's own roundings do not choose other keys: q and k in balance
        args["qk_weight"][: body[2]] *= 1e-7
        args["qk_bias"][: body[2]] *= 1e-7
        if scaled.startswith("norm1"):
            args["qk_weight"][body[2] :] *= 1e-7
    # biases that only a sum in fp32 sees are no matter
    assert left_range(kernels, args) is (scaled not in ("fc2_bias", "qk_bias"))
    assert_forward(kernels, args)


@some_bf16_bodies
def test_weights_at_the_edge_of_fp16(kernels: ModuleType, body: tuple) -> None:
    """The largest that the fast path takes, and the least that it does not."""
    args = make_args(body, 3)
    v = args["v_weight"].float() * args["norm1_weight"].float()
    bound = v.norm(dim=1).max().item() * body[2] ** 0.5
    for share, leaves in ((0.9, False), (1.2, True)):
        scaled = {**args, "v_weight": args["v_weight"] * (share * 60000 / bound)}
        scaled["norm1_bias"] = torch.zeros_like(args["norm1_bias"])
        assert left_range(kernels, scaled) is leaves
        assert_forward(kernels, scaled)


def test_beyond_fp16_grid_order_and_tails_change_nothing(kernels: ModuleType) -> None:
    args = make_args((torch.bfloat16, 16, 24, 4), 9, bias=True, drop_path=0.4)
    args["fc1_weight"] = args["fc1_weight"] * 1e5
    expected, expected_mid = emulate(kernels, args, blocks=1)
    for blocks, order in ((2, False), (7, True)):
        out, mid = emulate(kernels, args, blocks=blocks, reversed=order)
        assert torch.equal(out, expected) and torch.equal(mid, expected_mid)
    args["x"][4, 1, 3] = float("nan")
    out, _ = emulate(kernels, args)
    others = torch.arange(9) != 4
    assert out[4].isnan().all() and torch.equal(out[others], expected[others])
