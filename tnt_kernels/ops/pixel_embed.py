"""pixel_embed: unfold, 7x7 projection and position in one op (Eqs. 4, 5, 13)."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import checks, dispatch
from ..reference import PIXEL_EMBED


def _pair(op: str, value: Any) -> tuple:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        checks.fail(op, "patch_size", "one or two integers", value, "pass 16 or (16, 16)")
    for side in pair:
        checks.check_positive_int(op, "patch_size", side)
    return pair


def _check_normalisation(mean: Any, std: Any, images: Tensor) -> None:
    """`mean` and `std`: (Cin,) float32 beside uint8 images, absent beside others."""
    op = "pixel_embed"
    for name, values in (("mean", mean), ("std", std)):
        if images.dtype is not torch.uint8:
            if values is not None:
                remedy = "floating images come normalised: leave it out, or pass uint8 images"
                dtype = str(images.dtype).removeprefix("torch.")
                checks.fail(op, name, f"None for {dtype} images", "a tensor", remedy)
            continue
        remedy = "pass one float32 value per channel, of images scaled to [0, 1]"
        if values is None:
            checks.fail(op, name, "given with uint8 images", "None", remedy)
        if isinstance(values, Tensor) and values.requires_grad:
            remedy = "it is not differentiable: pass .detach()"
            checks.fail(op, name, "a tensor without gradient", "requires_grad=True", remedy)
        checks.check_float32(op, name, values, (images.shape[1],), images, remedy)


def pixel_embed_args(
    images: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    pixel_pos: Optional[Tensor] = None,
    *,
    mean: Optional[Tensor] = None,
    std: Optional[Tensor] = None,
    patch_size: Union[int, tuple] = 16,
    stride: int = 4,
    unfold_first: bool = True,
) -> dict:
    """Check the arguments of `pixel_embed` and name them as the operator does."""
    op = "pixel_embed"
    dtypes = (*checks.FLOATING, torch.uint8)
    checks.check_activation(op, "images", images, 4, "(B, Cin, H, W)", dtypes)
    patch_h, patch_w = _pair(op, patch_size)
    checks.check_positive_int(op, "stride", stride)
    _, in_chans, height, width = images.shape
    if in_chans == 0 or height == 0 or width == 0:
        remedy = "only the batch may be empty"
        checks.fail(op, "images", "(B, Cin, H, W) with Cin, H, W >= 1", tuple(images.shape), remedy)
    if height % patch_h or width % patch_w:
        expected = f"of a height and width that are multiples of the patch size {patch_h}x{patch_w}"
        checks.fail(op, "images", expected, f"{height}x{width}", "resize, crop or pad the images")
    if patch_h % stride or patch_w % stride:
        expected = f"a divisor of the patch size {patch_h}x{patch_w}"
        checks.fail(op, "stride", expected, stride, "choose a stride that divides the patch")
    remedy = "pass the weight of a Conv2d from the images' channels with a square, odd kernel"
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[0] == 0:
        got = tuple(getattr(weight, "shape", ())) or type(weight).__name__
        checks.fail(op, "weight", "a tensor (C, Cin, k, k) with C >= 1", got, remedy)
    dim, kernel = weight.shape[0], weight.shape[2]
    like = images
    if images.dtype is torch.uint8:  # then the weight says the dtype that all is computed in
        checks.check_dtype(op, "weight", weight, checks.FLOATING)
        checks.check_device(op, "weight", weight, images)
        like = weight
    checks.check_weight(op, "weight", weight, (dim, in_chans, kernel, kernel), like, remedy)
    if kernel % 2 == 0:
        checks.fail(op, "weight", "of an odd kernel size", f"{kernel}x{kernel}", remedy)
    if bias is not None:
        remedy = "pass one value per output channel"
        checks.check_weight(op, "bias", bias, (dim,), like, remedy)
    if pixel_pos is not None:
        shape = (1, dim, patch_h // stride, patch_w // stride)
        remedy = "pass the positions of one patch, shared by all"
        checks.check_weight(op, "pixel_pos", pixel_pos, shape, like, remedy)
    _check_normalisation(mean, std, images)
    values = (images, weight, bias, pixel_pos, mean, std)
    values += (patch_h, patch_w, stride, bool(unfold_first))
    return dict(zip(PIXEL_EMBED.argument_names, values))


def pixel_embed(
    images: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    pixel_pos: Optional[Tensor] = None,
    *,
    mean: Optional[Tensor] = None,
    std: Optional[Tensor] = None,
    patch_size: Union[int, tuple] = 16,
    stride: int = 4,
    unfold_first: bool = True,
    backend: Optional[str] = None,
) -> Tensor:
    """Pixel embeddings of every patch: unfold, convolution and position in one pass.

        Y0 = Conv(Unfold(images)) + E_pixel                   (arXiv 2103.00112, Eqs. 4, 5 and 13)

    uint8 images are read as they are, and (images / 255 - mean) / std takes their place: a fourth
    of the memory traffic of float32 images, and no normalised copy.

    Args:
        images: (B, Cin, H, W) float32 | bfloat16 | float16 | float64 | uint8; H, W multiples of the
            patch.
        weight: (C, Cin, k, k), k odd; the images are zero padded by k // 2.
        bias: (C,) or None.
        pixel_pos: (1, C, h, w) or None, with h, w = patch size / stride; shared by all patches.
        mean, std: (Cin,) float32, of images scaled to [0, 1], as torchvision's Normalize has them;
            required with uint8 images, None with others. They get no gradient.
        patch_size: side of a patch in pixels, or (height, width).
        stride: of the convolution; divides the patch size.
        unfold_first: True convolves each patch on its own, so that zero padding happens at every
            patch border (the published weights); False convolves the whole image and then cuts it
            (timm's tnt_s_legacy).
        backend: name of the backend to force, see `use_backend`.
    Returns: (P, S, C), P = B*N patches row by row, S = h*w tokens row by row, dtype of images or,
        where those are uint8, of weight (of autocast where that is on). Differentiable in floating
        images, weight, bias and pixel_pos.
    Raises: ValueError (shape, device, mean or std absent), TypeError (dtype), BackendUnavailable
        (forced backend).
    """
    args = pixel_embed_args(
        images,
        weight,
        bias,
        pixel_pos,
        mean=mean,
        std=std,
        patch_size=patch_size,
        stride=stride,
        unfold_first=unfold_first,
    )
    return dispatch.run("pixel_embed", args, backend)
