"""Fused kernels for the inner transformer of TNT (Transformer in Transformer, arXiv 2103.00112)."""

from __future__ import annotations

from typing import Any, Optional

from .dispatch import BackendUnavailable, Explanation, describe, explain_call, use_backend
from .ops import (
    inner_attention,
    inner_block,
    inner_mlp,
    outer_attention,
    pixel_embed,
    pixel_to_patch,
)
from .ops.inner_block import inner_attention_args, inner_block_args, inner_mlp_args
from .ops.outer_attention import outer_attention_args
from .ops.pixel_embed import pixel_embed_args
from .ops.pixel_to_patch import pixel_to_patch_args
from .types import (
    InnerAttentionWeights,
    InnerBlockWeights,
    InnerMlpWeights,
    PixelToPatchWeights,
)

_CHECKED_ARGS = {
    "inner_attention": inner_attention_args,
    "inner_mlp": inner_mlp_args,
    "inner_block": inner_block_args,
    "outer_attention": outer_attention_args,
    "pixel_embed": pixel_embed_args,
    "pixel_to_patch": pixel_to_patch_args,
}


def explain(op: str, *args: Any, backend: Optional[str] = None, **kwargs: Any) -> Explanation:
    """Which backend a call takes, and why each other one was passed over; nothing is computed.

        print(explain("inner_block", x, weights, num_heads=4))

    Args:
        op: name of a public op; the rest are that op's own arguments.
    Returns: Explanation; `str()` of it is readable, `.backend` is the name.
    Raises: ValueError for an unknown op, and what the op itself raises for bad arguments.
    """
    if op not in _CHECKED_ARGS:
        raise ValueError(f"explain: op must be one of {', '.join(_CHECKED_ARGS)}; got {op!r}")
    return explain_call(describe(op, _CHECKED_ARGS[op](*args, **kwargs)), backend)


__all__ = [
    "BackendUnavailable",
    "Explanation",
    "InnerAttentionWeights",
    "InnerBlockWeights",
    "InnerMlpWeights",
    "PixelToPatchWeights",
    "explain",
    "inner_attention",
    "inner_block",
    "inner_mlp",
    "outer_attention",
    "pixel_embed",
    "pixel_to_patch",
    "use_backend",
]
