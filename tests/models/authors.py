"""The authors' module layout: names, shapes and order of operations, written in few lines."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        shape = (x.shape[0], *(1,) * (x.dim() - 1))
        return x * x.new_empty(shape).bernoulli_(keep) / keep


class Mlp(nn.Module):
    def __init__(self, dim: int, ratio: float, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.act = nn.GELU()
        self.fc2 = nn.Linear(int(dim * ratio), dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool, attn_drop: float, drop: float) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qk = nn.Linear(dim, 2 * dim, bias=bias)
        self.v = nn.Linear(dim, dim, bias=bias)
        self.attn_drop = nn.Dropout(attn_drop, inplace=True)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = (*x.shape[:2], self.num_heads, -1)
        q, k = (part.reshape(rows).transpose(1, 2) for part in self.qk(x).chunk(2, -1))
        scores = q @ k.mT * self.scale
        mixed = self.attn_drop(scores.softmax(-1)) @ self.v(x).reshape(rows).transpose(1, 2)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class SE(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 4
        layers = (nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(inplace=True))
        self.fc = nn.Sequential(*layers, nn.Linear(hidden, dim), nn.Tanh())

    def forward(self, m: Tensor) -> Tensor:
        return self.fc(m.mean(1, keepdim=True)) * m


class Block(nn.Module):
    def __init__(self, outer, inner, num_words, ratio, bias, drop, attn_drop, drop_path, se):
        super().__init__()
        (outer_dim, outer_heads), (inner_dim, inner_heads) = outer, inner
        self.inner_norm1 = nn.LayerNorm(inner_dim)
        self.inner_attn = Attention(inner_dim, inner_heads, bias, attn_drop, drop)
        self.inner_norm2 = nn.LayerNorm(inner_dim)
        self.inner_mlp = Mlp(inner_dim, ratio, drop)
        self.proj_norm1 = nn.LayerNorm(num_words * inner_dim)
        self.proj = nn.Linear(num_words * inner_dim, outer_dim, bias=False)
        self.proj_norm2 = nn.LayerNorm(outer_dim)
        self.outer_norm1 = nn.LayerNorm(outer_dim)
        self.outer_attn = Attention(outer_dim, outer_heads, bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.outer_norm2 = nn.LayerNorm(outer_dim)
        self.outer_mlp = Mlp(outer_dim, ratio, drop)
        self.se_layer = SE(outer_dim) if se else None

    def forward(self, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
        inner = inner + self.drop_path(self.inner_attn(self.inner_norm1(inner)))
        inner = inner + self.drop_path(self.inner_mlp(self.inner_norm2(inner)))
        rows = inner.reshape(outer.shape[0], outer.shape[1] - 1, -1)
        rows = self.proj_norm2(self.proj(self.proj_norm1(rows)))
        outer = torch.cat([outer[:, :1], outer[:, 1:] + rows], dim=1)
        outer = outer + self.drop_path(self.outer_attn(self.outer_norm1(outer)))
        m = self.outer_mlp(self.outer_norm2(outer))
        m = m if self.se_layer is None else m + self.se_layer(m)
        return inner, outer + self.drop_path(m)


class PixelEmbed(nn.Module):
    def __init__(self, img_size: int, patch: int, in_chans: int, dim: int, stride: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch, patch)
        self.num_patches = (img_size // patch) ** 2
        self.inner_dim = dim
        self.num_words = (patch // stride) ** 2
        self.unfold = nn.Unfold(kernel_size=self.patch_size, stride=self.patch_size)
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=7, padding=3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.unfold(x).transpose(1, 2).reshape(-1, x.shape[1], *self.patch_size)
        return self.proj(patches).flatten(2).transpose(1, 2)


class AuthorsTNT(nn.Module):
    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        outer_dim: int = 384,
        inner_dim: int = 24,
        depth: int = 12,
        outer_num_heads: int = 6,
        inner_num_heads: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        inner_stride: int = 4,
        se: int = 0,
    ) -> None:
        super().__init__()
        self.patch_embed = PixelEmbed(img_size, patch_size, in_chans, inner_dim, inner_stride)
        num_patches, num_words = self.patch_embed.num_patches, self.patch_embed.num_words
        self.proj_norm1 = nn.LayerNorm(num_words * inner_dim)
        self.proj = nn.Linear(num_words * inner_dim, outer_dim)
        self.proj_norm2 = nn.LayerNorm(outer_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, outer_dim))
        self.outer_tokens = nn.Parameter(torch.zeros(1, num_patches, outer_dim), False)
        self.outer_pos = nn.Parameter(torch.zeros(1, num_patches + 1, outer_dim))
        self.inner_pos = nn.Parameter(torch.zeros(1, num_words, inner_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        outer, inner = (outer_dim, outer_num_heads), (inner_dim, inner_num_heads)
        self.blocks = nn.ModuleList(
            Block(outer, inner, num_words, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, rate, se)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.norm = nn.LayerNorm(outer_dim)
        self.head = nn.Linear(outer_dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.patch_embed(x) + self.inner_pos
        rows = inner.reshape(x.shape[0], self.patch_embed.num_patches, -1)
        outer = self.proj_norm2(self.proj(self.proj_norm1(rows)))
        outer = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), outer], dim=1)
        outer = self.pos_drop(outer + self.outer_pos)
        for block in self.blocks:
            inner, outer = block(inner, outer)
        return self.head(self.norm(outer)[:, 0])
