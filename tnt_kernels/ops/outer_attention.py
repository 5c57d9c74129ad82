"""outer_attention: attention among patch tokens, on q, k and v side by side (Eqs. 1-2)."""

from __future__ import annotations

from typing import Optional

from torch import Tensor

from .. import checks, dispatch
from ..reference import OUTER_ATTENTION


def outer_attention_args(qkv: Tensor, *, num_heads: int, scale: Optional[float] = None) -> dict:
    """Check the arguments of `outer_attention` and name them as the operator does."""
    op = "outer_attention"
    checks.check_activation(op, "qkv", qkv, 3, "(B, N, 3D)")
    _, num_tokens, width = qkv.shape
    if num_tokens == 0 or width == 0 or width % 3:
        remedy = "pass q, k and v of all heads side by side; only the batch may be empty"
        checks.fail(op, "qkv", "(B, N, 3D) with N, D >= 1", tuple(qkv.shape), remedy)
    checks.check_positive_int(op, "num_heads", num_heads)
    dim = width // 3
    if dim % num_heads:
        remedy = f"choose num_heads among the divisors of {dim}"
        checks.fail(op, "num_heads", f"a divisor of the width {dim}", num_heads, remedy)
    if scale is None:
        scale = (dim // num_heads) ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        remedy = "pass a float, such as head_dim ** -0.5"
        checks.fail(op, "scale", "a number", type(scale).__name__, remedy, TypeError)
    if not -float("inf") < scale < float("inf"):  # math.isfinite cannot be traced
        checks.fail(op, "scale", "finite", scale, "pass a float, such as head_dim ** -0.5")
    return dict(zip(OUTER_ATTENTION.argument_names, (qkv, num_heads, float(scale)), strict=True))


def outer_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    scale: Optional[float] = None,
    backend: Optional[str] = None,
) -> Tensor:
    """Multi-head attention among the tokens of each image.

        softmax(scale Q K^T) V, head by head                  (arXiv 2103.00112, Eqs. 1-2)

    On GPUs torch.nn.functional.scaled_dot_product_attention is the faster choice; this op is for
    CPUs, where it computes both directions from the projections as they lie in memory.

    Args:
        qkv: (B, N, 3D) float32 | bfloat16 | float16 | float64; q, k and v side by side, each with
            its heads side by side.
        num_heads: divides D.
        scale: of the scores; head_dim ** -0.5 if None.
        backend: name of the backend to force, see `use_backend`.
    Returns: (B, N, D), dtype of qkv (of autocast where that is on). Differentiable in qkv.
    Raises: ValueError (shape), TypeError (dtype), BackendUnavailable (forced backend).
    """
    args = outer_attention_args(qkv, num_heads=num_heads, scale=scale)
    return dispatch.run("outer_attention", args, backend)
