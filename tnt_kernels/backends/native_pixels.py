"""What the CUDA kernels of pixel_embed take, from the sizes of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch

KERNELS = (3, 5, 7)  # with a 1x1 window the products of fp32 would be most of its error
UNIT_PIXELS = 4  # copied at once
SHARED_BYTES = 99 * 1024  # of a block, on every architecture from 8.0 on


def _round_up_4(count: int) -> int:
    return (count + 3) // 4 * 4


def pixel_embed_shared_bytes(dims: Mapping[str, int], element_bytes: int) -> int:
    """Shared memory of a forward block of one warp, at most; csrc/cuda/pixel_embed/plan.h."""
    kernel, stride, chans = dims["k"], dims["stride"], dims["Cin"]
    rows, cols = dims["patch_h"] // stride, dims["patch_w"] // stride
    tile_h = (rows - 1) * stride + kernel
    tile_w = _round_up_4((cols - 1) * stride + 8) + 12  # 12: what spreads rows on banks, at most
    group_patches = max(1, 16 // (rows * cols))
    row_tiles = (group_patches * rows * cols + 15) // 16
    groups = (dims["C"] + 7) // 8
    groups = groups if groups % 5 == 0 else (groups + 2) // 3 * 3
    pairs = (chans * kernel + 1) // 2
    units = chans * tile_h * (tile_w // UNIT_PIXELS)
    tables = 4 * units + 16 * row_tiles + _round_up_4(2 * pairs)
    weights = pairs * groups * 32 * element_bytes
    starts = row_tiles * groups * 32 * 4
    tile = _round_up_4(chans * tile_h * tile_w * element_bytes // 4)
    return 4 * (tables + weights + starts + group_patches * tile)


def pixel_embed_refusal(dims: Mapping[str, int], dtype: torch.dtype) -> Optional[str]:
    """Why the CUDA kernels of pixel_embed do not take sizes, or None when they do."""
    if dims["k"] not in KERNELS:
        return f"window k={dims['k']} is not one of {', '.join(map(str, KERNELS))}"
    if dims["stride"] % 2:
        return f"stride={dims['stride']} is odd"
    if dims["patch_w"] % UNIT_PIXELS:
        return f"the patch width {dims['patch_w']} is not a multiple of {UNIT_PIXELS}"
    if dims["C"] % 2:
        return f"C={dims['C']} is odd"
    needed = pixel_embed_shared_bytes(dims, dtype.itemsize)
    if needed > SHARED_BYTES:
        return f"weights and one patch take {needed} bytes of shared memory, {SHARED_BYTES} are had"
    return None
