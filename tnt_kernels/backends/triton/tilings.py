"""Rows per tile, warps and stages of every kernel, per width and architecture."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tiling(NamedTuple):
    """How a kernel is cut, and what the compiler is told."""

    rows: int
    num_warps: int
    num_stages: int = 1
    columns: int = 32  # of a weight or a sum at a time


# Programs that walk over tiles and keep weight gradients in registers: about the multiprocessors
# of a large chip. A constant, so that gradients do not depend on the size of the chip.
PROGRAMS = 128

# Longest row of pixel_to_patch's output that a program holds: more does not fit its registers.
WIDEST_ROW = 512


def inner_tiling(kernel: str, dtype: torch.dtype, block_c: int, span: int, arch: str) -> Tiling:
    """Tiling of a kernel of the inner block; rows are a multiple of `span`."""
    if arch == "interpreter":
        return Tiling(rows=128, num_warps=1)
    return Tiling(max(64, span), 4)


def sum_tiling(arch: str) -> Tiling:
    """Tiling of the sum of partial gradients."""
    return Tiling(rows=16, num_warps=4, columns=4096 if arch == "interpreter" else 128)


def norm_tiling(arch: str) -> Tiling:
    """Tiling of the gradients of a LayerNorm and its layers: few columns, for enough programs."""
    return Tiling(rows=64, num_warps=4, columns=256 if arch == "interpreter" else 16)


def fold_tiling(arch: str) -> Tiling:
    """Tiling of the fold of a LayerNorm into a weight."""
    return Tiling(rows=512 if arch == "interpreter" else 16, num_warps=4, columns=128)


def rows_tiling(block: int, arch: str) -> Tiling:
    """Tiling of a kernel over rows of `block` elements: 4096 elements per program."""
    return Tiling(rows=max(1, (65536 if arch == "interpreter" else 4096) // block), num_warps=4)


def pixel_to_patch_tiling(dtype: torch.dtype, arch: str, whole_rows: bool) -> Tiling:
    """Tiling of the product, over rows of up to WIDEST_ROW elements or over parts of rows."""
    if whole_rows:
        return Tiling(rows=64, num_warps=8, num_stages=3, columns=32)
    return Tiling(rows=128, num_warps=8, num_stages=3, columns=64)


def pixel_embed_tiling(block_c: int, arch: str) -> Tiling:
    """Tiling of the convolution; columns are taps."""
    if arch == "interpreter":
        return Tiling(rows=256, num_warps=1, columns=64)
    return Tiling(rows=64, num_warps=4, columns=32)
