"""Summing partial weight gradients, and the gradients of a LayerNorm in front of a linear layer.

With normed = gamma xhat + beta feeding a layer of weight W, and A = d(out)^T xhat, b = sum d(out):

    dW = A gamma + b beta^T,    dgamma = sum_rows W A,    dbeta = W^T b

so that no kernel has to sum dgamma and dbeta over the tokens.
"""

from __future__ import annotations

from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

from .launch import architecture, launch
from .tiles import load_matrix, load_vector, store_matrix, store_vector
from .tilings import norm_tiling, sum_tiling


@triton.jit
def sum_partials_kernel(
    partial_ptr,  # (programs, size)
    out_ptr,  # (size,)
    programs,
    size,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = partial.sum(0), in an order that depends on nothing but the number of programs."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK), dtype=tl.float32)
    for first in tl.range(0, programs, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)[:, None]
        mask = (rows < programs) & (columns < size)
        total += tl.load(partial_ptr + rows.to(tl.int64) * size + columns, mask=mask, other=0.0)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.sum(total, axis=0), mask=columns < size)


@triton.jit
def layer_gradients(
    dw_ptr,
    weight_ptr,
    gamma,
    beta,
    first_column,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Turn A (ROWS, C), followed by b (ROWS,), into dW; return this layer's dgamma and dbeta."""
    dgamma = tl.zeros((BLOCK_C,), dtype=tl.float32)
    dbeta = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for first in tl.range(0, ROWS, BLOCK_ROWS):
        weight = load_matrix(weight_ptr, first, ROWS, first_column, C, C, BLOCK_ROWS, BLOCK_C).to(
            tl.float32
        )
        against_xhat = load_matrix(dw_ptr, first, ROWS, first_column, C, C, BLOCK_ROWS, BLOCK_C)
        dbias = load_vector(dw_ptr + ROWS * C, first, ROWS, BLOCK_ROWS)[:, None]
        dgamma += tl.sum(weight * against_xhat, axis=0)
        dbeta += tl.sum(weight * dbias, axis=0)
        dweight = against_xhat * gamma[None, :] + dbias * beta[None, :]
        store_matrix(dw_ptr, dweight, first, ROWS, first_column, C, C, BLOCK_ROWS, BLOCK_C)
    return dgamma, dbeta


@triton.jit
def norm_gradients_kernel(
    dw_ptr,  # [dgamma C | dbeta C | A ROWS0 * C | b ROWS0 | A ROWS1 * C | b ROWS1 ...], in place
    gamma_ptr,  # (C,)
    beta_ptr,  # (C,)
    weight0_ptr,  # (ROWS0, C)
    weight1_ptr,  # (ROWS1, C) or None
    C: tl.constexpr,
    ROWS0: tl.constexpr,
    ROWS1: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of a LayerNorm's affine part and of the one or two layers that it feeds.

    A program owns BLOCK_C columns.
    """
    first = tl.program_id(0) * BLOCK_C
    gamma = load_vector(gamma_ptr, first, C, BLOCK_C)
    beta = load_vector(beta_ptr, first, C, BLOCK_C)
    layer_ptr = dw_ptr + 2 * C
    dgamma, dbeta = layer_gradients(
        layer_ptr, weight0_ptr, gamma, beta, first, C, ROWS0, BLOCK_ROWS, BLOCK_C
    )
    if weight1_ptr is not None:
        more_dgamma, more_dbeta = layer_gradients(
            layer_ptr + ROWS0 * C + ROWS0,
            weight1_ptr, gamma, beta, first, C, ROWS1, BLOCK_ROWS, BLOCK_C,
        )  # fmt: skip
        dgamma += more_dgamma
        dbeta += more_dbeta
    store_vector(dw_ptr, dgamma, first, C, BLOCK_C)
    store_vector(dw_ptr + C, dbeta, first, C, BLOCK_C)


def sum_partials(partial: Tensor, out: Tensor) -> None:
    """out = partial.sum(0) for partial (programs, size), both float32 and contiguous."""
    programs, size = partial.shape
    tiling = sum_tiling(architecture(out))
    launch(
        sum_partials_kernel,
        (triton.cdiv(size, tiling.columns),),
        tiling,
        *(partial, out, programs, size),
        BLOCK_ROWS=tiling.rows,
        BLOCK=tiling.columns,
    )


def norm_gradients(
    dw: Tensor, gamma: Tensor, beta: Tensor, first: Tensor, second: Optional[Tensor] = None
) -> None:
    """Finish the flat gradient `dw` of a LayerNorm and the one or two layers behind it."""
    dim, tiling = gamma.shape[0], norm_tiling(architecture(dw))
    launch(
        norm_gradients_kernel,
        (triton.cdiv(dim, tiling.columns),),
        tiling,
        *(dw, gamma, beta, first, second),
        repeatable=False,
        C=dim,
        ROWS0=first.shape[0],
        ROWS1=0 if second is None else second.shape[0],
        BLOCK_ROWS=tiling.rows,
        BLOCK_C=tiling.columns,
    )
