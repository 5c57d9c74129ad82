"""Transformer in Transformer (arXiv 2103.00112): models on fused kernels.

    from tnt import tnt_s, load_checkpoint
    model = load_checkpoint(tnt_s(), "tnt_s_81.5.pth.tar").eval()

`accelerate` speeds up a TNT that timm or the authors' code built.
"""

from .accelerate import accelerate, restore
from .models import (
    TNT,
    load_checkpoint,
    tnt_b,
    tnt_b_se,
    tnt_s,
    tnt_s_legacy,
    tnt_s_se,
)

__all__ = [
    "TNT",
    "accelerate",
    "load_checkpoint",
    "restore",
    "tnt_b",
    "tnt_b_se",
    "tnt_s",
    "tnt_s_legacy",
    "tnt_s_se",
]
