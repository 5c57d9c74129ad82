"""pixel_to_patch on Triton: layout, allocation, launches, and the two products of backward.

Backward's products are plain ones of large matrices, (P, D) x (D, K) and (D, P) x (P, K): they are
left to torch.mm, which obeys the same TF32 setting.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
import triton
from torch import Tensor

from .gradients import norm_gradients, sum_partials
from .launch import architecture, launch, power_of_two, precision
from .pixel_to_patch_kernels import (
    fold_norm_kernel,
    normalise_bwd_kernel,
    normalise_kernel,
    pixel_to_patch_fwd_kernel,
    projection_bwd_kernel,
    update_kernel,
)
from .tilings import WIDEST_ROW, fold_tiling, gradient_programs, pixel_to_patch_tiling, rows_tiling


class _Folded(NamedTuple):
    """The projection with LN1's affine part in it."""

    weight: Tensor  # (D, K) in the pixels' dtype
    sums: Tensor  # (2, D) float32: row sums of `weight`, and the bias


def _fold(
    gamma: Tensor, beta: Tensor, weight: Tensor, bias: Optional[Tensor], dtype: torch.dtype
) -> _Folded:
    outer_dim, width = weight.shape
    folded = torch.empty_like(weight, dtype=dtype)
    sums = torch.empty((2, outer_dim), dtype=torch.float32, device=weight.device)
    tiling = fold_tiling(architecture(weight))
    launch(
        fold_norm_kernel,
        (triton.cdiv(outer_dim, tiling.rows),),
        tiling,
        *(weight, bias, gamma, beta, folded, sums),
        D=outer_dim,
        K=width,
        WIDTH=gamma.shape[0],
        BLOCK_D=tiling.rows,
        BLOCK_K=tiling.columns,
    )
    return _Folded(folded, sums)


