"""Image to pixel embeddings: unfold, 7x7 projection, position (arXiv 2103.00112 Eqs. 4, 5, 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import Args, OpSpec
from ._sampling import sampler


def pixel_embed(
    images: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    pixel_pos: Optional[Tensor],
    mean: Optional[Tensor],
    std: Optional[Tensor],
    patch_h: int,
    patch_w: int,
    stride: int,
    unfold_first: bool,
) -> Tensor:
    """Y0 = Conv(patches) + E_pixel as (P, S, C): images (B, Cin, H, W), weight (C, Cin, k, k).

    `unfold_first` convolves each patch on its own, zero padded at the patch border (published
    weights); otherwise the whole image is convolved and then cut (timm's legacy dialect). uint8
    images are normalised first, so that the padding is zero and not a black pixel.
    """
    if images.dtype is torch.uint8:
        images = normalise(images, mean, std, weight.dtype)
    batch, in_chans, height, width = images.shape
    dim, padding = weight.shape[0], weight.shape[2] // 2
    grid_h, grid_w = height // patch_h, width // patch_w
    tile_h, tile_w = patch_h // stride, patch_w // stride
    weight = weight.to(images.dtype)
    bias = None if bias is None else bias.to(images.dtype)
    if unfold_first:
        patches = images.reshape(batch, in_chans, grid_h, patch_h, grid_w, patch_w)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, in_chans, patch_h, patch_w)
        tiles = F.conv2d(patches, weight, bias, stride, padding)  # (P, C, tile_h, tile_w)
    else:
        features = F.conv2d(images, weight, bias, stride, padding)
        tiles = features.reshape(batch, dim, grid_h, tile_h, grid_w, tile_w)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, dim, tile_h, tile_w)
    if pixel_pos is not None:
        tiles = tiles + pixel_pos.to(tiles.dtype)
    return tiles.flatten(2).transpose(1, 2).contiguous()  # (P, S, C)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(images / 255 - mean) / std, computed in float32 or better and rounded to `dtype`."""
    precise = torch.promote_types(dtype, torch.float32)
    mean, std = (values.to(precise)[:, None, None] for values in (mean, std))  # (Cin, 1, 1)
    return ((images.to(precise) / 255 - mean) / std).to(dtype)


def _tile(args: Args) -> tuple:
    return args["patch_h"] // args["stride"], args["patch_w"] // args["stride"]


def _output_shape(args: Args) -> tuple:
    batch, _, height, width = args["images"].shape
    num_patches = batch * (height // args["patch_h"]) * (width // args["patch_w"])
    tile_h, tile_w = _tile(args)
    return num_patches, tile_h * tile_w, args["weight"].shape[0]


def _weight_shapes(args: Args) -> list:
    dim = args["weight"].shape[0]
    return [tuple(args["weight"].shape), (dim,), (1, dim, *_tile(args))]


def _dims(args: Args) -> dict:
    dim, in_chans, kernel, _ = args["weight"].shape
    sizes = {"S": _output_shape(args)[1], "C": dim, "Cin": in_chans, "k": kernel}
    sizes.update({name: args[name] for name in ("patch_h", "patch_w", "stride")})
    return {**sizes, "uint8": int(args["images"].dtype is torch.uint8)}


def _macs(args: Args) -> int:
    num_patches, num_tokens, _ = _output_shape(args)
    return num_patches * num_tokens * args["weight"].numel()


def _bytes_moved(args: Args) -> int:
    num_patches, num_tokens, dim = _output_shape(args)
    images, out_bytes = args["images"], _typed_by(args).element_size()
    return images.numel() * images.element_size() + num_patches * num_tokens * dim * out_bytes


def _typed_by(args: Args) -> Tensor:
    """The tensor whose dtype the op computes in."""
    return args[PIXEL_EMBED.typed_by(args)]


def make_args(case: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int = 0) -> dict:
    """Random arguments; keys of a case: B, Cin, H, W, C, patch, stride and optional ones."""
    draw = sampler(dtype, device, seed)
    patch, stride, dim = case["patch"], case["stride"], case["C"]
    patch_h, patch_w = patch if isinstance(patch, tuple) else (patch, patch)
    kernel = case.get("k", 7)
    fan_in = case["Cin"] * kernel * kernel
    images = draw(case["B"], case["Cin"], case["H"], case["W"])
    mean = std = None
    if case.get("uint8", False):
        images = (images.float() * 64 + 128).clamp(0, 255).to(torch.uint8)
        mean = torch.linspace(0.5, 0.4, case["Cin"], device=device)
        std = torch.linspace(0.23, 0.5, case["Cin"], device=device)
    return {
        "images": images,
        "weight": draw(dim, case["Cin"], kernel, kernel, std=fan_in**-0.5),
        "bias": draw(dim, std=0.2) if case.get("bias", True) else None,
        "pixel_pos": draw(1, dim, patch_h // stride, patch_w // stride, std=0.2)
        if case.get("pos", True)
        else None,
        "mean": mean,
        "std": std,
        "patch_h": patch_h,
        "patch_w": patch_w,
        "stride": stride,
        "unfold_first": case.get("unfold_first", True),
    }


# The models' stem in both orders, the strides of Table 7, rectangles, one channel, no bias; uint8
# images in both orders and at all strides, of patches that 8 pixels fill and that they do not.
_UINT8 = {"B": 2, "Cin": 3, "H": 48, "W": 48, "uint8": True}
CASES = tuple(
    {"B": 2, "Cin": 3, "H": 48, "W": 32, "C": dim, "patch": 16, "stride": stride, "unfold_first": u}
    for dim, stride in ((24, 4), (40, 4), (6, 2), (96, 8))
    for u in (True, False)
) + (
    {"B": 1, "Cin": 1, "H": 16, "W": 16, "C": 24, "patch": 16, "stride": 4},
    {"B": 3, "Cin": 4, "H": 24, "W": 32, "C": 10, "patch": (8, 16), "stride": 4, "bias": False},
    {"B": 1, "Cin": 3, "H": 32, "W": 64, "C": 24, "patch": 32, "stride": 4, "pos": False},
    {"B": 1, "Cin": 3, "H": 64, "W": 32, "C": 24, "patch": 32, "stride": 8, "unfold_first": False},
    {"B": 2, "Cin": 2, "H": 16, "W": 24, "C": 24, "patch": 8, "stride": 2, "k": 3},
    {"B": 0, "Cin": 3, "H": 32, "W": 32, "C": 24, "patch": 16, "stride": 4},
    *(
        {**_UINT8, "C": dim, "patch": patch, "stride": stride, "unfold_first": u}
        for dim, patch, stride in ((24, 16, 4), (40, 16, 4), (6, 16, 2), (96, 16, 8), (10, 12, 4))
        for u in (True, False)
    ),
)

PIXEL_EMBED = OpSpec(
    name="pixel_embed",
    arguments=(
        "Tensor images, Tensor weight, Tensor? bias, Tensor? pixel_pos, Tensor? mean, Tensor? std, "
        "int patch_h, int patch_w, int stride, bool unfold_first"
    ),
    activation="images",
    weights=("weight", "bias", "pixel_pos"),
    backward_arguments=(
        "Tensor images, Tensor weight, Tensor? mean, Tensor? std, "
        "int patch_h, int patch_w, int stride, bool unfold_first"
    ),
    reference=pixel_embed,
    fake=lambda args: args["images"].new_empty(_output_shape(args), dtype=_typed_by(args).dtype),
    backward_values=lambda args, _: tuple(
        value for name, value in args.items() if name not in ("bias", "pixel_pos")
    ),
    weight_shapes=_weight_shapes,
    dims=_dims,
    macs=_macs,
    bytes_moved=_bytes_moved,
    make_args=make_args,
    cases=CASES,
)
