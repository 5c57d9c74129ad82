"""Attention among the patch tokens of an image (arXiv 2103.00112, Eqs. 1-2 inside Eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..spec import Args, OpSpec
from ._sampling import sampler


def outer_attention(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    """softmax(scale Q K^T) V, head by head: qkv (B, N, 3D), q, k and v side by side; (B, N, D)."""
    batch, num_tokens, width = qkv.shape
    dim = width // 3
    heads = qkv.reshape(batch, num_tokens, 3, num_heads, dim // num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, head_dim)
    attention = torch.softmax((q @ k.transpose(-2, -1)) * scale, dim=-1)
    return (attention @ v).transpose(1, 2).reshape(batch, num_tokens, dim)


def _output(args: Args) -> Tensor:
    qkv = args["qkv"]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


def _dims(args: Args) -> dict:
    _, num_tokens, width = args["qkv"].shape
    return {"N": num_tokens, "D": width // 3, "heads": args["num_heads"]}


def _macs(args: Args) -> int:
    batch, num_tokens, width = args["qkv"].shape
    return 2 * batch * num_tokens * num_tokens * (width // 3)


def _bytes_moved(args: Args) -> int:
    qkv = args["qkv"]
    return qkv.numel() * qkv.element_size() * 4 // 3


def make_args(case: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int = 0) -> dict:
    """Random arguments; keys of a case: B, N (rows, class token included), heads, head_dim."""
    draw = sampler(dtype, device, seed)
    head_dim = case["head_dim"]
    return {
        "qkv": draw(case["B"], case["N"], 3 * case["heads"] * head_dim),
        "num_heads": case["heads"],
        "scale": head_dim**-0.5,
    }


# Sizes of the models at 224 and 384 pixels, and odd ones around vectors, tiles and strips.
CASES = (
    {"B": 1, "N": 197, "heads": 2, "head_dim": 64},
    {"B": 2, "N": 7, "heads": 3, "head_dim": 10},
    {"B": 3, "N": 33, "heads": 2, "head_dim": 24},
    {"B": 1, "N": 577, "heads": 1, "head_dim": 64},
    {"B": 2, "N": 31, "heads": 2, "head_dim": 32},
    {"B": 1, "N": 65, "heads": 1, "head_dim": 96},
    {"B": 3, "N": 2, "heads": 1, "head_dim": 1},
    {"B": 2, "N": 50, "heads": 1, "head_dim": 100},
    {"B": 5, "N": 16, "heads": 4, "head_dim": 16},
    {"B": 0, "N": 5, "heads": 2, "head_dim": 8},
)

OUTER_ATTENTION = OpSpec(
    name="outer_attention",
    arguments="Tensor qkv, int num_heads, float scale",
    activation="qkv",
    weights=(),
    backward_arguments="Tensor qkv, int num_heads, float scale",
    reference=outer_attention,
    fake=_output,
    backward_values=lambda args, _: tuple(args.values()),
    weight_shapes=lambda args: [],
    dims=_dims,
    macs=_macs,
    bytes_moved=_bytes_moved,
    make_args=make_args,
    cases=CASES,
)
