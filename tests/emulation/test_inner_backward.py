"""Backward bodies of inner_block and its halves against the gradients of the definitions."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Optional

import pytest
import torch
from emulation.backwards import BODIES, block_backward, half_backward
from emulation.calls import SIZES, body_id
from ops.helpers import CONFIRMING_DRAWS
from tolerance import assert_error_rule
from torch import Tensor

from tnt_kernels.reference import SPECS
from tnt_kernels.reference.inner_block import ATTENTION_WEIGHTS, MLP_WEIGHTS

SPEC = SPECS["inner_block"]
every_body = pytest.mark.parametrize("body", BODIES, ids=body_id)
# a configuration of every (S, C), and every element type
some_bodies = pytest.mark.parametrize(
    "body",
    [
        (torch.bfloat16, 16, 24, 4),
        (torch.float16, 16, 24, 4),
        (torch.float32, 16, 24, 8),
        (torch.bfloat16, 16, 40, 2),
        (torch.bfloat16, 64, 6, 2),
        (torch.bfloat16, 4, 96, 8),
    ],
    ids=body_id,
)


def make_case(
    body: tuple, patches: int, seed: Optional[int] = None, **options: Any
) -> tuple[dict, Tensor]:
    """(arguments of inner_block, gradient of its result)."""
    dtype, tokens, dim, heads = body
    case = {"P": patches, "S": tokens, "C": dim, "heads": heads, **options}
    seed = patches if seed is None else seed
    args = SPEC.make_args(case, dtype, "cpu", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return args, torch.randn(args["x"].shape, generator=generator).to(args["x"].dtype)


def split(args: dict, dw: Tensor) -> dict:
    """Gradients by name from the flat one, in the weights' dtype; absent weights left out."""
    shapes = SPEC.weight_shapes(args)
    parts = dw.split([torch.Size(shape).numel() for shape in shapes])
    return {
        name: part.view(shape).to(args[name].dtype)
        for name, shape, part in zip(SPEC.weights, shapes, parts)
        if args[name] is not None
    }


def reference(args: dict, dy: Tensor, dtype: torch.dtype) -> tuple[dict, Tensor]:
    """(gradients by name, result of the first half) at `dtype`."""
    leaves = dict(args)
    for name in ("x", *SPEC.weights):
        if args[name] is not None:
            leaves[name] = args[name].detach().to(dtype).requires_grad_()
    attention, mlp = SPECS["inner_attention"], SPECS["inner_mlp"]
    leaves["drop_path"] = leaves["drop_path_attn"]
    mid = attention.reference(*(leaves[name] for name in attention.argument_names))
    values = {**leaves, "x": mid, "drop_path": leaves["drop_path_mlp"]}
    mlp.reference(*(values[name] for name in mlp.argument_names)).backward(dy.to(dtype))
    found = {name: leaves[name].grad for name in ("x", *SPEC.weights) if args[name] is not None}
    return found, mid.detach()


