"""Random arguments for tests and benches, reproducible over devices and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor


def sampler(dtype: torch.dtype, device: str, seed: int) -> Callable[..., Tensor]:
    """Return draw(*shape, std=1.0): normal values rounded to float32, then cast to `dtype`.

    The same seed gives the same values for every dtype up to that dtype's rounding, on any device.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator) * std
        return values.to(device=device, dtype=dtype)

    return draw


def drop_path_factors(num_patches: int, rate: float, device: str, seed: int) -> Optional[Tensor]:
    """(P,) float32 factors, 0 with probability `rate` else 1 / (1 - rate); None when rate is 0."""
    if rate == 0.0:
        return None
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(num_patches, generator=generator) >= rate
    return (kept.float() / (1.0 - rate)).to(device)


def empty(like: Tensor) -> Tensor:
    """The (0,) tensor that stands for an output that was not asked for."""
    return like.new_empty((0,))
