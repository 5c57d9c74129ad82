"""The models that are timed against each other.

Contestants of one family share their weights, so that their outputs can be compared: ours is
loaded from timm's. No file is downloaded: the weights are timm's random initialisation under a
fixed seed, which costs exactly what trained ones cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

SEED = 20210300112 % 2**31
MODES = ("eager", "compiled", "graph")
TIMM_NAMES = {"tnt_s": "tnt_s_patch16_224", "tnt_b": "tnt_b_patch16_224"}
CONTEXT_NAMES = {
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
}
LUCIDRAINS = "tnt_s_lucidrains"
MODELS = (*TIMM_NAMES, *CONTEXT_NAMES, LUCIDRAINS)


@dataclass
class Contestant:
    """One row of the table.

    Attributes:
        name: of the row.
        family: rows of one family are compared with its timm row in eager mode.
        model: shared by the modes of one implementation.
        ours: whether the fused operators run it.
        mode: "eager", "compiled" (torch.compile) or "graph" (a CUDA graph of the eager calls).
        backend: of the fused operators; None for their own choice.
    """

    name: str
    family: str
    model: nn.Module
    ours: bool
    mode: str
    backend: Optional[str] = None


class NotInstalled(Exception):
    """A contestant's package is absent; the message names it."""


def _timm_model(name: str, img_size: int) -> nn.Module:
    import timm

    torch.manual_seed(SEED)
    return timm.create_model(name, img_size=img_size)


def _lucidrains_model(img_size: int) -> nn.Module:
    """TNT-S's widths in the transformer-in-transformer package, whose inner heads are as wide as
    the outer ones (64 channels, not 6), and whose pixels are a plain unfold: context, not a peer.
    """
    try:
        from transformer_in_transformer import TNT
    except ImportError:
        message = f"{LUCIDRAINS} needs `pip install transformer-in-transformer`"
        raise NotInstalled(message) from None
    torch.manual_seed(SEED)
    widths = {"patch_dim": 384, "pixel_dim": 24, "heads": 6, "dim_head": 64, "depth": 12}
    return TNT(image_size=img_size, patch_size=16, pixel_size=4, num_classes=1000, **widths)


def build(
    family: str,
    img_size: int,
    device: str,
    modes: Sequence[str] = ("eager",),
    backends: Sequence[Optional[str]] = (None,),
) -> list[Contestant]:
    """Contestants of one of MODELS.

    Raises: ValueError for an unknown family, NotInstalled.
    """
    import tnt

    if family in CONTEXT_NAMES:
        kinds = [("timm", _timm_model(CONTEXT_NAMES[family], img_size), False, None)]
    elif family == LUCIDRAINS:
        kinds = [("", _lucidrains_model(img_size), False, None)]
    elif family in TIMM_NAMES:
        theirs = _timm_model(TIMM_NAMES[family], img_size)
        ours = getattr(tnt, family)(img_size=img_size)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        kinds = [("fused" + (f" {name}" if name else ""), ours, True, name) for name in backends]
        kinds.append(("timm", theirs, False, None))
    else:
        raise ValueError(f"models: {family!r} is not one of {', '.join(MODELS)}")
    rows = []
    for mode in modes:
        for kind, model, is_ours, backend in kinds:
            words = (family, kind, "" if mode == "eager" else mode)
            name = " ".join(word for word in words if word)
            rows.append(Contestant(name, family, model.to(device), is_ours, mode, backend))
    return rows
