"""What the CUDA kernels of pixel_embed and pixel_to_patch take, from the sizes of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch

KERNELS = (3, 5, 7)  # with a 1x1 window the products of fp32 would be most of its error
UNIT_PIXELS = 4  # copied at once
WIDTHS = (384, 640)  # of a vectorised patch and of the outer embedding, which must be equal
GROUP_BYTES = 80 * 1024  # of a backward block, unless its smallest group takes more
SHARED_BYTES = 99 * 1024  # of a block, on every architecture from 8.0 on


def _round_up_4(count: int) -> int:
    return (count + 3) // 4 * 4


class _Plan:
    """Sizes that decide how much shared memory is used, at most; csrc/cuda/pixel_embed/plan.h."""

    def __init__(self, dims: Mapping[str, int], element_bytes: int, most_tokens: int):
        kernel, stride, chans = dims["k"], dims["stride"], dims["Cin"]
        rows, cols = dims["patch_h"] // stride, dims["patch_w"] // stride
        tile_h = (rows - 1) * stride + kernel
        tile_w = _round_up_4((cols - 1) * stride + 8) + 12  # 12: what spreads rows on banks
        group_patches = max(1, most_tokens // (rows * cols))
        row_tiles = (group_patches * rows * cols + 15) // 16
        groups = (dims["C"] + 7) // 8
        self.group_channels = 5 if groups % 5 == 0 else 3
        groups = -(-groups // self.group_channels) * self.group_channels
        pairs = (chans * kernel + 1) // 2
        units = chans * tile_h * (tile_w // UNIT_PIXELS)
        unit_words = 5 if dims.get("uint8") else 3  # its normalisation is two of them
        self.tables = unit_words * units + 8 + 16 * row_tiles + _round_up_4(2 * pairs)
        self.weights = pairs * groups * 32 * element_bytes
        self.starts = row_tiles * groups * 32 * 4
        self.group = group_patches * _round_up_4(chans * tile_h * tile_w * element_bytes // 4)
        self.positions = _round_up_4(rows * cols * dims["C"])
        channels = 16 * row_tiles * dims["C"] + 8 * groups - dims["C"]
        self.gradients = _round_up_4(channels * element_bytes // 4)


def pixel_embed_shared_bytes(dims: Mapping[str, int], element_bytes: int) -> int:
    """Shared memory of a forward block of one warp, at most."""
    plan = _Plan(dims, element_bytes, 16)
    return 4 * (plan.tables + plan.weights + plan.starts + plan.group)


def pixel_embed_backward_shared_bytes(dims: Mapping[str, int], element_bytes: int) -> int:
    """Shared memory of a backward block, at most: groups of patches grow while it is little."""
    plan = _Plan(dims, element_bytes, 16)
    sums = 4 * 3 * plan.group_channels * 32 * 4
    smallest = 4 * (plan.tables + plan.positions + max(plan.group + plan.gradients, sums))
    return max(smallest, GROUP_BYTES)


def pixel_embed_refusal(
    dims: Mapping[str, int], dtype: torch.dtype, differentiable: bool
) -> Optional[str]:
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
    if differentiable:
        needed = max(needed, pixel_embed_backward_shared_bytes(dims, dtype.itemsize))
    if needed > SHARED_BYTES:
        return f"weights and one patch take {needed} bytes of shared memory, {SHARED_BYTES} are had"
    return None


def pixel_to_patch_refusal(dims: Mapping[str, int]) -> Optional[str]:
    """Why the CUDA kernels of pixel_to_patch do not take sizes, or None when they do."""
    width, norm1_width = dims["S"] * dims["C"], dims["norm1"]
    if width not in WIDTHS:
        return f"S*C={width} is not one of {', '.join(map(str, WIDTHS))}"
    if dims["D"] != width:
        return f"D={dims['D']} is not S*C={width}"
    groups = [width // 64 * 2**i for i in range(6)]  # half a lane, one, two, ... of 32
    if norm1_width != width and norm1_width not in groups:
        return f"the norm over C={norm1_width} channels is not one over {str(groups)[1:-1]}"
    return None
