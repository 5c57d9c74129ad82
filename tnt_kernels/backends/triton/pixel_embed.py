"""pixel_embed on Triton: unfold, convolution and position (arXiv 2103.00112, Eqs. 4, 5 and 13).

The convolution is a product of gathered windows (tokens, taps) with the weight (C, taps). Taps are
ordered as in the weight, (channel, row, column), with the columns of a row padded to a power of
two.
"""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gradients import sum_partials
from .launch import architecture, launch, power_of_two, precision
from .tiles import clamped_rows, dot, load_existing_rows, load_vector, store_rows
from .tilings import gradient_programs, pixel_embed_tiling


@triton.jit
def window_taps(
    first_row, IN_CHANS: tl.constexpr, KERNEL: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr
):
    """Row (channel and ky together) and column of BLOCK taps, and which of them exist."""
    taps = tl.arange(0, BLOCK)
    rows, columns = first_row + taps // ROW, taps % ROW
    return rows, columns, (rows < IN_CHANS * KERNEL) & (columns < KERNEL)


@triton.jit
def gather_windows(
    images_ptr,
    mean_ptr,
    std_ptr,
    tokens,
    grid_h,
    grid_w,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    rows,
    columns,
    valid,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    UNFOLD_FIRST: tl.constexpr,
):
    """The pixels under each tap of each token's window, zero beyond the patch or the image.

    With `mean_ptr` and `std_ptr` they are bytes, and normalised; zeros stay.
    """
    TILE_W: tl.constexpr = PATCH_W // STRIDE
    S: tl.constexpr = PATCH_H // STRIDE * TILE_W
    patch, token = tokens // S, tokens % S
    patch_y = patch // grid_w % grid_h * PATCH_H
    patch_x = patch % grid_w * PATCH_W
    y = (patch_y + token // TILE_W * STRIDE - KERNEL // 2)[:, None] + (rows % KERNEL)[None, :]
    x = (patch_x + token % TILE_W * STRIDE - KERNEL // 2)[:, None] + columns[None, :]
    if UNFOLD_FIRST:
        inside_y = (y >= patch_y[:, None]) & (y < patch_y[:, None] + PATCH_H)
        inside_x = (x >= patch_x[:, None]) & (x < patch_x[:, None] + PATCH_W)
    else:
        inside_y = (y >= 0) & (y < grid_h * PATCH_H)
        inside_x = (x >= 0) & (x < grid_w * PATCH_W)
    image = patch // (grid_h * grid_w)
    offsets = (image * stride_b)[:, None] + (rows // KERNEL * stride_c)[None, :]
    offsets += y * stride_h + x * stride_w
    exists = inside_y & inside_x & valid[None, :]
    pixels = tl.load(images_ptr + offsets, mask=exists, other=0)
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + rows // KERNEL, mask=valid, other=0.0)[None, :]
        std = tl.load(std_ptr + rows // KERNEL, mask=valid, other=1.0)[None, :]
        pixels = tl.where(exists, (pixels.to(tl.float32) / 255 - mean) / std, 0.0)
    return pixels


@triton.jit
def pixel_embed_fwd_kernel(
    images_ptr,  # (B, IN_CHANS, grid_h * PATCH_H, grid_w * PATCH_W), any strides
    weight_ptr,  # (C, IN_CHANS, KERNEL, KERNEL)
    bias_ptr,  # (C,) or None
    pixel_pos_ptr,  # (C, S) or None
    mean_ptr,  # (IN_CHANS,) with images of bytes, else None
    std_ptr,
    out_ptr,  # (tokens, C)
    num_tokens,
    grid_h,
    grid_w,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    IN_CHANS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    UNFOLD_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Pixel embeddings of BLOCK_TOKENS tokens."""
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    S: tl.constexpr = (PATCH_H // STRIDE) * (PATCH_W // STRIDE)
    tokens, exists = clamped_rows(tl.program_id(0), num_tokens, BLOCK_TOKENS)
    channels = tl.arange(0, BLOCK_C)
    embedded = tl.zeros((BLOCK_TOKENS, BLOCK_C), dtype=tl.float32)
    if bias_ptr is not None:
        embedded += load_vector(bias_ptr, 0, C, BLOCK_C)[None, :]
    if pixel_pos_ptr is not None:
        offsets = (tokens % S)[:, None] + channels[None, :] * S
        position = tl.load(pixel_pos_ptr + offsets, mask=channels[None, :] < C, other=0.0)
        embedded += position.to(tl.float32)
    for first in tl.range(0, IN_CHANS * KERNEL, BLOCK_TAPS // ROW):
        rows, columns, valid = window_taps(first, IN_CHANS, KERNEL, ROW, BLOCK_TAPS)
        windows = gather_windows(
            images_ptr, mean_ptr, std_ptr, tokens, grid_h, grid_w,
            stride_b, stride_c, stride_h, stride_w, rows, columns, valid,
            KERNEL, STRIDE, PATCH_H, PATCH_W, UNFOLD_FIRST,
        )  # fmt: skip
        taps = channels[:, None] * (IN_CHANS * KERNEL * KERNEL)
        taps += (rows * KERNEL + columns)[None, :]
        mask = (channels < C)[:, None] & valid[None, :]
        weight = tl.load(weight_ptr + taps, mask=mask, other=0.0)
        embedded += dot(windows, tl.trans(weight), DTYPE, PRECISION)
    store_rows(out_ptr, embedded, tokens, exists, C, BLOCK_C)


@triton.jit
def pixel_embed_bwd_dw_kernel(
    dy_ptr,  # (tokens, C)
    images_ptr,  # as in forward
    mean_ptr,
    std_ptr,
    partial_ptr,  # (programs, C, IN_CHANS, KERNEL, KERNEL)
    num_tokens,
    grid_h,
    grid_w,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    IN_CHANS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    UNFOLD_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Partial gradient of BLOCK_TAPS taps, program_id(1), over every num_programs(0)-th tile."""
    DTYPE: tl.constexpr = dy_ptr.dtype.element_ty
    first = tl.program_id(1) * (BLOCK_TAPS // ROW)
    rows, columns, valid = window_taps(first, IN_CHANS, KERNEL, ROW, BLOCK_TAPS)
    dweight = tl.zeros((BLOCK_TAPS, BLOCK_C), dtype=tl.float32)
    num_tiles = tl.cdiv(num_tokens, BLOCK_TOKENS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        tokens, exists = clamped_rows(tile, num_tokens, BLOCK_TOKENS)
        windows = gather_windows(
            images_ptr, mean_ptr, std_ptr, tokens, grid_h, grid_w,
            stride_b, stride_c, stride_h, stride_w, rows, columns, valid,
            KERNEL, STRIDE, PATCH_H, PATCH_W, UNFOLD_FIRST,
        )  # fmt: skip
        dy = load_existing_rows(dy_ptr, tokens, exists, C, BLOCK_C)
        dweight += dot(tl.trans(windows), dy, DTYPE, PRECISION)
    channels = tl.arange(0, BLOCK_C)[None, :]
    size = IN_CHANS * KERNEL * KERNEL
    offsets = channels * size + (rows * KERNEL + columns)[:, None]
    out_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * (C * size)
    tl.store(out_ptr + offsets, dweight, mask=(channels < C) & valid[:, None])


@triton.jit
def pixel_embed_bwd_dimages_kernel(
    dy_ptr,  # (tokens, C)
    weight_ptr,  # (C, IN_CHANS, KERNEL, KERNEL)
    dimages_ptr,  # (B, IN_CHANS, grid_h * PATCH_H, grid_w * PATCH_W)
    num_pixels,
    grid_h,
    grid_w,
    C: tl.constexpr,
    IN_CHANS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    UNFOLD_FIRST: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each pixel gathers from the few tokens whose windows cover it."""
    TILE_H: tl.constexpr = PATCH_H // STRIDE
    TILE_W: tl.constexpr = PATCH_W // STRIDE
    COVER: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    pixels, exists = clamped_rows(tl.program_id(0), num_pixels, BLOCK_PIXELS)
    height, width = grid_h * PATCH_H, grid_w * PATCH_W
    x, y = pixels % width, pixels // width % height
    plane = pixels // width // height
    channel, image = plane % IN_CHANS, plane // IN_CHANS
    low_y, high_y, low_x, high_x = y * 0, y * 0 + grid_h * TILE_H, x * 0, x * 0 + grid_w * TILE_W
    if UNFOLD_FIRST:
        low_y, low_x = y // PATCH_H * TILE_H, x // PATCH_W * TILE_W
        high_y, high_x = low_y + TILE_H, low_x + TILE_W
    outputs = tl.arange(0, BLOCK_C)[None, :]
    gradient = tl.zeros((BLOCK_PIXELS,), dtype=tl.float32)
    for cover in tl.range(0, COVER * COVER):
        # Row and column of the token among all of its image.
        token_y = (y + KERNEL // 2) // STRIDE - cover // COVER
        token_x = (x + KERNEL // 2) // STRIDE - cover % COVER
        ky, kx = y + KERNEL // 2 - token_y * STRIDE, x + KERNEL // 2 - token_x * STRIDE
        covered = exists & (ky < KERNEL) & (kx < KERNEL)
        covered &= (token_y >= low_y) & (token_y < high_y)
        covered &= (token_x >= low_x) & (token_x < high_x)
        patch = (image * grid_h + token_y // TILE_H) * grid_w + token_x // TILE_W
        token = (patch * TILE_H + token_y % TILE_H) * TILE_W + token_x % TILE_W
        mask = covered[:, None] & (outputs < C)
        dy = tl.load(dy_ptr + token[:, None] * C + outputs, mask=mask, other=0.0)
        tap = (channel * KERNEL + ky) * KERNEL + kx
        offsets = outputs * (IN_CHANS * KERNEL * KERNEL) + tap[:, None]
        weight = tl.load(weight_ptr + offsets, mask=mask, other=0.0)
        gradient += tl.sum(dy.to(tl.float32) * weight.to(tl.float32), axis=1)
    tl.store(dimages_ptr + pixels, gradient.to(dimages_ptr.dtype.element_ty), mask=exists)


class _Geometry:
    """Sizes of one call, as numbers and as constants of the kernels."""

    def __init__(
        self, images: Tensor, weight: Tensor, patch_h: int, patch_w: int, stride: int, unfold: bool
    ) -> None:
        batch, in_chans, height, width = images.shape
        self.dim, self.kernel = weight.shape[0], weight.shape[2]
        self.grid = (height // patch_h, width // patch_w)
        self.num_patches = batch * self.grid[0] * self.grid[1]
        self.tokens = (patch_h // stride) * (patch_w // stride)
        self.num_tokens = self.num_patches * self.tokens
        self.constants = {
            "C": self.dim,
            "IN_CHANS": in_chans,
            "KERNEL": self.kernel,
            "STRIDE": stride,
            "PATCH_H": patch_h,
            "PATCH_W": patch_w,
            "UNFOLD_FIRST": unfold,
            "BLOCK_C": power_of_two(self.dim),
        }
        self.tiling = pixel_embed_tiling(self.constants["BLOCK_C"], architecture(images))

    def product(self, pixels: Tensor) -> dict:
        """Constants of the kernels that multiply matrices, in the dtype of `pixels` (P, S, C)."""
        row = triton.next_power_of_2(self.kernel)
        return {
            **self.constants,
            "PRECISION": precision(pixels, convolution=True),
            "ROW": row,
            "BLOCK_TOKENS": self.tiling.rows,
            "BLOCK_TAPS": max(row, self.tiling.columns),
        }


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
    """(P, S, C) pixel embeddings."""
    geometry = _Geometry(images, weight, patch_h, patch_w, stride, unfold_first)
    dtype = images.dtype if mean is None else weight.dtype
    out = images.new_empty((geometry.num_patches, geometry.tokens, geometry.dim), dtype=dtype)
    if out.numel() > 0:
        weight, bias, pixel_pos, mean, std = (
            None if tensor is None else tensor.contiguous()
            for tensor in (weight, bias, pixel_pos, mean, std)
        )
        launch(
            pixel_embed_fwd_kernel,
            (triton.cdiv(geometry.num_tokens, geometry.tiling.rows),),
            geometry.tiling,
            *(images, weight, bias, pixel_pos, mean, std, out, geometry.num_tokens),
            *(*geometry.grid, *images.stride()),
            **geometry.product(out),
        )
    return out


def _weight_gradient(
    dy: Tensor,
    images: Tensor,
    weight: Tensor,
    mean: Optional[Tensor],
    std: Optional[Tensor],
    geometry: _Geometry,
) -> Tensor:
    """[weight | bias C | pixel_pos C * S], float32."""
    positions = dy.sum(0, dtype=torch.float32)  # (S, C)
    dweight = torch.zeros(weight.numel(), dtype=torch.float32, device=dy.device)
    if dy.numel() > 0:
        constants = geometry.product(dy)
        num_rows = constants["IN_CHANS"] * geometry.kernel
        blocks = triton.cdiv(num_rows, constants["BLOCK_TAPS"] // constants["ROW"])
        programs = min(
            triton.cdiv(geometry.num_tokens, geometry.tiling.rows),
            gradient_programs(architecture(dy)),
        )
        partial = dweight.new_empty((programs, dweight.numel()))
        launch(
            pixel_embed_bwd_dw_kernel,
            (programs, blocks),
            geometry.tiling,
            *(dy, images, mean, std, partial, geometry.num_tokens),
            *(*geometry.grid, *images.stride()),
            **constants,
        )
        sum_partials(partial, dweight)
    return torch.cat([dweight, positions.sum(0), positions.t().reshape(-1)])


def pixel_embed_backward(
    dy: Tensor,
    images: Tensor,
    weight: Tensor,
    mean: Optional[Tensor],
    std: Optional[Tensor],
    patch_h: int,
    patch_w: int,
    stride: int,
    unfold_first: bool,
    need_dimages: bool,
    need_dw: bool,
) -> tuple:
    """(dimages, dw) of pixel_embed."""
    geometry = _Geometry(images, weight, patch_h, patch_w, stride, unfold_first)
    dy, weight = dy.contiguous(), weight.contiguous()
    mean, std = (None if tensor is None else tensor.contiguous() for tensor in (mean, std))
    dimages, dw = images.new_empty(0), images.new_empty(0, dtype=torch.float32)
    if need_dimages:
        dimages = images.new_empty(images.shape)
        if dimages.numel() > 0:
            tiling = geometry.tiling
            launch(
                pixel_embed_bwd_dimages_kernel,
                (triton.cdiv(images.numel(), tiling.rows),),
                tiling,
                *(dy, weight, dimages, images.numel(), *geometry.grid),
                **geometry.constants,
                BLOCK_PIXELS=tiling.rows,
            )
    if need_dw:
        dw = _weight_gradient(dy, images, weight, mean, std, geometry)
    return dimages, dw