def emulated(
    kernels: ModuleType, args: dict, dy: Tensor, mid: Tensor, **setting: Any
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    return block_backward(kernels, args, mid, dy, **setting)


def add_draw(pools: tuple, kernels: ModuleType, args: dict, dy: Tensor) -> None:
    """Gradients of the kernels, of PyTorch and in float64, by name, to the three pools."""
    exact, mid = reference(args, dy, torch.float64)
    pytorch, _ = reference(args, dy, dy.dtype)
    dx, dw = emulated(kernels, args, dy, mid.to(dy.dtype))
    for pool, found in zip(pools, ({"x": dx, **split(args, dw)}, pytorch, exact)):
        for name, gradient in found.items():
            pool.setdefault(name, []).append(gradient)


def assert_backward(
    kernels: ModuleType, body: tuple, patches: int, scale: float = 1.0, **options: Any
) -> None:
    """dx and every weight's gradient obey the error rule; a broken one in more draws, too."""
    pools: tuple = ({}, {}, {})
    for draws in ((patches,), range(CONFIRMING_DRAWS)):
        for seed in draws:
            args, dy = make_case(body, patches, seed, **options)
            add_draw(pools, kernels, args, dy * scale)
        try:
            for name in pools[0]:
                assert_error_rule(*(torch.stack(pool[name]) for pool in pools), name)
            return
        except AssertionError:
            if len(draws) > 1:
                raise


def test_every_compiled_body_is_tested(backward_kernels: ModuleType) -> None:
    names = [f"S{tokens}-C{dim}-heads{heads}" for tokens, dim, heads in SIZES]
    kinds = ("bfloat16", "float16", "float32")
    assert backward_kernels.names() == dict.fromkeys(kinds, names)


@every_body
def test_gradients_obey_the_error_rule(backward_kernels: ModuleType, body: tuple) -> None:
    assert_backward(backward_kernels, body, 7)
    assert_backward(backward_kernels, body, 5, bias=True, drop_path=0.4)


@some_bodies
def test_tails_equal_the_full_batch(backward_kernels: ModuleType, body: tuple) -> None:
    args, dy = make_case(body, 9, bias=True, drop_path=0.4)
    mid = reference(args, dy, dy.dtype)[1]
    full, _ = emulated(backward_kernels, args, dy, mid)
    for patches in (1, 2, 3, 6):
        part = dict(args)
        for name in ("x", "drop_path_attn", "drop_path_mlp"):
            part[name] = args[name][:patches]
        end = patches % 2 == 0
        dx, dw = emulated(backward_kernels, part, dy[:patches], mid[:patches], guard_end=end)
        assert torch.equal(dx, full[:patches])
        silent = dy.clone()  # the other patches add nothing
        silent[patches:] = 0
        whole = emulated(backward_kernels, args, silent, mid)[1]
        exact = split(args, whole)
        for name, gradient in split(args, dw).items():
            assert_error_rule(gradient, exact[name], exact[name].double(), name)


@some_bodies
def test_order_does_not_change_a_bit(backward_kernels: ModuleType, body: tuple) -> None:
    args, dy = make_case(body, 21, bias=True, drop_path=0.4)
    mid = reference(args, dy, dy.dtype)[1]
    one_block = emulated(backward_kernels, args, dy, mid, blocks=1)
    for blocks in (1, 3):
        expected = emulated(backward_kernels, args, dy, mid, blocks=blocks)
        found = emulated(backward_kernels, args, dy, mid, blocks=blocks, reversed=True)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        assert torch.equal(found[0], one_block[0])


@some_bodies
@pytest.mark.parametrize("half", ["attention", "mlp"])
def test_only_what_is_asked_for(backward_kernels: ModuleType, body: tuple, half: str) -> None:
    args, dy = make_case(body, 5, bias=True, drop_path=0.4)
    call = (backward_kernels, half, args, args["x"], dy)
    dx, dw = half_backward(*call)
    assert torch.equal(half_backward(*call, (True, False))[0], dx)
    assert torch.equal(half_backward(*call, (False, True))[1], dw)
    names = MLP_WEIGHTS if half == "mlp" else ATTENTION_WEIGHTS
    shapes = dict(zip(SPEC.weights, SPEC.weight_shapes(args)))
    assert dw.numel() == sum(torch.Size(shapes[name]).numel() for name in names)


@some_bodies
def test_weights_of_any_stride_and_of_float32(backward_kernels: ModuleType, body: tuple) -> None:
    args, dy = make_case(body, 3, bias=True)
    expected = emulated(backward_kernels, args, dy, args["x"])
    strided = dict(args)
    for name in SPEC.weights:
        if name.endswith("_weight") and args[name].dim() == 2:
            strided[name] = args[name].t().contiguous().t()
    single = {k: v.float() if k in SPEC.weights and v is not None else v for k, v in args.items()}
    for changed in (strided, single):
        found = emulated(backward_kernels, changed, dy, args["x"])
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@some_bodies
@pytest.mark.parametrize("where", ["x", "dy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_stays_in_its_patch(
    backward_kernels: ModuleType, body: tuple, where: str, value: float
) -> None:
    args, dy = make_case(body, 9, bias=True)
    clean, _ = emulated(backward_kernels, args, dy, args["x"])
    (args["x"] if where == "x" else dy)[4, 1, 3] = value
    dx, dw = emulated(backward_kernels, args, dy, args["x"])
    assert dx[4].isnan().all() and dw.isnan().any()
    others = torch.arange(9) != 4
    assert torch.equal(dx[others], clean[others])


@some_bodies
def test_dropped_branches_pass_the_gradient_on(backward_kernels: ModuleType, body: tuple) -> None:
    args, dy = make_case(body, 6)
    kept = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    args["drop_path_attn"] = args["drop_path_mlp"] = kept
    dx, _ = emulated(backward_kernels, args, dy, args["x"])
    dropped = kept == 0
    assert torch.equal(dx[dropped], dy[dropped])
    assert not torch.equal(dx[~dropped], dy[~dropped])


@some_bodies
def test_gradients_of_any_size(backward_kernels: ModuleType, body: tuple) -> None:
    # with GradScaler's scale far too small, and too large for comfort
    for scale in (2.0**-8, 2.0**6) if body[0] == torch.float16 else (2.0**-40, 2.0**40):
        assert_backward(backward_kernels, body, 5, scale, bias=True)


def test_gradients_of_fp16_overflow_only_in_their_tensor(backward_kernels: ModuleType) -> None:
    args, dy = make_case((torch.float16, 16, 24, 4), 64)
    dy = torch.full_like(dy, 512.0)  # sums over 1024 tokens are beyond fp16
    _, mid = reference(args, dy, dy.dtype)
    exact, _ = reference(args, dy, torch.float64)
    _, dw = emulated(backward_kernels, args, dy, mid)
    bias = dw[-24:]
    assert (exact["fc2_bias"] > 65504).all()
    assert torch.allclose(bias.double(), exact["fc2_bias"], rtol=1e-6)
