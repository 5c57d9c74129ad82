"""Bad input to every public op: one exception, one form of message, nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tnt_kernels as tk
from tnt_kernels import library
from tnt_kernels.backends import native
from tnt_kernels.dispatch import describe
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

P, S, C, HEADS = 3, 16, 24, 4


def _inner_block(**changes: Any) -> torch.Tensor:
    args = SPECS["inner_block"].make_args(
        {"P": P, "S": S, "C": C, "heads": HEADS, "bias": True, "drop_path": 0.5},
        torch.float32,
        "cpu",
    )
    return _call(tk.inner_block, tk.InnerBlockWeights, "x", args, changes)


def _inner_attention(**changes: Any) -> torch.Tensor:
    args = SPECS["inner_attention"].make_args(
        {"P": P, "S": S, "C": C, "heads": HEADS, "bias": True}, torch.float32, "cpu"
    )
    return _call(tk.inner_attention, tk.InnerAttentionWeights, "x", args, changes)


def _inner_mlp(**changes: Any) -> torch.Tensor:
    args = SPECS["inner_mlp"].make_args({"P": P, "S": S, "C": C}, torch.float32, "cpu")
    return _call(tk.inner_mlp, tk.InnerMlpWeights, "x", args, changes)


def _pixel_to_patch(**changes: Any) -> torch.Tensor:
    args = SPECS["pixel_to_patch"].make_args(
        {"B": 2, "N": 3, "S": S, "C": C, "D": 40, "dialect": "published"}, torch.float32, "cpu"
    )
    return _call(tk.pixel_to_patch, tk.PixelToPatchWeights, "pixels", args, changes)


def _pixel_embed(**changes: Any) -> torch.Tensor:
    case = {"B": 2, "Cin": 3, "H": 32, "W": 48, "C": C, "patch": 16, "stride": 4}
    args = SPECS["pixel_embed"].make_args(case, torch.float32, "cpu")
    given = {name: args[name] for name in ("images", "weight", "bias", "pixel_pos")}
    return tk.pixel_embed(**{**given, **changes})


def _outer_attention(**changes: Any) -> torch.Tensor:
    case = {"B": 2, "N": 5, "heads": 4, "head_dim": 6}
    args = SPECS["outer_attention"].make_args(case, torch.float32, "cpu")
    return tk.outer_attention(**{**args, **changes})


def _call(op: Callable, bundle: type, activation: str, args: dict, changes: dict) -> torch.Tensor:
    args = {**args, **changes}
    weights = args.pop("weights", bundle(*(args[name] for name in bundle._fields)))
    others = {n: v for n, v in args.items() if n not in (*bundle._fields, activation)}
    return op(args[activation], weights, **others)


def _zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


def _grad(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, requires_grad=True)


NESTED = "nested"
V, T = ValueError, TypeError

INNER_X = [
    ({"x": None}, T, "x must be a tensor, got NoneType"),
    ({"x": [[1.0]]}, T, "x must be a tensor, got list"),
    ({"x": _zeros(P, S, C, dtype=torch.int64)}, T, "x must be float32.*got int64"),
    ({"x": _zeros(P, S, C, dtype=torch.bool)}, T, "x must be float32.*got bool"),
    ({"x": _zeros(P, S, C, dtype=torch.complex64)}, T, "x must be float32.*got complex64"),
    ({"x": _zeros(P, S, C, dtype=torch.float8_e4m3fn)}, T, "x must be float32.*got float8"),
    ({"x": _zeros(P, S, C).to_sparse()}, T, r"x must be a dense \(strided\) tensor"),
    ({"x": NESTED}, T, r"x must be a dense \(strided\) tensor"),
    ({"x": _zeros(S, C)}, V, r"x must be \(P, S, C\), got \(16, 24\); reshape"),
    ({"x": _zeros(())}, V, r"x must be \(P, S, C\), got \(\)"),
    ({"x": _zeros(1, P, S, C)}, V, r"x must be \(P, S, C\), got \(1, 3, 16, 24\)"),
    ({"x": _zeros(P, 0, C)}, V, r"with S, C >= 1, got \(3, 0, 24\)"),
    ({"x": _zeros(P, S, 0)}, V, r"with S, C >= 1, got \(3, 16, 0\)"),
    ({"x": _zeros(P, S, 32)}, V, r"must be \(32,\), got \(24,\); pass weights of inner width 32"),
    ({"x": _zeros(P, S, C, dtype=torch.bfloat16), "eps": -1.0}, V, "eps must be finite and not"),
    ({"x": _zeros(P, S, C, device="meta")}, V, "must be on meta, got a tensor on cpu"),
    ({"eps": float("nan")}, V, "eps must be finite"),
    ({"eps": float("inf")}, V, "eps must be finite"),
    ({"eps": "1e-5"}, T, "eps must be a number, got str"),
    ({"weights": "heavy"}, T, "weights must be Inner.*Weights .* got str; build it with"),
    ({"weights": (1, 2)}, T, "weights must be Inner.*, got a tuple of 2"),
    ({"backend": "fastest"}, V, "backend must be one of native"),
]

ATTENTION = [
    ({"num_heads": 5}, V, "num_heads must be a divisor of the inner width 24, got 5; choose"),
    ({"num_heads": 0}, V, "num_heads must be at least 1, got 0"),
    ({"num_heads": -4}, V, "num_heads must be at least 1, got -4"),
    ({"num_heads": 4.0}, T, "num_heads must be an integer, got float"),
    ({"num_heads": True}, T, "num_heads must be an integer, got bool"),
    ({"num_heads": 48}, V, "num_heads must be a divisor"),
    ({"norm1_weight": _zeros(C + 1)}, V, r"norm1_weight must be \(24,\), got \(25,\)"),
    ({"norm1_bias": None}, T, "norm1_bias must be a tensor"),
    ({"qk_weight": _zeros(C, C)}, V, r"qk_weight must be \(48, 24\), got \(24, 24\)"),
    ({"qk_bias": _zeros(C)}, V, r"qk_bias must be \(48,\), got \(24,\)"),
    ({"v_weight": _zeros(C, 2 * C)}, V, r"v_weight must be \(24, 24\), got \(24, 48\)"),
    ({"v_weight": _zeros(C * C)}, V, r"v_weight must be \(24, 24\), got \(576,\)"),
    ({"v_bias": _zeros(1)}, V, r"v_bias must be \(24,\), got \(1,\)"),
    ({"proj_weight": _zeros(C, C, device="meta")}, V, "proj_weight must be on cpu"),
    ({"proj_weight": _zeros(C, C, dtype=torch.float64)}, T, "proj_weight must be float32, got"),
    ({"proj_bias": _zeros(C, dtype=torch.int32)}, T, "proj_bias must be float32, got int32"),
    ({"proj_bias": None}, T, "proj_bias must be a tensor"),
]

MLP = [
    ({"norm2_weight": _zeros(1)}, V, r"norm2_weight must be \(24,\), got \(1,\)"),
    ({"norm2_bias": 0.0}, T, "norm2_bias must be a tensor"),
    ({"fc1_weight": _zeros(96)}, V, r"fc1_weight must be a tensor \(H, 24\)"),
    ({"fc1_weight": None}, V, r"fc1_weight must be a tensor \(H, 24\).*got NoneType"),
    ({"fc1_weight": _zeros(0, C)}, V, r"fc1_weight must be a tensor \(H, 24\) with H >= 1"),
    ({"fc1_weight": _zeros(96, C + 1)}, V, r"fc1_weight must be \(96, 24\), got \(96, 25\)"),
    ({"fc1_bias": _zeros(95)}, V, r"fc1_bias must be \(96,\), got \(95,\)"),
    ({"fc1_bias": _zeros(96, dtype=torch.float16)}, T, "fc1_bias must be float32, got float16"),
    ({"fc2_weight": _zeros(96, C)}, V, r"fc2_weight must be \(24, 96\), got \(96, 24\)"),
    ({"fc2_bias": _zeros(96)}, V, r"fc2_bias must be \(24,\), got \(96,\)"),
]


def _drop_path(name: str) -> list:
    return [
        ({name: 0.1}, T, rf"{name} must be a \(P,\) tensor, got float; pass one factor per"),
        ({name: _zeros(P + 1)}, V, rf"{name} must be \(3,\), got \(4,\)"),
        ({name: _zeros(P, 1, 1)}, V, rf"{name} must be \(3,\), got \(3, 1, 1\)"),
        ({name: _zeros(P, dtype=torch.float64)}, T, rf"{name} must be float32, got float64"),
        ({name: _zeros(P, device="meta")}, V, rf"{name} must be on cpu"),
        ({name: _grad(P)}, V, rf"{name} must be a tensor without gradient.*detach"),
    ]


BYTES = _zeros(2, 3, 32, 48, dtype=torch.uint8)
NORMALISED = {"images": BYTES, "mean": _zeros(3), "std": torch.ones(3)}
PIXEL_EMBED = [
    ({"images": None}, T, "images must be a tensor, got NoneType"),
    ({"images": _zeros(2, 3, 32, 48, dtype=torch.int8)}, T, "images must be .* uint8, got int8"),
    (
        {"images": BYTES},
        V,
        "mean must be given with uint8 images, got None; pass one float32 value",
    ),
    ({"images": BYTES, "mean": _zeros(3)}, V, "std must be given with uint8 images, got None"),
    ({**NORMALISED, "mean": 0.5}, T, r"mean must be a tensor \(3,\), got float; pass one float32"),
    ({**NORMALISED, "std": _zeros(1)}, V, r"std must be \(3,\), got \(1,\)"),
    ({**NORMALISED, "std": _zeros(1, 3, 1, 1)}, V, r"std must be \(3,\), got \(1, 3, 1, 1\)"),
    ({**NORMALISED, "std": _zeros(3).double()}, T, r"std must be float32, got float64; .*\.float"),
    ({**NORMALISED, "mean": _zeros(3, device="meta")}, V, "mean must be on cpu, got a tensor on m"),
    ({**NORMALISED, "mean": _grad(3)}, V, "mean must be a tensor without gradient.*detach"),
    ({**NORMALISED, "weight": _zeros(24, 3, 7, 7, dtype=torch.uint8)}, T, "weight must be float32"),
    ({**NORMALISED, "weight": _zeros(24, 3, 7, 7, device="meta")}, V, "weight must be on cpu"),
    (
        {**NORMALISED, "bias": _zeros(24, dtype=torch.float16)},
        T,
        "bias must be float32, got float16",
    ),
    ({"mean": _zeros(3)}, V, "mean must be None for float32 images, got a tensor; .* pass uint8"),
    ({"std": _zeros(3)}, V, "std must be None for float32 images, got a tensor"),
    ({"images": _zeros(3, 32, 48)}, V, r"images must be \(B, Cin, H, W\), got \(3, 32, 48\)"),
    ({"images": _zeros(2, 3, 30, 48)}, V, "multiples of the patch size 16x16, got 30x48; resize"),
    ({"images": _zeros(2, 3, 8, 8)}, V, "multiples of the patch size 16x16, got 8x8"),
    ({"images": _zeros(2, 0, 32, 48)}, V, r"with Cin, H, W >= 1, got \(2, 0, 32, 48\)"),
    ({"images": _zeros(2, 3, 0, 48)}, V, r"with Cin, H, W >= 1, got \(2, 3, 0, 48\)"),
    ({"images": _zeros(2, 1, 32, 48)}, V, r"weight must be \(24, 1, 7, 7\), got \(24, 3, 7, 7\)"),
    ({"weight": _zeros(24, 147)}, V, r"weight must be a tensor \(C, Cin, k, k\)"),
    ({"weight": _zeros(0, 3, 7, 7)}, V, r"weight must be a tensor \(C, Cin, k, k\) with C >= 1"),
    ({"weight": _zeros(24, 3, 7, 5)}, V, r"weight must be \(24, 3, 7, 7\), got \(24, 3, 7, 5\)"),
    ({"weight": _zeros(24, 3, 4, 4)}, V, "weight must be of an odd kernel size, got 4x4"),
    ({"weight": _zeros(24, 3, 7, 7, dtype=torch.float16)}, T, "weight must be float32"),
    ({"bias": _zeros(3)}, V, r"bias must be \(24,\), got \(3,\)"),
    ({"pixel_pos": _zeros(1, 16, 24)}, V, r"pixel_pos must be \(1, 24, 4, 4\), got \(1, 16, 24\)"),
    ({"pixel_pos": 0}, T, r"pixel_pos must be a tensor \(1, 24, 4, 4\), got int"),
    ({"patch_size": 0}, V, "patch_size must be at least 1, got 0"),
    ({"patch_size": 16.0}, T, "patch_size must be an integer, got float"),
    ({"patch_size": (16, 16, 16)}, V, "patch_size must be one or two integers"),
    ({"patch_size": (16, 5)}, V, "multiples of the patch size 16x5"),
    ({"stride": 0}, V, "stride must be at least 1, got 0"),
    ({"stride": 3}, V, "stride must be a divisor of the patch size 16x16, got 3"),
    ({"stride": None}, T, "stride must be an integer, got NoneType"),
]

PIXEL_TO_PATCH = [
    ({"pixels": None}, T, "pixels must be a tensor"),
    ({"pixels": _zeros(6, S * C)}, V, r"pixels must be \(P, S, C\), got \(6, 384\)"),
    ({"pixels": _zeros(6, 0, C)}, V, "with S, C >= 1"),
    ({"pixels": _zeros(6, S, C, dtype=torch.int8)}, T, "pixels must be float32.*got int8"),
    ({"pixels": _zeros(6, 4, C)}, V, r"norm1_weight must be \(96,\) to norm the patch or \(24,\)"),
    ({"pixels": _zeros(5, S, C)}, V, r"patch_tokens must be \(B, N\+1, 40\) with B\*N = 5"),
    ({"norm1_weight": None}, V, r"norm1_weight must be a tensor \(S\*C,\) or \(C,\)"),
    ({"norm1_bias": _zeros(C)}, V, r"norm1_bias must be \(384,\), got \(24,\)"),
    ({"proj_weight": _zeros(40)}, V, r"proj_weight must be a tensor \(D, 384\)"),
    ({"proj_weight": _zeros(40, 383)}, V, r"proj_weight must be \(40, 384\), got \(40, 383\)"),
    ({"proj_bias": _zeros(41)}, V, r"proj_bias must be \(40,\), got \(41,\)"),
    ({"norm2_weight": None}, V, "norm2_weight must be given with its partner, got None"),
    ({"norm2_bias": None}, V, "norm2_bias must be given with its partner"),
    ({"norm2_bias": _zeros(4)}, V, r"norm2_bias must be \(40,\), got \(4,\)"),
    ({"patch_tokens": _zeros(2, 3, 40)}, V, r"patch_tokens must be \(B, N\+1, 40\)"),
    ({"patch_tokens": _zeros(2, 4, 41)}, V, r"patch_tokens must be \(B, N\+1, 40\)"),
    ({"patch_tokens": _zeros(2, 0, 40)}, V, r"patch_tokens must be \(B, N\+1, 40\)"),
    ({"patch_tokens": _zeros(8, 40)}, V, r"patch_tokens must be \(B, N\+1, D\), got \(8, 40\)"),
    ({"patch_tokens": _zeros(2, 4, 40, dtype=torch.int64)}, T, "patch_tokens must be float32"),
    ({"patch_tokens": _zeros(2, 4, 40, device="meta")}, V, "patch_tokens must be on cpu"),
    ({"patch_tokens": 3}, T, "patch_tokens must be a tensor, got int"),
    ({"weights": ()}, T, "weights must be PixelToPatchWeights .*, got a tuple of 0"),
    ({"eps": None}, T, "eps must be a number, got NoneType"),
]

OUTER_ATTENTION = [
    ({"qkv": None}, T, "qkv must be a tensor, got NoneType"),
    ({"qkv": _zeros(2, 5, 72, dtype=torch.int64)}, T, "qkv must be float32.*got int64"),
    ({"qkv": _zeros(5, 72)}, V, r"qkv must be \(B, N, 3D\), got \(5, 72\); reshape"),
    ({"qkv": _zeros(2, 5, 70)}, V, r"with N, D >= 1, got \(2, 5, 70\); pass q, k and v"),
    ({"qkv": _zeros(2, 0, 72)}, V, r"with N, D >= 1, got \(2, 0, 72\)"),
    ({"qkv": _zeros(2, 5, 0)}, V, r"with N, D >= 1, got \(2, 5, 0\)"),
    ({"qkv": _zeros(2, 5, 72).to_sparse()}, T, r"qkv must be a dense \(strided\) tensor"),
    ({"num_heads": 5}, V, "num_heads must be a divisor of the width 24, got 5; choose"),
    ({"num_heads": 0}, V, "num_heads must be at least 1, got 0"),
    ({"num_heads": 2.0}, T, "num_heads must be an integer, got float"),
    ({"scale": "1"}, T, "scale must be a number, got str"),
    ({"scale": float("nan")}, V, "scale must be finite, got nan"),
    ({"backend": "fastest"}, V, "backend must be one of native"),
]

TABLE = [
    *(("inner_block", _inner_block, row) for row in INNER_X + ATTENTION + MLP),
    *(("inner_block", _inner_block, row) for row in _drop_path("drop_path_attn")),
    *(("inner_block", _inner_block, row) for row in _drop_path("drop_path_mlp")),
    *(("inner_attention", _inner_attention, row) for row in INNER_X + ATTENTION),
    *(("inner_attention", _inner_attention, row) for row in _drop_path("drop_path")),
    *(("inner_mlp", _inner_mlp, row) for row in INNER_X + MLP + _drop_path("drop_path")),
    *(("pixel_embed", _pixel_embed, row) for row in PIXEL_EMBED),
    *(("pixel_to_patch", _pixel_to_patch, row) for row in PIXEL_TO_PATCH),
    *(("outer_attention", _outer_attention, row) for row in OUTER_ATTENTION),
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("op", "call", "row"), TABLE)
def test_bad_input_is_refused_by_name(op: str, call: Callable, row: tuple) -> None:
    changes, error, message = row
    if changes.get("x") is NESTED:
        changes = {"x": torch.nested.nested_tensor([torch.zeros(S, C)] * P)}
    with pytest.raises(error, match=f"{op}: .*{message}"):
        call(**changes)


@pytest.mark.parametrize(
    "call",
    [
        _inner_block,
        _inner_attention,
        _inner_mlp,
        _pixel_embed,
        _pixel_to_patch,
        _outer_attention,
    ],
)
def test_the_unchanged_call_is_accepted(call: Callable) -> None:
    """The table above changes one thing at a time in calls that are good."""
    assert torch.isfinite(call()).all()


def _good_args(spec, device: str, differentiable: bool = False) -> dict:
    good = spec.make_args(spec.cases[1], torch.float32, device)
    reason = native.refusal(describe(spec.name, good)._replace(differentiable=differentiable))
    if reason is not None:
        pytest.skip(reason)
    return good


def check_forward_calls(namespace: str, spec: OpSpec, good: dict) -> None:
    """`<namespace>::<op>` refuses what its kernels would read out of bounds."""
    operator = library.operator(spec.name, namespace)
    flag = (False,) if spec.flag else ()
    tried = 0
    for name, value in good.items():
        if isinstance(value, torch.Tensor):
            for bad in (value[..., :0], value.flatten()[:1], value.to(torch.int32)):
                tried += 1
                with pytest.raises(RuntimeError, match=spec.name):
                    operator(*{**good, name: bad}.values(), *flag)
        elif isinstance(value, int) and not isinstance(value, bool):
            tried += 1
            with pytest.raises(RuntimeError, match=spec.name):
                operator(*{**good, name: 0}.values(), *flag)
    assert tried >= 3 * len(spec.weights)


def check_backward_calls(namespace: str, spec: OpSpec, good: dict) -> None:
    """The same of `<namespace>::<op>_backward`."""
    forward = library.operator(spec.name, namespace)
    out = forward(*good.values(), *((True,) if spec.flag else ()))
    out, second = out if spec.flag else (out, None)
    values = [out, *spec.backward_values(good, second), True, True]
    backward = library.operator(f"{spec.name}_backward", namespace)
    dx, dw = backward(*values)
    assert dx.isfinite().all() and dw.isfinite().all()  # of absent weights, too
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor) and value.numel():
            for bad in (value[..., :0], value.flatten()[:1], value.to(torch.int32)):
                with pytest.raises(RuntimeError, match=spec.name):
                    backward(*values[:index], bad, *values[index + 1 :])


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_direct_operator_calls_do_not_crash(spec: OpSpec, device: str) -> None:
    """torch.ops skips the Python checks: kernels re-check what they would read out of bounds."""
    check_forward_calls(library.NAMESPACE, spec, _good_args(spec, device))


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_direct_backward_calls_do_not_crash(spec: OpSpec, device: str) -> None:
    check_backward_calls(library.NAMESPACE, spec, _good_args(spec, device, differentiable=True))
