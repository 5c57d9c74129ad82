"""Plain PyTorch: any device, any floating dtype, any sizes, any order of derivative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor

from ..checks import autocast_dtype
from ..reference import SPECS


def refusal(call: Any) -> Optional[str]:
    """The reference takes every call."""
    return None


def run(op: str, args: Mapping[str, Any]) -> Tensor:
    """Run the definition of `op` in the dtype of its activation."""
    spec = SPECS[op]
    device = args[spec.activation].device.type
    if autocast_dtype(device) is None:
        return spec.reference(*args.values())
    # The activation is already cast; inside, autocast would mix precisions op by op.
    with torch.autocast(device, enabled=False):
        return spec.reference(*args.values())
