"""Multiply-accumulates and parameters of every TNT, counted three ways.

Only products count, as in the paper: no normalisation, softmax, activation or addition.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import nn

import tnt
import tnt_kernels

STAGES = ("embedding", "inner", "projection", "outer", "head")


@dataclass(frozen=True)
class Row:
    """One model of the paper's tables.

    Attributes:
        label: how the table names it.
        variant: constructor in `tnt`.
        arguments: what differs from the variant.
        table: of the paper; None for what the paper does not list.
        params_m, gmacs: the paper's figures, millions and billions.
    """

    label: str
    variant: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    table: Optional[int] = None
    params_m: Optional[float] = None
    gmacs: Optional[float] = None

    def build(self) -> nn.Module:
        """The model, in evaluation mode, randomly initialised."""
        return getattr(tnt, self.variant)(**self.arguments).eval()


ROWS = (
    Row("TNT-S", "tnt_s", table=1, params_m=23.8, gmacs=5.2),
    Row("TNT-B", "tnt_b", table=1, params_m=65.6, gmacs=14.1),
    Row("TNT-S legacy (timm)", "tnt_s_legacy"),
    Row("TNT-S + SE", "tnt_s_se", table=4, params_m=24.7, gmacs=5.2),
    Row("TNT-B + SE", "tnt_b_se"),
    Row("no patch position", "tnt_s", {"use_patch_pos": False}, table=5),
    Row("no pixel position", "tnt_s", {"use_pixel_pos": False}, table=5),
    Row("1 inner head", "tnt_s", {"num_heads_inner": 1}, table=6),
    Row("2 inner heads", "tnt_s", {"num_heads_inner": 2}, table=6),
    Row("8 inner heads", "tnt_s", {"num_heads_inner": 8}, table=6),
    Row(
        "p' = 2 (S = 4, C = 96)",
        "tnt_s",
        {"first_stride": 8, "inner_dim": 96},
        table=7,
        params_m=25.1,
        gmacs=6.0,
    ),
    Row("p' = 4 (S = 16, C = 24)", "tnt_s", table=7, params_m=23.8, gmacs=5.2),
    Row(
        "p' = 8 (S = 64, C = 6)",
        "tnt_s",
        {"first_stride": 2, "inner_dim": 6, "num_heads_inner": 2},
        table=7,
        params_m=23.8,
        gmacs=5.1,
    ),
)


def by_equations(model: nn.Module) -> dict[str, int]:
    """Multiply-accumulates of one image per stage, in closed form.

    The inner, projection and outer terms of Eqs. 14-18, with the class token in the outer flow's
    n, plus what the equations leave out: the 7x7 projection, the stem's linear layer, squeeze and
    excitation, and the head.
    """
    n, d = model.num_patches, model.embed_dim
    c, m = model.pixel_embed.proj.out_channels, math.prod(model.pixel_embed.new_patch_size)
    kernel = math.prod(model.pixel_embed.proj.kernel_size) * model.in_chans
    depth, hidden = len(model.blocks), model.blocks[0].mlp.fc1.out_features
    tokens = n + 1
    outer = tokens * (4 * d * d + 2 * d * hidden) + 2 * tokens * tokens * d
    gate = 2 * d * (d // 4) if model.blocks[0].se_layer is not None else 0
    return {
        "embedding": n * m * c * kernel + n * m * c * d,
        "inner": depth * 2 * n * m * c * (6 * c + m),
        "projection": depth * n * m * c * d,
        "outer": depth * (outer + gate),
        "head": d * model.num_classes,
    }


def _image(model: nn.Module) -> torch.Tensor:
    height, width = model.pixel_embed.img_size
    return torch.zeros(1, model.in_chans, height, width)


def by_flop_counter(model: nn.Module) -> dict[str, int]:
    """The same by torch's FlopCounterMode and the formulas of the fused operators, per operator."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(_image(model))
    # a multiply-accumulate is two operations
    counts = counter.get_flop_counts()["Global"]
    return {str(operator): flops // 2 for operator, flops in counts.items()}


@contextmanager
def _silent() -> Iterator[None]:
    """fvcore and the tracer it uses warn of everything that they do not count."""
    logger = logging.getLogger("fvcore")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def by_fvcore(model: nn.Module) -> Counter:
    """The same by fvcore on the plain PyTorch definitions, per operator.

    Its "layer_norm" (5 per element) is no product: leave it out to compare.
    """
    with _silent(), torch.enable_grad(), tnt_kernels.use_backend("reference"):
        from fvcore.nn import FlopCountAnalysis

        counts = FlopCountAnalysis(model, _image(model)).by_operator()
    return Counter({name: int(count) for name, count in counts.items()})


def parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters per stage."""
    inner = ("norm_in", "attn_in", "norm_mlp_in", "mlp_in")
    projection = ("norm1_proj", "proj", "norm2_proj")
    counts = dict.fromkeys(STAGES, 0)
    for name, parameter in model.named_parameters():
        module = name.split(".")
        if module[0] != "blocks":
            stage = "head" if module[0] in ("head", "norm") else "embedding"
        elif module[2] in inner:
            stage = "inner"
        else:
            stage = "projection" if module[2] in projection else "outer"
        counts[stage] += parameter.numel()
    return counts
