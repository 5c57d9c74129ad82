"""Rows per tile, warps and stages of every kernel, per width and architecture.

Chosen by what the assembler makes of them (`make triton-table`): no spills, and shared memory that
fits the smallest chip of an architecture. The interpreter's time goes with the number of
operations, not their size: it gets large tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tiling(NamedTuple):
    """How a kernel is cut, and what the compiler is told."""

    rows: int
    num_warps: int
    num_stages: int = 1
    columns: int = 32  # of a weight or a sum at a time


# Longest row of pixel_to_patch's output that a program holds: more does not fit its registers.
WIDEST_ROW = 512

# (kernel, architecture, BLOCK_C) where the usual tiling of the inner block does not do.
_INNER = {
    ("inner_mlp_bwd_dw_kernel", "sm80", 64): Tiling(rows=64, num_warps=8),
    ("inner_fwd_kernel", "sm120", 64): Tiling(rows=64, num_warps=4, columns=16),
}


def gradient_programs(arch: str) -> int:
    """Programs that walk over tiles and keep weight gradients in registers.

    About the multiprocessors of a large chip, and not those of the chip at hand, so that
    gradients do not depend on it.
    """
    return 3 if arch == "interpreter" else 128


def inner_tiling(kernel: str, dtype: torch.dtype, block_c: int, span: int, arch: str) -> Tiling:
    """Tiling of a kernel of the inner block; rows are a multiple of `span`."""
    if arch == "interpreter":
        # it sums a product over these rows in sequence, where compiled kernels sum few at a time
        return Tiling(rows=256, num_warps=1)
    usual = Tiling(rows=16, num_warps=8) if block_c == 128 else Tiling(rows=64, num_warps=4)
    tiling = _INNER.get((kernel, arch, block_c), usual)
    return tiling._replace(rows=max(tiling.rows, span))


def sum_tiling(arch: str) -> Tiling:
    """Tiling of the sum of partial gradients."""
    return Tiling(rows=16, num_warps=4, columns=4096 if arch == "interpreter" else 128)


def norm_tiling(arch: str) -> Tiling:
    """Tiling of the gradients of a LayerNorm and its layers: few columns, for enough programs."""
    if arch == "interpreter":
        return Tiling(rows=256, num_warps=1, columns=256)
    return Tiling(rows=64, num_warps=4, columns=16)


def fold_tiling(arch: str) -> Tiling:
    """Tiling of the fold of a LayerNorm into a weight."""
    return Tiling(rows=512 if arch == "interpreter" else 16, num_warps=4, columns=128)


def rows_tiling(block: int, arch: str) -> Tiling:
    """Tiling of a kernel over rows of `block` elements: 4096 elements per program."""
    return Tiling(rows=max(1, (65536 if arch == "interpreter" else 4096) // block), num_warps=4)


def pixel_to_patch_tiling(dtype: torch.dtype, arch: str, whole_rows: bool) -> Tiling:
    """Tiling of the product, over rows of up to WIDEST_ROW elements or over parts of rows."""
    if arch == "interpreter":
        return Tiling(rows=64, num_warps=1, columns=128)
    columns = 16 if dtype is torch.float32 or arch == "hip" else 32
    num_stages = 2 if arch == "hip" else 3
    if whole_rows:
        return Tiling(rows=64, num_warps=8, num_stages=num_stages, columns=columns)
    return Tiling(rows=128, num_warps=8, num_stages=num_stages, columns=2 * columns)


def pixel_embed_tiling(block_c: int, arch: str) -> Tiling:
    """Tiling of the convolution; columns are taps."""
    if arch == "interpreter":
        return Tiling(rows=1024, num_warps=1, columns=64)
    return Tiling(rows=64, num_warps=4 if block_c <= 32 else 8, columns=32)
