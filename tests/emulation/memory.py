"""Tensors as the emulated kernels take them: addresses and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

WEIGHT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def span(x: Optional[Tensor]) -> Optional[tuple]:
    """Address and bytes of a contiguous tensor, which must outlive the call."""
    return None if x is None else (x.data_ptr(), x.numel() * x.element_size())


def weight(w: Optional[Tensor]) -> Optional[tuple]:
    """A weight of one or two axes and any strides."""
    if w is None:
        return None
    last = sum((size - 1) * stride for size, stride in zip(w.shape, w.stride()))
    strides = (*w.stride(), 0)[:2]
    return (w.data_ptr(), (last + 1) * w.element_size(), *strides, WEIGHT_TYPES[w.dtype])


def from_bytes(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor of a kernel's output."""
    if not data:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(tuple(shape))