def _rows(x: Tensor, width: int) -> tuple:
    """(grid, tiling, constants) of a kernel over rows of `width` elements of x."""
    block = power_of_two(width)
    tiling = rows_tiling(block, architecture(x))
    grid = (triton.cdiv(x.numel() // width, tiling.rows),)
    return grid, tiling, {"WIDTH": width, "BLOCK_ROWS": tiling.rows, "BLOCK_WIDTH": block}


def _normalise(x: Tensor, width: int, eps: float) -> Tensor:
    xhat = torch.empty_like(x)
    grid, tiling, constants = _rows(x, width)
    launch(normalise_kernel, grid, tiling, x, xhat, x.numel() // width, eps, **constants)
    return xhat


def _split_columns(outer_dim: int) -> tuple:
    """Two blocks that hold `outer_dim` columns; the second is 0 where one is as good."""
    whole = power_of_two(outer_dim)
    half, rest = whole // 2, outer_dim - whole // 2
    if rest <= 0 or half < 16 or power_of_two(rest) == half:
        return whole, 0
    return half, power_of_two(rest)


def _project(
    x: Tensor, folded: _Folded, is_folded: bool, eps: float, projection: Optional[Tensor],
    update: Optional[tuple],
) -> None:  # fmt: skip
    """Run the product; `update` is None or (gamma2, beta2, patch_tokens, out, patches)."""
    outer_dim, width = folded.weight.shape
    gamma2, beta2, patch_tokens, out, patches = update or (None, None, None, None, 1)
    tiling = pixel_to_patch_tiling(x.dtype, architecture(x), whole_rows=update is not None)
    block_d, rest_d, column_blocks = *_split_columns(outer_dim), 1
    if update is None:
        block_d, rest_d, column_blocks = 128, 0, triton.cdiv(outer_dim, 128)
    launch(
        pixel_to_patch_fwd_kernel,
        (triton.cdiv(x.shape[0], tiling.rows), column_blocks),
        tiling,
        *(x, *folded, gamma2, beta2, patch_tokens, out, projection),
        *(x.shape[0], patches, eps),
        D=outer_dim,
        K=width,
        FOLDED=is_folded,
        UPDATE=update is not None,
        PRECISION=precision(x),
        BLOCK_P=tiling.rows,
        BLOCK_K=tiling.columns,
        BLOCK_D=block_d,
        REST_D=rest_d,
    )


def _update(
    projection: Tensor, gamma2: Optional[Tensor], beta2: Optional[Tensor],
    patch_tokens: Optional[Tensor], out: Tensor, patches: int, eps: float,
) -> None:  # fmt: skip
    num_patches, outer_dim = projection.shape
    block = power_of_two(outer_dim)
    tiling = rows_tiling(block, architecture(projection))
    launch(
        update_kernel,
        (triton.cdiv(num_patches, tiling.rows),),
        tiling,
        *(projection, gamma2, beta2, patch_tokens, out, num_patches, patches, eps),
        D=outer_dim,
        BLOCK_P=tiling.rows,
        BLOCK_D=block,
    )


def _contiguous(*tensors: Optional[Tensor]) -> list:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def pixel_to_patch(
    pixels: Tensor,
    patch_tokens: Optional[Tensor],
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Optional[Tensor],
    norm2_weight: Optional[Tensor],
    norm2_bias: Optional[Tensor],
    eps: float,
    save_projection: bool,
) -> tuple:
    """(out, projection) of Eq. 8; the projection is empty unless asked for and normalised."""
    pixels, patch_tokens, *weights = _contiguous(
        pixels, patch_tokens, norm1_weight, norm1_bias, proj_weight, proj_bias,
        norm2_weight, norm2_bias,
    )  # fmt: skip
    gamma1, beta1, weight, bias, gamma2, beta2 = weights
    num_patches, outer_dim, width = pixels.shape[0], *weight.shape
    keeps = save_projection and gamma2 is not None
    if patch_tokens is None:
        out, patches = pixels.new_empty((num_patches, outer_dim)), 1
    else:
        out, patches = torch.empty_like(patch_tokens), patch_tokens.shape[1] - 1
    if num_patches == 0:
        out = out if patch_tokens is None else patch_tokens.clone()
        return out, pixels.new_empty((0, outer_dim) if keeps else 0)

    whole_rows = outer_dim <= WIDEST_ROW
    projection = pixels.new_empty((num_patches, outer_dim) if keeps or not whole_rows else 0)
    folded = _fold(gamma1, beta1, weight, bias, pixels.dtype)
    is_folded = gamma1.shape[0] == width
    x = pixels if is_folded else _normalise(pixels, gamma1.shape[0], eps)
    update = (gamma2, beta2, patch_tokens, out, patches)
    if patch_tokens is not None:
        out[:, 0] = patch_tokens[:, 0]
    if whole_rows:
        _project(x, folded, is_folded, eps, projection if keeps else None, update)
    else:
        _project(x, folded, is_folded, eps, projection, None)
        _update(projection, *update, eps)
    return out, (projection if keeps else pixels.new_empty(0))


def _projection_backward(
    dy: Tensor, projection: Optional[Tensor], gamma2: Optional[Tensor],
    has_patch_tokens: bool, like: Tensor, eps: float,
) -> tuple:  # fmt: skip
    """(dz in the dtype of `like`, flat gradients of the bias and of LN2)."""
    num_patches, outer_dim = like.shape[0], dy.shape[-1]
    dz = like.new_empty((num_patches, outer_dim))
    block = power_of_two(outer_dim)
    tiling = rows_tiling(block, architecture(like))
    programs = min(triton.cdiv(num_patches, tiling.rows), gradient_programs(architecture(like)))
    partial = like.new_empty((programs, 3 * outer_dim), dtype=torch.float32)
    launch(
        projection_bwd_kernel,
        (programs,),
        tiling,
        *(dy, projection, gamma2, dz, partial),
        *(num_patches, dy.shape[1] - 1 if has_patch_tokens else 1, eps),
        HAS_TOKENS=has_patch_tokens,
        D=outer_dim,
        BLOCK_P=tiling.rows,
        BLOCK_D=block,
    )
    vectors = like.new_empty(3 * outer_dim, dtype=torch.float32)
    sum_partials(partial, vectors)
    return dz, vectors


def _pixel_gradient(
    dz: Tensor, pixels: Tensor, folded: _Folded, norm_width: int, eps: float
) -> Tensor:
    dxhat = torch.mm(dz, folded.weight)  # (P, K)
    dx = torch.empty_like(pixels)
    grid, tiling, constants = _rows(pixels, norm_width)
    num_rows = pixels.numel() // norm_width
    launch(normalise_bwd_kernel, grid, tiling, dxhat, pixels, dx, num_rows, eps, **constants)
    return dx


def _weight_gradient(
    dz: Tensor, vectors: Tensor, pixels: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """[norm1 weight | norm1 bias | proj weight | proj bias | norm2 weight | norm2 bias]."""
    width, norm_width = weight.shape[1], gamma.shape[0]
    xhat = _normalise(pixels, norm_width, eps).view(-1, width)
    matrix = torch.mm(dz.t(), xhat).float().view(-1)
    dw = torch.cat([matrix.new_empty(2 * width), matrix, vectors])
    if norm_width == width:
        norm_gradients(dw, gamma, beta, weight)
        return dw
    tokens = width // norm_width
    norm_gradients(dw, gamma.repeat(tokens), beta.repeat(tokens), weight)
    norm = dw[: 2 * width].view(2, tokens, norm_width).sum(1)
    return torch.cat([norm.view(-1), dw[2 * width :]])


def pixel_to_patch_backward(
    dy: Tensor,
    pixels: Tensor,
    projection: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Optional[Tensor],
    norm2_weight: Optional[Tensor],
    norm2_bias: Optional[Tensor],
    has_patch_tokens: bool,
    eps: float,
    need_dpixels: bool,
    need_dw: bool,
) -> tuple:
    """(dpixels, dw) of Eq. 8; the projection is computed again where forward did not keep it."""
    dy, pixels, gamma1, beta1, weight, bias, gamma2, beta2 = _contiguous(
        dy, pixels, norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias
    )
    (outer_dim, width), norm_width = weight.shape, gamma1.shape[0]
    dx, dw = pixels.new_empty(0), pixels.new_empty(0, dtype=torch.float32)
    if pixels.shape[0] == 0:
        size = 2 * norm_width + outer_dim * width + 3 * outer_dim
        dw = dw if not need_dw else dw.new_zeros(size)
        return (torch.empty_like(pixels) if need_dpixels else dx), dw
    if gamma2 is None:
        projection = None
    elif projection.numel() == 0:
        weights = (gamma1, beta1, weight, bias, gamma2, beta2)
        projection = pixel_to_patch(pixels, None, *weights, eps, True)[1]
    dz, vectors = _projection_backward(dy, projection, gamma2, has_patch_tokens, pixels, eps)
    if need_dpixels:
        folded = _fold(gamma1, beta1, weight, bias, pixels.dtype)
        dx = _pixel_gradient(dz, pixels, folded, norm_width, eps)
    if need_dw:
        dw = _weight_gradient(dz, vectors, pixels, gamma1, beta1, weight, eps)
    return dx, dw
