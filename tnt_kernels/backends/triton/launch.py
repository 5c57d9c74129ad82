"""Launching kernels: architecture, precision, device, autotuning."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from typing import Any

import torch
import triton
from torch import Tensor

from ...precision import allows_tf32
from .tilings import Tiling

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_AUTOTUNE = os.environ.get("TNT_KERNELS_TRITON_AUTOTUNE") == "1" and not _INTERPRETED

# Triton's interpreter keeps the number of the running program in a global.
_lock = threading.Lock() if _INTERPRETED else contextlib.nullcontext()


def power_of_two(size: int) -> int:
    """The least power of two that is at least `size` and at least 16, the least side of a dot."""
    return max(16, triton.next_power_of_2(size))


def precision(x: Tensor, convolution: bool = False) -> str:
    """`input_precision` of products of float32 tiles, chosen as for PyTorch's own products.

    TF32 where torch allows it for matrix products (or convolutions), else three TF32 products,
    which keep 21 bits of each operand; AMD's matrix cores take float32 as it is.
    """
    if torch.version.hip or x.dtype is not torch.float32:
        return "ieee"
    return "tf32" if allows_tf32(convolution) else "tf32x3"


@functools.cache
def architecture_of(device: torch.device) -> str:
    """What tilings are chosen for: sm80, sm90, sm100, sm120, hip or interpreter."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "hip"
    return f"sm{torch.cuda.get_device_capability(device)[0]}0"


def architecture(x: Tensor) -> str:
    """What a kernel on x is tiled for."""
    return architecture_of(x.device)


@functools.cache
def _autotuned(kernel: Any) -> Any:
    configs = [
        triton.Config({}, num_warps=num_warps, num_stages=num_stages)
        for num_warps, num_stages in itertools.product((1, 2, 4, 8), (1, 2, 3))
    ]
    constants = [p.name for p in kernel.params if p.is_constexpr]
    return triton.autotune(configs, key=constants)(kernel)


def launch(
    kernel: Any, grid: tuple, tiling: Tiling, *args: Any, repeatable: bool = True, **constants: Any
) -> None:
    """Run `kernel` on the device of its first argument.

    Args:
        repeatable: False for a kernel that works in place, which autotuning must not repeat.
    """
    device = args[0].device
    on_device = contextlib.nullcontext()
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        on_device = torch.cuda.device(device)
    with on_device, _lock:
        if _AUTOTUNE and repeatable:
            _autotuned(kernel)[grid](*args, **constants)
        else:
            kernel[grid](
                *args, **constants, num_warps=tiling.num_warps, num_stages=tiling.num_stages
            )
