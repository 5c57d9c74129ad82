"""Inner transformer block, arXiv 2103.00112 Eqs. 6 and 7, and its two halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import Args, OpSpec
from ._sampling import drop_path_factors, empty, sampler

ATTENTION_WEIGHTS = (
    "norm1_weight",
    "norm1_bias",
    "qk_weight",
    "qk_bias",
    "v_weight",
    "v_bias",
    "proj_weight",
    "proj_bias",
)
MLP_WEIGHTS = ("norm2_weight", "norm2_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")

_ATTENTION = (
    "Tensor norm1_weight, Tensor norm1_bias, Tensor qk_weight, Tensor? qk_bias, "
    "Tensor v_weight, Tensor? v_bias, Tensor proj_weight, Tensor proj_bias"
)
_MLP = (
    "Tensor norm2_weight, Tensor norm2_bias, Tensor fc1_weight, Tensor fc1_bias, "
    "Tensor fc2_weight, Tensor fc2_bias"
)


def _add_residual(x: Tensor, branch: Tensor, drop_path: Optional[Tensor]) -> Tensor:
    if drop_path is not None:
        branch = branch * drop_path.to(branch.dtype)[:, None, None]
    return x + branch


def inner_attention(
    x: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    qk_weight: Tensor,
    qk_bias: Optional[Tensor],
    v_weight: Tensor,
    v_bias: Optional[Tensor],
    proj_weight: Tensor,
    proj_bias: Tensor,
    drop_path: Optional[Tensor],
    num_heads: int,
    eps: float,
) -> Tensor:
    """y' = x + drop_path * MSA(LN(x)), Eq. 6 with the attention of Eqs. 1-2; x is (P, S, C)."""
    num_patches, num_tokens, dim = x.shape
    head_dim = dim // num_heads
    norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight, proj_bias = (
        None if w is None else w.to(x.dtype)
        for w in (
            norm1_weight,
            norm1_bias,
            qk_weight,
            qk_bias,
            v_weight,
            v_bias,
            proj_weight,
            proj_bias,
        )
    )
    normed = F.layer_norm(x, (dim,), norm1_weight, norm1_bias, eps)
    qk = F.linear(normed, qk_weight, qk_bias)
    qk = qk.reshape(num_patches, num_tokens, 2, num_heads, head_dim)
    q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)  # each (P, heads, S, head_dim)
    v = F.linear(normed, v_weight, v_bias)
    v = v.reshape(num_patches, num_tokens, num_heads, head_dim).transpose(1, 2)
    attention = torch.softmax((q @ k.transpose(-2, -1)) * head_dim**-0.5, dim=-1)
    mixed = (attention @ v).transpose(1, 2).reshape(num_patches, num_tokens, dim)
    return _add_residual(x, F.linear(mixed, proj_weight, proj_bias), drop_path)


