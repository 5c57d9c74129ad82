"""Kernels of pixel_to_patch, Z = Z + LN2(FC(LN1(Vec(Y)))) (arXiv 2103.00112, Eq. 8).

LN1 over the whole patch is folded into the product: with W' = W gamma1, z = rstd (x W'^T - mean
colsum(W')) + b', so that the product reads the pixels as they are.

Where one program can hold a row of the output, LN2 and the sum are in the product's kernel; the
columns are then held in two blocks, BLOCK_D + REST_D >= D, because a block is a power of two and
384 is not. Otherwise programs own BLOCK_D columns each and a second kernel does the rest.
"""

import triton
import triton.language as tl

from .tiles import (
    clamped_rows,
    dot,
    load_existing_rows,
    load_matrix,
    load_rows,
    load_vector,
    normalise_rows,
    normalise_rows_backward,
    store_matrix,
    store_rows,
    store_vector,
)


@triton.jit
def fold_norm_kernel(
    weight_ptr,  # (D, K)
    bias_ptr,  # (D,) or None
    gamma_ptr,  # (WIDTH,), repeated to K
    beta_ptr,  # (WIDTH,)
    folded_ptr,  # (D, K) in the dtype of the product
    sums_ptr,  # (2, D): row sums of `folded`, and the folded bias
    D: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """W gamma and W beta + b; a program folds BLOCK_D rows of W."""
    first = tl.program_id(0) * BLOCK_D
    row_sum = tl.zeros((BLOCK_D,), dtype=tl.float32)
    bias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    if bias_ptr is not None:
        bias += load_vector(bias_ptr, first, D, BLOCK_D)
    for column in tl.range(0, K, BLOCK_K):
        weight = load_matrix(weight_ptr, first, D, column, K, K, BLOCK_D, BLOCK_K).to(tl.float32)
        index = column + tl.arange(0, BLOCK_K)
        gamma = tl.load(gamma_ptr + index % WIDTH, mask=index < K, other=0.0).to(tl.float32)
        beta = tl.load(beta_ptr + index % WIDTH, mask=index < K, other=0.0).to(tl.float32)
        folded = (weight * gamma[None, :]).to(folded_ptr.dtype.element_ty)
        store_matrix(folded_ptr, folded, first, D, column, K, K, BLOCK_D, BLOCK_K)
        row_sum += tl.sum(folded.to(tl.float32), axis=1)
        bias += tl.sum(weight * beta[None, :], axis=1)
    store_vector(sums_ptr, row_sum, first, D, BLOCK_D)
    store_vector(sums_ptr + D, bias, first, D, BLOCK_D)


@triton.jit
def product_columns(
    accumulated,
    mean,
    rstd,
    sums_ptr,
    first,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """The projection from the raw product, for BLOCK columns."""
    if FOLDED:
        row_sum = load_vector(sums_ptr, first, D, BLOCK)
        accumulated = rstd[:, None] * (accumulated - mean[:, None] * row_sum[None, :])
    return accumulated + load_vector(sums_ptr + D, first, D, BLOCK)[None, :]


@triton.jit
def squares(z, mean, first, D: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over the columns of (z - mean)^2."""
    inside = first + tl.arange(0, BLOCK)[None, :] < D
    centred = tl.where(inside, z - mean[:, None], 0.0)
    return tl.sum(centred * centred, axis=1)


@triton.jit
def store_columns(ptr, z, rows, exists, first, D: tl.constexpr, BLOCK: tl.constexpr):
    """Write BLOCK columns of (rows, D)."""
    columns = first + tl.arange(0, BLOCK)[None, :]
    mask = exists[:, None] & (columns < D)
    tl.store(ptr + rows[:, None] * D + columns, z.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def update_columns(
    z,
    mean,
    rstd,
    norm2_weight_ptr,
    norm2_bias_ptr,
    tokens_ptr,
    out_ptr,
    rows,
    exists,
    patches,
    first,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = tokens + LN2(z) in BLOCK columns."""
    columns = first + tl.arange(0, BLOCK)[None, :]
    mask = exists[:, None] & (columns < D)
    if norm2_weight_ptr is not None:
        gamma = load_vector(norm2_weight_ptr, first, D, BLOCK)[None, :]
        beta = load_vector(norm2_bias_ptr, first, D, BLOCK)[None, :]
        z = (z - mean[:, None]) * rstd[:, None] * gamma + beta
    if tokens_ptr is not None:
        rows = rows + rows // patches + 1  # one class row in front of every image
        tokens = tl.load(tokens_ptr + rows[:, None] * D + columns, mask=mask, other=0.0)
        z += tokens.to(tl.float32)
    store_columns(out_ptr, z, rows, exists, first, D, BLOCK)


@triton.jit
def pixel_to_patch_fwd_kernel(
    pixels_ptr,  # (P, K), or LN1 of it without its affine part where that is not FOLDED
    folded_ptr,  # (D, K)
    sums_ptr,  # (2, D)
    norm2_weight_ptr,  # (D,) or None
    norm2_bias_ptr,
    tokens_ptr,  # (P / patches * (patches + 1), D) or None
    out_ptr,  # as tokens, or (P, D) without tokens; None unless UPDATE
    projection_ptr,  # (P, D) or None
    num_patches,
    patches,
    eps,
    D: tl.constexpr,
    K: tl.constexpr,
    FOLDED: tl.constexpr,
    UPDATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST_D: tl.constexpr,
):
    """The product for BLOCK_P patches; with UPDATE also LN2 and the sum, on all columns."""
    DTYPE: tl.constexpr = pixels_ptr.dtype.element_ty
    rows, exists = clamped_rows(tl.program_id(0), num_patches, BLOCK_P)
    begin = tl.program_id(1) * BLOCK_D
    inner = tl.arange(0, BLOCK_K)[None, :]
    shift = tl.zeros((BLOCK_P,), dtype=tl.float32)
    if FOLDED:
        # One pass over the row is exact enough once the bulk of the mean is taken off.
        head = tl.load(pixels_ptr + rows[:, None] * K + inner, mask=inner < K, other=0.0)
        shift = tl.sum(head.to(tl.float32), axis=1) / min(BLOCK_K, K)
    total = tl.zeros((BLOCK_P,), dtype=tl.float32)
    total_squares = tl.zeros((BLOCK_P,), dtype=tl.float32)
    z = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    if REST_D > 0:
        z_rest = tl.zeros((BLOCK_P, REST_D), dtype=tl.float32)
    for first in tl.range(0, K, BLOCK_K):
        inside = first + inner < K
        x = tl.load(pixels_ptr + rows[:, None] * K + first + inner, mask=inside, other=0.0)
        weight = load_matrix(folded_ptr, begin, D, first, K, K, BLOCK_D, BLOCK_K)
        z += dot(x, tl.trans(weight), DTYPE, PRECISION)
        if REST_D > 0:
            weight = load_matrix(folded_ptr, BLOCK_D, D, first, K, K, REST_D, BLOCK_K)
            z_rest += dot(x, tl.trans(weight), DTYPE, PRECISION)
        if FOLDED:
            shifted = tl.where(inside, x.to(tl.float32) - shift[:, None], 0.0)
            total += tl.sum(shifted, axis=1)
            total_squares += tl.sum(shifted * shifted, axis=1)
    mean = total / K
    rstd = tl.rsqrt(total_squares / K - mean * mean + eps)
    mean += shift
    z = product_columns(z, mean, rstd, sums_ptr, begin, D, BLOCK_D, FOLDED)
    if REST_D > 0:
        z_rest = product_columns(z_rest, mean, rstd, sums_ptr, BLOCK_D, D, REST_D, FOLDED)
    if projection_ptr is not None:
        store_columns(projection_ptr, z, rows, exists, begin, D, BLOCK_D)
        if REST_D > 0:
            store_columns(projection_ptr, z_rest, rows, exists, BLOCK_D, D, REST_D)
    if UPDATE:
        if norm2_weight_ptr is not None:
            # Columns beyond D are zero: their weights, sums and biases are.
            mean = tl.sum(z, axis=1)
            if REST_D > 0:
                mean += tl.sum(z_rest, axis=1)
            mean /= D
            variance = squares(z, mean, 0, D, BLOCK_D)
            if REST_D > 0:
                variance += squares(z_rest, mean, BLOCK_D, D, REST_D)
            rstd = tl.rsqrt(variance / D + eps)
        update_columns(
            z, mean, rstd, norm2_weight_ptr, norm2_bias_ptr, tokens_ptr, out_ptr,
            rows, exists, patches, 0, D, BLOCK_D,
        )  # fmt: skip
        if REST_D > 0:
            update_columns(
                z_rest, mean, rstd, norm2_weight_ptr, norm2_bias_ptr, tokens_ptr, out_ptr,
                rows, exists, patches, BLOCK_D, D, REST_D,
            )  # fmt: skip


@triton.jit
def update_kernel(
    projection_ptr,  # (P, D)
    norm2_weight_ptr,  # (D,) or None
    norm2_bias_ptr,
    tokens_ptr,  # as in pixel_to_patch_fwd_kernel
    out_ptr,
    num_patches,
    patches,
    eps,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """LN2 and the sum, where the product's programs did not see whole rows."""
    rows, exists = clamped_rows(tl.program_id(0), num_patches, BLOCK_P)
    z = load_rows(projection_ptr, rows, D, BLOCK_D)
    mean = tl.sum(z, axis=1) / D
    rstd = tl.rsqrt(squares(z, mean, 0, D, BLOCK_D) / D + eps)
    update_columns(
        z, mean, rstd, norm2_weight_ptr, norm2_bias_ptr, tokens_ptr, out_ptr,
        rows, exists, patches, 0, D, BLOCK_D,
    )  # fmt: skip


@triton.jit
def normalise_kernel(
    x_ptr,  # (rows, WIDTH)
    xhat_ptr,  # (rows, WIDTH)
    num_rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """LN1 without its affine part."""
    rows, exists = clamped_rows(tl.program_id(0), num_rows, BLOCK_ROWS)
    x = load_rows(x_ptr, rows, WIDTH, BLOCK_WIDTH)
    xhat, _ = normalise_rows(x, eps, WIDTH, BLOCK_WIDTH)
    store_rows(xhat_ptr, xhat, rows, exists, WIDTH, BLOCK_WIDTH)


@triton.jit
def normalise_bwd_kernel(
    dxhat_ptr,  # (rows, WIDTH)
    x_ptr,  # (rows, WIDTH)
    dx_ptr,  # (rows, WIDTH)
    num_rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Gradient of the pixels from that of LN1's normalised rows."""
    rows, exists = clamped_rows(tl.program_id(0), num_rows, BLOCK_ROWS)
    x = load_rows(x_ptr, rows, WIDTH, BLOCK_WIDTH)
    xhat, rstd = normalise_rows(x, eps, WIDTH, BLOCK_WIDTH)
    dxhat = load_rows(dxhat_ptr, rows, WIDTH, BLOCK_WIDTH)
    dx = normalise_rows_backward(dxhat, xhat, rstd, WIDTH)
    store_rows(dx_ptr, dx, rows, exists, WIDTH, BLOCK_WIDTH)


@triton.jit
def projection_bwd_kernel(
    dy_ptr,  # as tokens, or (P, D) without
    projection_ptr,  # (P, D), or None without LN2
    norm2_weight_ptr,  # (D,) or None
    dz_ptr,  # (P, D)
    partial_ptr,  # (programs, 3D): gradients of the projection's bias and of LN2's affine part
    num_patches,
    patches,
    eps,
    HAS_TOKENS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of the projection from that of Z; a program takes every num_programs-th tile."""
    dbias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    dgamma = tl.zeros((BLOCK_D,), dtype=tl.float32)
    dbeta = tl.zeros((BLOCK_D,), dtype=tl.float32)
    num_tiles = tl.cdiv(num_patches, BLOCK_P)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        rows, exists = clamped_rows(tile, num_patches, BLOCK_P)
        outer_rows = rows
        if HAS_TOKENS:
            outer_rows = rows + rows // patches + 1
        dz = load_existing_rows(dy_ptr, outer_rows, exists, D, BLOCK_D)
        if norm2_weight_ptr is not None:
            z = load_rows(projection_ptr, rows, D, BLOCK_D)
            zhat, rstd = normalise_rows(z, eps, D, BLOCK_D)
            dgamma += tl.sum(dz * zhat, axis=0)
            dbeta += tl.sum(dz, axis=0)
            dz *= load_vector(norm2_weight_ptr, 0, D, BLOCK_D)[None, :]
            dz = normalise_rows_backward(dz, zhat, rstd, D)
        dbias += tl.sum(dz, axis=0)
        store_rows(dz_ptr, dz, rows, exists, D, BLOCK_D)
    out_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * (3 * D)
    store_vector(out_ptr, dbias, 0, D, BLOCK_D)
    store_vector(out_ptr + D, dgamma, 0, D, BLOCK_D)
    store_vector(out_ptr + 2 * D, dbeta, 0, D, BLOCK_D)
