"""The models that are timed against each other.

Contestants of one family share their weights, so that their outputs can be compared: ours is
loaded from timm's. No file is downloaded: the weights are timm's random initialisation under a
fixed seed, which costs exactly what trained ones cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

SEED = 20210300112 % 2**31


@dataclass
class Contestant:
    """One row of the table."""

    name: str
    model: nn.Module
    ours: bool
    compiled: bool
    agrees_with: Optional[str] = None  # contestant whose outputs must be the same

    def run_fresh(self) -> Callable:
        """The callable to time: the model, compiled where the row says so."""
        return torch.compile(self.model) if self.compiled else self.model


TIMM_NAMES = {"tnt_s": "tnt_s_patch16_224", "tnt_b": "tnt_b_patch16_224"}
DEIT_NAMES = {"deit_s": "deit_small_patch16_224", "deit_b": "deit_base_patch16_224"}
MODELS = (*TIMM_NAMES, *DEIT_NAMES)


def _timm_model(name: str, img_size: int) -> nn.Module:
    import timm

    torch.manual_seed(SEED)
    return timm.create_model(name, img_size=img_size)


def build(model: str, img_size: int, device: str, with_compiled: bool) -> list[Contestant]:
    """Contestants of one family: `tnt_s`, `tnt_b`, `deit_s` or `deit_b`.

    Raises: ValueError for an unknown family.
    """
    if model in DEIT_NAMES:
        theirs = _timm_model(DEIT_NAMES[model], img_size).to(device)
        rows = [Contestant(f"{model} timm", theirs, ours=False, compiled=False)]
    elif model in TIMM_NAMES:
        import tnt

        theirs = _timm_model(TIMM_NAMES[model], img_size)
        ours = getattr(tnt, model)(img_size=img_size)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        peer = f"{model} timm"
        rows = [
            Contestant(f"{model} fused", ours.to(device), True, False, agrees_with=peer),
            Contestant(peer, theirs.to(device), ours=False, compiled=False),
        ]
    else:
        raise ValueError(f"models: {model!r} is not one of {', '.join(MODELS)}")
    if with_compiled:
        rows += [
            Contestant(f"{row.name} compiled", row.model, row.ours, True, row.agrees_with)
            for row in list(rows)
        ]
    return rows
