"""The three steps of a TNT block as functions of its modules (arXiv 2103.00112, Eqs. 6-10).

Our own blocks, timm's and the authors' all run through here: the caller says under which names
its modules live (`BlockParts`), and each step runs fused, or calls the modules where `fusion`
gives a reason to.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tnt_kernels import (
    InnerBlockWeights,
    PixelToPatchWeights,
    inner_block,
    outer_attention,
    pixel_to_patch,
)
from tnt_kernels.backends.native import cpu_isa
from tnt_kernels.checks import autocast_dtype

from .fusion import (
    BlockParts,
    active_dropout,
    attention_reason,
    drop_path_factors,
    fuses_gelu,
    inner_reason,
    plain,
    projection_reason,
    say_once,
)


def block_flow(parts: BlockParts, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """One TNT block: pixels (P, S, C), patches (B, N+1, D) to tensors of the same shapes."""
    pixels = inner_flow(parts, pixels)
    patches = add_pixels(parts.norm1_proj, parts.proj, parts.norm2_proj, pixels, patches)
    return pixels, outer_flow(parts, patches)


def inner_flow(parts: BlockParts, pixels: Tensor) -> Tensor:
    """Eqs. 6-7 on pixels (P, S, C)."""
    reason = inner_reason(parts)
    if reason is not None:
        say_once(f"the inner transformer runs unfused: {reason}")
        drop_path = parts.drop_path
        pixels = pixels + drop_path(parts.attn_in(parts.norm_in(pixels)))
        return pixels + drop_path(parts.mlp_in(parts.norm_mlp_in(pixels)))
    norm1, attn, norm2, mlp = parts.norm_in, parts.attn_in, parts.norm_mlp_in, parts.mlp_in
    weights = InnerBlockWeights(
        norm1.weight,
        norm1.bias,
        attn.qk.weight,
        attn.qk.bias,
        attn.v.weight,
        attn.v.bias,
        attn.proj.weight,
        attn.proj.bias,
        norm2.weight,
        norm2.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
    )
    num_patches = pixels.shape[0]
    return inner_block(
        pixels,
        weights,
        num_heads=attn.num_heads,
        eps=norm1.eps,
        drop_path_attn=drop_path_factors(parts.drop_path, num_patches, pixels),
        drop_path_mlp=drop_path_factors(parts.drop_path, num_patches, pixels),
    )


def add_pixels(
    norm1: nn.Module,
    proj: nn.Module,
    norm2: Optional[nn.Module],
    pixels: Tensor,
    patches: Tensor,
) -> Tensor:
    """Eq. 8: pixels (P, S, C) projected and added to rows 1..N of patches (B, N+1, D).

    The class token in row 0 is copied. A norm as wide as a token norms each token (legacy
    dialect), a norm as wide as a patch the whole patch.
    """
    reason = projection_reason(norm1, proj, norm2)
    if reason is None:
        weights = PixelToPatchWeights(
            norm1.weight,
            norm1.bias,
            proj.weight,
            proj.bias,
            None if norm2 is None else norm2.weight,
            None if norm2 is None else norm2.bias,
        )
        return pixel_to_patch(pixels, weights, patches, eps=norm1.eps)
    say_once(f"the projection of pixels to patches runs unfused: {reason}")
    rows = pixels.flatten(1)  # (P, S*C)
    per_token = pixels.shape[1] > 1 and tuple(norm1.normalized_shape) == (pixels.shape[2],)
    rows = norm1(pixels).flatten(1) if per_token else norm1(rows)
    rows = proj(rows)
    if norm2 is not None:
        rows = norm2(rows)
    rows = rows.reshape(patches.shape[0], -1, patches.shape[2])  # (B, N, D)
    return torch.cat([patches[:, :1], patches[:, 1:] + rows], dim=1)


def outer_flow(parts: BlockParts, patches: Tensor) -> Tensor:
    """Eqs. 9-10 on patches (B, N+1, D), a tensor that nobody else reads."""
    branch = attention(parts.attn_out, parts.norm_out(patches))
    patches = _add_residual(patches, parts.drop_path(branch))
    branch = feed_forward(parts.mlp, parts.norm_mlp(patches))
    branch = branch if parts.se is None else branch + parts.se(branch)
    return _add_residual(patches, parts.drop_path(branch))


def attention(attn: nn.Module, x: Tensor) -> Tensor:
    """Eqs. 1-2 on normed x (B, N, D); returns (B, N, D)."""
    reason = attention_reason(attn)
    if reason is not None:
        say_once(f"the outer attention runs unfused: {reason}")
        return attn(x)
    return attend(attn, x)


def attend(attn: nn.Module, x: Tensor) -> Tensor:
    """`attention` through the layers of `attn`, whatever they are."""
    rate = active_dropout(attn.attn_drop)
    x = x.to(_product_dtype(x))  # once for the layers of q, k and of v
    if rate == 0.0 and _outer_attention_pays(x, x.shape[-1] // attn.num_heads):
        mixed = outer_attention(_qkv(attn, x), num_heads=attn.num_heads, scale=attn.scale)
    else:
        mixed = _attend_by_pytorch(attn, x, rate)
    return attn.proj_drop(attn.proj(mixed))


def _outer_attention_pays(x: Tensor, head_dim: int) -> bool:
    """Whether our attention is faster than PyTorch's: measured, on CPUs only.

    In bfloat16 PyTorch's forward uses matrix instructions, ours only AMX and for whole steps of 32
    channels; but PyTorch's backward is three times as slow as ours.
    """
    if x.device.type != "cpu" or x.dtype is torch.float64:
        return False
    amx = head_dim % 32 == 0 and cpu_isa().endswith("amx")
    return x.dtype is not torch.bfloat16 or amx or torch.is_grad_enabled()


def _qkv(attn: nn.Module, x: Tensor) -> Tensor:
    """q, k and v of all heads side by side, (B, N, 3D)."""
    biases = [layer.bias for layer in (attn.qk, attn.v) if getattr(layer, "bias", None) is not None]
    if not (plain(attn.qk, nn.Linear) and plain(attn.v, nn.Linear)) or len(biases) == 1:
        return torch.cat([attn.qk(x), attn.v(x)], dim=-1)
    bias = torch.cat(biases) if biases else None
    return F.linear(x, torch.cat([attn.qk.weight, attn.v.weight]), bias)


def _attend_by_pytorch(attn: nn.Module, x: Tensor, dropout: float) -> Tensor:
    batch, num_tokens, dim = x.shape
    heads = (batch, num_tokens, attn.num_heads, dim // attn.num_heads)
    q, k = (part.view(heads).transpose(1, 2) for part in attn.qk(x).chunk(2, dim=-1))
    v = attn.v(x).view(heads).transpose(1, 2)  # q, k, v: (B, heads, N, head_dim)
    mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=attn.scale)
    return mixed.transpose(1, 2).reshape(batch, num_tokens, dim)


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """Eq. 3 on normed x (B, N, D), the GELU inside the first product where that can be."""
    dtype = _product_dtype(x)
    if not fuses_gelu(mlp, x, dtype):
        return mlp(x)
    weight, bias = mlp.fc1.weight, mlp.fc1.bias
    bias = None if bias is None else bias.to(dtype)
    hidden = torch.ops.mkldnn._linear_pointwise(
        x.to(dtype), weight.to(dtype), bias, "gelu", [], "none"
    )
    return mlp.fc2(hidden)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer works on `x`."""
    dtype = autocast_dtype(x.device.type)
    return x.dtype if dtype is None or x.dtype is torch.float64 else dtype


def _add_residual(patches: Tensor, branch: Tensor) -> Tensor:
    # without autograd nothing else holds `patches`, and the sum may take its memory
    return patches + branch if torch.is_grad_enabled() else patches.add_(branch)
