"""inner_block (Eqs. 6-7) and its halves inner_attention and inner_mlp."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from .. import checks, dispatch
from ..reference import INNER_ATTENTION, INNER_BLOCK, INNER_MLP
from ..types import InnerAttentionWeights, InnerBlockWeights, InnerMlpWeights

_OPTIONAL = ("qk_bias", "v_bias")


def _check_x(op: str, x: Any) -> None:
    checks.check_activation(op, "x", x, 3, "(P, S, C)")
    if x.shape[1] == 0 or x.shape[2] == 0:
        remedy = "only the number of patches may be zero"
        checks.fail(op, "x", "(P, S, C) with S, C >= 1", tuple(x.shape), remedy)


def _check_attention(op: str, x: Tensor, weights: tuple, num_heads: Any) -> None:
    dim = x.shape[2]
    checks.check_heads(op, num_heads, dim)
    shapes = INNER_ATTENTION.weight_shapes({"x": x})
    remedy = f"pass weights of inner width {dim} or an x of their width"
    checks.check_shapes(op, weights, INNER_ATTENTION.weights, shapes, _OPTIONAL, x, remedy)


def _check_mlp(op: str, x: Tensor, weights: tuple) -> None:
    dim, fc1_weight = x.shape[2], weights[2]
    remedy = f"pass weights of inner width {dim} or an x of their width"
    if not isinstance(fc1_weight, Tensor) or fc1_weight.dim() != 2 or fc1_weight.shape[0] == 0:
        got = tuple(getattr(fc1_weight, "shape", ())) or type(fc1_weight).__name__
        checks.fail(op, "fc1_weight", f"a tensor (H, {dim}) with H >= 1", got, remedy)
    shapes = INNER_MLP.weight_shapes({"x": x, "fc1_weight": fc1_weight})
    checks.check_shapes(op, weights, INNER_MLP.weights, shapes, (), x, remedy)


def inner_attention_args(
    x: Tensor,
    weights: InnerAttentionWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    drop_path: Optional[Tensor] = None,
) -> dict:
    """Check the arguments of `inner_attention` and name them as the operator does."""
    op = "inner_attention"
    _check_x(op, x)
    checks.check_bundle(op, weights, InnerAttentionWeights)
    _check_attention(op, x, weights, num_heads)
    checks.check_drop_path(op, "drop_path", drop_path, x)
    checks.check_eps(op, eps)
    values = (x, *weights, drop_path, num_heads, float(eps))
    return dict(zip(INNER_ATTENTION.argument_names, values))


def inner_attention(
    x: Tensor,
    weights: InnerAttentionWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    drop_path: Optional[Tensor] = None,
    backend: Optional[str] = None,
) -> Tensor:
    """Attention half of the inner transformer block, one launch for every patch of the batch.

        y' = x + drop_path * MSA(LN(x))                       (arXiv 2103.00112, Eqs. 1-2 and 6)

    Args:
        x: (P, S, C) float32 | bfloat16 | float16 | float64, any strides; P = B*N patches of S
            pixel tokens.
        weights: tensors float32 or of x's dtype; see InnerAttentionWeights for the shapes.
        num_heads: heads of C / num_heads channels each; the softmax scale is head_dim ** -0.5.
        eps: added to the variance in LN.
        drop_path: (P,) float32 factors of the branch, 0 or 1 / keep_prob for each patch.
        backend: name of the backend to force, see `use_backend`.
    Returns: (P, S, C), dtype of x (of autocast where that is on). Differentiable in x and weights.
    Raises: ValueError (shape, device), TypeError (dtype), BackendUnavailable (forced backend).
    """
    args = inner_attention_args(x, weights, num_heads=num_heads, eps=eps, drop_path=drop_path)
    return dispatch.run("inner_attention", args, backend)


def inner_mlp_args(
    x: Tensor,
    weights: InnerMlpWeights,
    *,
    eps: float = 1e-5,
    drop_path: Optional[Tensor] = None,
) -> dict:
    """Check the arguments of `inner_mlp` and name them as the operator does."""
    op = "inner_mlp"
    _check_x(op, x)
    checks.check_bundle(op, weights, InnerMlpWeights)
    _check_mlp(op, x, weights)
    checks.check_drop_path(op, "drop_path", drop_path, x)
    checks.check_eps(op, eps)
    return dict(zip(INNER_MLP.argument_names, (x, *weights, drop_path, float(eps))))


def inner_mlp(
    x: Tensor,
    weights: InnerMlpWeights,
    *,
    eps: float = 1e-5,
    drop_path: Optional[Tensor] = None,
    backend: Optional[str] = None,
) -> Tensor:
    """MLP half of the inner transformer block.

        y = x + drop_path * (GELU(LN(x) W1 + b1) W2 + b2)     (arXiv 2103.00112, Eqs. 3 and 7)

    Args:
        x: (P, S, C) float32 | bfloat16 | float16 | float64, any strides.
        weights: tensors float32 or of x's dtype; see InnerMlpWeights. The hidden width H is free.
        eps: added to the variance in LN.
        drop_path: (P,) float32 factors of the branch, 0 or 1 / keep_prob for each patch.
        backend: name of the backend to force, see `use_backend`.
    Returns: (P, S, C), dtype of x (of autocast where that is on). Differentiable in x and weights.
    Raises: ValueError (shape, device), TypeError (dtype), BackendUnavailable (forced backend).
    """
    args = inner_mlp_args(x, weights, eps=eps, drop_path=drop_path)
    return dispatch.run("inner_mlp", args, backend)


def inner_block_args(
    x: Tensor,
    weights: InnerBlockWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    drop_path_attn: Optional[Tensor] = None,
    drop_path_mlp: Optional[Tensor] = None,
) -> dict:
    """Check the arguments of `inner_block` and name them as the operator does."""
    op = "inner_block"
    _check_x(op, x)
    checks.check_bundle(op, weights, InnerBlockWeights)
    num_attention = len(INNER_ATTENTION.weights)
    _check_attention(op, x, weights[:num_attention], num_heads)
    _check_mlp(op, x, weights[num_attention:])
    checks.check_drop_path(op, "drop_path_attn", drop_path_attn, x)
    checks.check_drop_path(op, "drop_path_mlp", drop_path_mlp, x)
    checks.check_eps(op, eps)
    values = (x, *weights, drop_path_attn, drop_path_mlp, num_heads, float(eps))
    return dict(zip(INNER_BLOCK.argument_names, values))


def inner_block(
    x: Tensor,
    weights: InnerBlockWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    drop_path_attn: Optional[Tensor] = None,
    drop_path_mlp: Optional[Tensor] = None,
    backend: Optional[str] = None,
) -> Tensor:
    """The whole inner transformer block of TNT on every patch of the batch.

        y' = x + MSA(LN(x));  y = y' + MLP(LN(y'))            (arXiv 2103.00112, Eqs. 6-7)

    Args:
        x: (P, S, C) float32 | bfloat16 | float16 | float64, any strides; P = B*N patches of S
            pixel tokens.
        weights: tensors float32 or of x's dtype; see InnerBlockWeights. The hidden width is free.
        num_heads: heads of C / num_heads channels each; the softmax scale is head_dim ** -0.5.
        eps: added to the variance in both LN.
        drop_path_attn, drop_path_mlp: (P,) float32 factors of the two branches, 0 or
            1 / keep_prob for each patch.
        backend: name of the backend to force, see `use_backend`.
    Returns: (P, S, C), dtype of x (of autocast where that is on). Differentiable in x and weights.
    Raises: ValueError (shape, device), TypeError (dtype), BackendUnavailable (forced backend).
    """
    args = inner_block_args(
        x,
        weights,
        num_heads=num_heads,
        eps=eps,
        drop_path_attn=drop_path_attn,
        drop_path_mlp=drop_path_mlp,
    )
    return dispatch.run("inner_block", args, backend)
