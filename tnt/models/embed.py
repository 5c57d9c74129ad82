"""Image to pixel embeddings (arXiv 2103.00112, Eqs. 4, 5 and 13) and their geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from tnt_kernels import pixel_embed
from tnt_kernels.reference.pixel_embed import normalise

from .blocks import PUBLISHED, Dialect
from .fusion import embed_reason, say_once

Size = Union[int, tuple[int, int]]
PerChannel = Union[float, Sequence[float]]


def to_pair(name: str, value: Size) -> tuple[int, int]:
    """(value, value) of an integer, or the pair itself.

    Raises: ValueError unless `value` is one or two positive integers.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ValueError(
            f"TNT: {name} must be a positive integer or a pair of them, got {value!r}; "
            f"pass 224 or (224, 224), say"
        )
    return pair


def per_channel(name: str, value: PerChannel, channels: int) -> tuple[float, ...]:
    """One number for each channel, from that many or from one for all.

    Raises: ValueError unless they are finite numbers, and positive when `name` is "std".
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    values = values * channels if len(values) == 1 else values
    numbers = all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
    if len(values) != channels or not numbers or (name == "std" and min(values) <= 0):
        kind = "positive number" if name == "std" else "finite number"
        raise ValueError(
            f"TNT: {name} must be a {kind} or one for each of the {channels} channels, "
            f"got {value!r}; pass those of the images scaled to [0, 1], such as 0.5"
        )
    return tuple(map(float, values))


class PixelEmbed(nn.Module):
    """Unfold, 7x7 projection and position of all pixel tokens.

    forward: images (B, in_chans, H, W) of exactly `img_size` and pixel_pos (1, C, h, w) or None
    to (B*N, h*w, C), patches row by row, tokens row by row inside a patch. uint8 images are
    normalised by the buffers `mean` and `std`, which are no part of the state dict.
    Raises: ValueError when the images are not of that shape, or the sizes do not fit together.
    """

    mean: Tensor  # (in_chans,) float32
    std: Tensor

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        in_dim: int = 48,
        stride: int = 4,
        dialect: Dialect = PUBLISHED,
        mean: PerChannel = 0.5,
        std: PerChannel = 0.5,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.img_size = to_pair("img_size", img_size)
        self.patch_size = to_pair("patch_size", patch_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        if self.num_patches == 0:
            raise ValueError(
                f"TNT: img_size must hold at least one patch of {self.patch_size}, "
                f"got {self.img_size}; pass larger images or a smaller patch_size"
            )
        self.in_dim = in_dim
        self.dialect = dialect
        self.new_patch_size = [math.ceil(side / stride) for side in self.patch_size]
        self.proj = nn.Conv2d(in_chans, in_dim, kernel_size=7, padding=3, stride=stride, **factory)
        self.set_normalization(mean, std)

    def set_normalization(self, mean: PerChannel, std: PerChannel) -> None:
        """Normalise uint8 images by `mean` and `std`, see TNT."""
        channels = self.proj.in_channels
        self.normalization = {
            "mean": per_channel("mean", mean, channels),
            "std": per_channel("std", std, channels),
        }
        self._hold_normalization()

    def _hold_normalization(self) -> None:
        for name, values in self.normalization.items():
            tensor = torch.tensor(values, dtype=torch.float32, device=self.proj.weight.device)
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PixelEmbed:
        # anew wherever the model goes: float32 also in a 16-bit model, and also after to_empty()
        super()._apply(fn, recurse)
        self._hold_normalization()
        return self

    @property
    def legacy(self) -> bool:
        """timm's name for the order of cutting and convolving."""
        return not self.dialect.unfold_first

    def feat_ratio(self, as_scalar: bool = True) -> Size:
        """Image pixels per patch: the larger side, or both."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def forward(self, images: Tensor, pixel_pos: Optional[Tensor] = None) -> Tensor:
        expected = (self.proj.in_channels, *self.img_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            channels, height, width = expected
            raise ValueError(
                f"TNT: images must be (B, {channels}, {height}, {width}), got "
                f"{tuple(images.shape)}; resize them or build the model with img_size and in_chans"
            )
        statistics = (self.mean, self.std) if images.dtype is torch.uint8 else None
        return embed_pixels(
            images,
            self.proj,
            pixel_pos,
            self.patch_size,
            self.dialect.unfold_first,
            statistics=statistics,
        )


def embed_pixels(
    images: Tensor,
    conv: nn.Module,
    pixel_pos: Optional[Tensor],
    patch_size: tuple[int, int],
    unfold_first: bool,
    unfold: Optional[nn.Module] = None,
    statistics: Optional[tuple[Tensor, Tensor]] = None,
) -> Tensor:
    """Y0 = Conv(patches) + E_pixel (Eq. 13); images (B, Cin, H, W) to (B*N, S, C).

    Borders that fill no patch are ignored. `unfold` is the module that fusion leaves out, if any;
    `statistics` the mean and std (Cin,) of uint8 images.
    """
    if images.dtype is torch.uint8 and statistics is None:
        raise TypeError(
            "TNT: images must be floating and normalised where timm or the authors' code built the "
            "model, got uint8; normalise them, or build the model with tnt.TNT"
        )
    stride, (patch_h, patch_w) = conv.stride[0], patch_size
    height, width = images.shape[2] // patch_h * patch_h, images.shape[3] // patch_w * patch_w
    cut = (height, width) != tuple(images.shape[2:])
    reason = embed_reason(conv, unfold)
    if reason is None and (patch_h % stride or patch_w % stride):
        reason = f"stride {stride} does not divide the patch size {patch_size}"
    if reason is None and cut and not unfold_first:
        reason = f"the convolution sees borders beyond the {height}x{width} that patches fill"
    if reason is not None:
        say_once(f"the pixel embedding runs unfused: {reason}")
        if statistics is not None:
            images = normalise(images, *statistics, conv.weight.dtype)
        return _embed_plain(images, conv, pixel_pos, patch_size, unfold_first)
    mean, std = (None, None) if statistics is None else statistics
    return pixel_embed(
        images[:, :, :height, :width] if cut else images,
        conv.weight,
        conv.bias,
        pixel_pos,
        mean=mean,
        std=std,
        patch_size=patch_size,
        stride=stride,
        unfold_first=unfold_first,
    )


def _embed_plain(
    images: Tensor,
    conv: nn.Module,
    pixel_pos: Optional[Tensor],
    patch_size: tuple[int, int],
    unfold_first: bool,
) -> Tensor:
    if unfold_first:
        tiles = conv(_cut(images, *patch_size))  # (P, C, h, w)
    else:
        stride = conv.stride[0]
        tiles = _cut(conv(images), *(math.ceil(side / stride) for side in patch_size))
    if pixel_pos is not None:
        tiles = tiles + pixel_pos
    return tiles.flatten(2).transpose(1, 2)  # (P, S, C)


def _cut(x: Tensor, tile_h: int, tile_w: int) -> Tensor:
    """(B, C, H, W) to (B*N, C, tile_h, tile_w), without what is left over at the borders."""
    batch, channels, height, width = x.shape
    grid_h, grid_w = height // tile_h, width // tile_w
    x = x[:, :, : grid_h * tile_h, : grid_w * tile_w]
    x = x.reshape(batch, channels, grid_h, tile_h, grid_w, tile_w)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, tile_h, tile_w)
