"""Weight bundles of the public ops, in the order in which the operators take them.

Letters: P patches, S pixel tokens per patch, C inner width, H hidden width of the inner MLP,
D outer width. Every tensor is float32 or of the activations' dtype.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from torch import Tensor


class InnerAttentionWeights(NamedTuple):
    """LayerNorm, projections and output projection of Eq. 6."""

    norm1_weight: Tensor  # (C,)
    norm1_bias: Tensor  # (C,)
    qk_weight: Tensor  # (2C, C), the rows of q first
    qk_bias: Optional[Tensor]  # (2C,)
    v_weight: Tensor  # (C, C)
    v_bias: Optional[Tensor]  # (C,)
    proj_weight: Tensor  # (C, C)
    proj_bias: Tensor  # (C,)


class InnerMlpWeights(NamedTuple):
    """LayerNorm and the two linear layers of Eq. 7."""

    norm2_weight: Tensor  # (C,)
    norm2_bias: Tensor  # (C,)
    fc1_weight: Tensor  # (H, C)
    fc1_bias: Tensor  # (H,)
    fc2_weight: Tensor  # (C, H)
    fc2_bias: Tensor  # (C,)


class InnerBlockWeights(NamedTuple):
    """Everything that the inner transformer block of Eqs. 6-7 owns."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    qk_weight: Tensor
    qk_bias: Optional[Tensor]
    v_weight: Tensor
    v_bias: Optional[Tensor]
    proj_weight: Tensor
    proj_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


class PixelToPatchWeights(NamedTuple):
    """Norms and projection of Eq. 8.

    `norm1_weight` of length S*C normalises the whole patch (published weights), of length C each
    pixel token (timm's legacy dialect). `norm2_*` are absent in the legacy dialect.
    """

    norm1_weight: Tensor  # (S*C,) or (C,)
    norm1_bias: Tensor
    proj_weight: Tensor  # (D, S*C)
    proj_bias: Optional[Tensor] = None  # (D,)
    norm2_weight: Optional[Tensor] = None  # (D,)
    norm2_bias: Optional[Tensor] = None  # (D,)
