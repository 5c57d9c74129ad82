"""The modules of a TNT block; parameters live under timm's names (arXiv 2103.00112, Sec. 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn

from .flow import attend, block_flow
from .fusion import BlockParts, drop_path_factors


@dataclass(frozen=True)
class Dialect:
    """Where two families of trained weights disagree about Eqs. 8 and 13.

    Attributes:
        unfold_first: cut the image into patches before the convolution, which then sees zeros
            beyond every patch border.
        norm_per_token: normalise each pixel token before Eq. 8's projection, not the whole patch.
        norm_projection: normalise the projection before it is added; it then needs no bias.
    """

    unfold_first: bool
    norm_per_token: bool
    norm_projection: bool


PUBLISHED = Dialect(unfold_first=True, norm_per_token=False, norm_projection=True)
LEGACY = Dialect(unfold_first=False, norm_per_token=True, norm_projection=False)


class Attention(nn.Module):
    """Multi-head self-attention, Eqs. 1-2, with `qk` (2*dim rows, q first) apart from `v`.

    forward: x (B, N, dim), already normed, to (B, N, dim); the residual is the caller's.
    Raises: ValueError when num_heads does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"Attention: num_heads must divide the width {dim}, got {num_heads}; "
                f"choose one of its divisors"
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        return attend(self, x)


class Mlp(nn.Module):
    """Eq. 3 with dropout: x (..., dim) to (..., dim) through `hidden_dim` and `act_layer`."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **factory)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, **factory)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class SqueezeExcite(nn.Module):
    """Channel gates of Sec. 2.4: m * tanh(FC(relu(FC(LN(mean over tokens of m))))).

    forward: m (B, N, dim) to (B, N, dim). Keys are those of the authors' `se_layer`.
    """

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.LayerNorm(dim, **factory),
            nn.Linear(dim, dim // 4, **factory),
            nn.ReLU(),
            nn.Linear(dim // 4, dim, **factory),
            nn.Tanh(),
        )

    def forward(self, m: Tensor) -> Tensor:
        return m * self.fc(m.mean(dim=1, keepdim=True))


class DropPath(nn.Module):
    """Stochastic depth: drops whole rows of x's first axis while training."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        factors = drop_path_factors(self, x.shape[0], x)
        if factors is None:
            return x
        return x * factors.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class Block(nn.Module):
    """One TNT block, Eqs. 6-10.

    forward: pixels (P, S, dim) and patches (B, N+1, dim_out), P = B*N, to the same shapes.
    Raises: ValueError when heads do not divide a width.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_pixel: int,
        num_heads_in: int = 4,
        num_heads_out: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        dialect: Dialect = PUBLISHED,
        se: bool = False,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        attn = {"qkv_bias": qkv_bias, "attn_drop": attn_drop, "proj_drop": proj_drop, **factory}
        mlp = {"act_layer": act_layer, "drop": proj_drop, **factory}
        self.norm_in = norm_layer(dim, **factory)
        self.attn_in = Attention(dim, num_heads_in, **attn)
        self.norm_mlp_in = norm_layer(dim, **factory)
        self.mlp_in = Mlp(dim, 4 * dim, **mlp)  # 4 whatever mlp_ratio, as in timm
        self.norm1_proj = norm_layer(dim if dialect.norm_per_token else dim * num_pixel, **factory)
        self.proj = nn.Linear(dim * num_pixel, dim_out, bias=not dialect.norm_projection, **factory)
        self.norm2_proj = norm_layer(dim_out, **factory) if dialect.norm_projection else None
        self.norm_out = norm_layer(dim_out, **factory)
        self.attn_out = Attention(dim_out, num_heads_out, **attn)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm_mlp = norm_layer(dim_out, **factory)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio), **mlp)
        self.se_layer = SqueezeExcite(dim_out, **factory) if se else None

    def parts(self) -> BlockParts:
        """The modules that one forward reads."""
        return BlockParts(
            self.norm_in,
            self.attn_in,
            self.norm_mlp_in,
            self.mlp_in,
            self.norm1_proj,
            self.proj,
            self.norm2_proj,
            self.norm_out,
            self.attn_out,
            self.norm_mlp,
            self.mlp,
            self.drop_path,
            self.se_layer,
        )

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        return block_flow(self.parts(), pixels, patches)