def inner_mlp(
    x: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    drop_path: Optional[Tensor],
    eps: float,
) -> Tensor:
    """y = x + drop_path * MLP(LN(x)), Eq. 7 with the MLP of Eq. 3 and erf GELU; x is (P, S, C)."""
    norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = (
        w.to(x.dtype)
        for w in (norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    )
    normed = F.layer_norm(x, (x.shape[-1],), norm2_weight, norm2_bias, eps)
    hidden = F.gelu(F.linear(normed, fc1_weight, fc1_bias))
    return _add_residual(x, F.linear(hidden, fc2_weight, fc2_bias), drop_path)


def inner_block(
    x: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    qk_weight: Tensor,
    qk_bias: Optional[Tensor],
    v_weight: Tensor,
    v_bias: Optional[Tensor],
    proj_weight: Tensor,
    proj_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    drop_path_attn: Optional[Tensor],
    drop_path_mlp: Optional[Tensor],
    num_heads: int,
    eps: float,
) -> Tensor:
    """Eqs. 6 and 7 one after the other; x is (P, S, C)."""
    mid = inner_attention(
        x,
        norm1_weight,
        norm1_bias,
        qk_weight,
        qk_bias,
        v_weight,
        v_bias,
        proj_weight,
        proj_bias,
        drop_path_attn,
        num_heads,
        eps,
    )
    return inner_mlp(
        mid,
        norm2_weight,
        norm2_bias,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        drop_path_mlp,
        eps,
    )


def _attention_shapes(args: Args) -> list:
    dim = args["x"].shape[2]
    return [(dim,), (dim,), (2 * dim, dim), (2 * dim,), (dim, dim), (dim,), (dim, dim), (dim,)]


def _mlp_shapes(args: Args) -> list:
    dim, hidden = args["x"].shape[2], args["fc1_weight"].shape[0]
    return [(dim,), (dim,), (hidden, dim), (hidden,), (dim, hidden), (dim,)]


def _attention_macs(args: Args) -> int:
    num_patches, num_tokens, dim = args["x"].shape
    return num_patches * num_tokens * (4 * dim * dim + 2 * num_tokens * dim)


def _mlp_macs(args: Args) -> int:
    num_patches, num_tokens, dim = args["x"].shape
    return num_patches * num_tokens * 2 * dim * args["fc1_weight"].shape[0]


def _read_and_write_x(args: Args) -> int:
    x = args["x"]
    return 2 * x.numel() * x.element_size()


def _dims(args: Args) -> dict:
    dims = {"S": args["x"].shape[1], "C": args["x"].shape[2]}
    if "num_heads" in args:
        dims["heads"] = args["num_heads"]
    if "fc1_weight" in args:
        dims["H"] = args["fc1_weight"].shape[0]
    return dims


def _like_x(args: Args) -> Tensor:
    x = args["x"]
    return x.new_empty(x.shape)


def _block_outputs(args: Args) -> tuple:
    out = _like_x(args)
    return out, (torch.empty_like(out) if args["save_mid"] else empty(out))


def make_args(case: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int = 0) -> dict:
    """Random arguments of `inner_block`; keys of a case: P, S, C, heads, H, bias, drop_path."""
    num_patches, num_tokens, dim = case["P"], case["S"], case["C"]
    hidden = case.get("H", 4 * dim)
    draw = sampler(dtype, device, seed)
    qkv_bias, drop_path = case.get("bias", False), case.get("drop_path", 0.0)
    return {
        "x": draw(num_patches, num_tokens, dim),
        "norm1_weight": 1 + draw(dim, std=0.2),
        "norm1_bias": draw(dim, std=0.2),
        "qk_weight": draw(2 * dim, dim, std=dim**-0.5),
        "qk_bias": draw(2 * dim, std=0.2) if qkv_bias else None,
        "v_weight": draw(dim, dim, std=dim**-0.5),
        "v_bias": draw(dim, std=0.2) if qkv_bias else None,
        "proj_weight": draw(dim, dim, std=dim**-0.5),
        "proj_bias": draw(dim, std=0.2),
        "norm2_weight": 1 + draw(dim, std=0.2),
        "norm2_bias": draw(dim, std=0.2),
        "fc1_weight": draw(hidden, dim, std=dim**-0.5),
        "fc1_bias": draw(hidden, std=0.2),
        "fc2_weight": draw(dim, hidden, std=hidden**-0.5),
        "fc2_bias": draw(dim, std=0.2),
        "drop_path_attn": drop_path_factors(num_patches, drop_path, device, seed + 1),
        "drop_path_mlp": drop_path_factors(num_patches, drop_path, device, seed + 2),
        "num_heads": case.get("heads", 1),
        "eps": 1e-5,
    }


def _make_attention_args(
    case: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int = 0
) -> dict:
    args = make_args(case, dtype, device, seed)
    args["drop_path"] = args["drop_path_attn"]
    return {name: args[name] for name in INNER_ATTENTION.argument_names}


def _make_mlp_args(case: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int = 0) -> dict:
    args = make_args(case, dtype, device, seed)
    args["drop_path"] = args["drop_path_mlp"]
    return {name: args[name] for name in INNER_MLP.argument_names}


# The four (S, C) of the paper's models and ablations (Tables 1, 6 and 7), odd numbers of patches
# around every grouping of sequences, all head counts, and one width that no model uses.
CASES = (
    {"P": 1, "S": 16, "C": 24, "heads": 4},
    {"P": 3, "S": 16, "C": 24, "heads": 1, "bias": True},
    {"P": 7, "S": 16, "C": 24, "heads": 2, "drop_path": 0.4},
    {"P": 197, "S": 16, "C": 24, "heads": 8, "bias": True, "drop_path": 0.4},
    {"P": 1, "S": 16, "C": 40, "heads": 4},
    {"P": 7, "S": 16, "C": 40, "heads": 8, "bias": True, "drop_path": 0.4},
    {"P": 61, "S": 16, "C": 40, "heads": 2},
    {"P": 1, "S": 64, "C": 6, "heads": 2},
    {"P": 5, "S": 64, "C": 6, "heads": 1, "bias": True, "drop_path": 0.4},
    {"P": 3, "S": 4, "C": 96, "heads": 4},
    {"P": 37, "S": 4, "C": 96, "heads": 8, "bias": True, "drop_path": 0.4},
    {"P": 9, "S": 16, "C": 20, "heads": 5, "H": 50},
    {"P": 0, "S": 16, "C": 24, "heads": 4},
)
_MLP_CASES = tuple({k: v for k, v in case.items() if k not in ("heads", "bias")} for case in CASES)

INNER_ATTENTION = OpSpec(
    name="inner_attention",
    arguments=f"Tensor x, {_ATTENTION}, Tensor? drop_path, int num_heads, float eps",
    activation="x",
    weights=ATTENTION_WEIGHTS,
    backward_arguments=f"Tensor x, {_ATTENTION}, Tensor? drop_path, int num_heads, float eps",
    reference=inner_attention,
    fake=_like_x,
    backward_values=lambda args, _: tuple(args.values()),
    weight_shapes=_attention_shapes,
    dims=_dims,
    macs=_attention_macs,
    bytes_moved=_read_and_write_x,
    make_args=_make_attention_args,
    cases=CASES,
)

INNER_MLP = OpSpec(
    name="inner_mlp",
    arguments=f"Tensor x, {_MLP}, Tensor? drop_path, float eps",
    activation="x",
    weights=MLP_WEIGHTS,
    backward_arguments=f"Tensor x, {_MLP}, Tensor? drop_path, float eps",
    reference=inner_mlp,
    fake=_like_x,
    backward_values=lambda args, _: tuple(args.values()),
    weight_shapes=_mlp_shapes,
    dims=_dims,
    macs=_mlp_macs,
    bytes_moved=_read_and_write_x,
    make_args=_make_mlp_args,
    cases=_MLP_CASES,
)

_OPTIONS = "Tensor? drop_path_attn, Tensor? drop_path_mlp, int num_heads, float eps"

INNER_BLOCK = OpSpec(
    name="inner_block",
    arguments=f"Tensor x, {_ATTENTION}, {_MLP}, {_OPTIONS}",
    flag="save_mid",
    activation="x",
    weights=ATTENTION_WEIGHTS + MLP_WEIGHTS,
    backward_arguments=f"Tensor x, Tensor mid, {_ATTENTION}, {_MLP}, {_OPTIONS}",
    reference=inner_block,
    fake=_block_outputs,
    backward_values=lambda args, mid: (args["x"], mid, *tuple(args.values())[1:]),
    weight_shapes=lambda args: _attention_shapes(args) + _mlp_shapes(args),
    dims=_dims,
    macs=lambda args: _attention_macs(args) + _mlp_macs(args),
    bytes_moved=_read_and_write_x,
    make_args=make_args,
    cases=CASES,
)
