"""Importing this registers the fused TNTs with timm, under names that end in `_fused`.

    import timm, tnt.timm_plugin
    model = timm.create_model("tnt_s_patch16_224_fused", pretrained=True)

timm's own names stay timm's. Pretrained weights are those that timm publishes for the plain models.
`python -m tnt.timm_plugin train.py ...` runs a script of timm (train.py, validate.py, benchmark.py)
with these names known. torch.compile and torch.export trace these models; TorchScript and symbolic
FX, which cannot look into the operators, do not.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ..models.checkpoint import fit_state_dict
from ..models.tnt import TNT
from ..models.variants import VARIANTS

__all__: list[str] = []  # register_model appends


def _cfg(hub_id: str | None = None) -> dict[str, Any]:
    return {
        "hf_hub_id": hub_id,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": "pixel_embed.proj",
        "classifier": "head",
        "paper_ids": "arXiv:2103.00112",
        "paper_name": "Transformer in Transformer",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "tnt_s_patch16_224_fused.in1k": _cfg("timm/tnt_s_patch16_224.in1k"),
        "tnt_b_patch16_224_fused.in1k": _cfg("timm/tnt_b_patch16_224.in1k"),
        "tnt_s_legacy_patch16_224_fused.in1k": _cfg("timm/tnt_s_legacy_patch16_224.in1k"),
        "tnt_s_se_patch16_224_fused.untrained": _cfg(),
        "tnt_b_se_patch16_224_fused.untrained": _cfg(),
    }
)


def _create(name: str, variant: str, pretrained: bool, **kwargs: Any) -> TNT:
    out_indices = kwargs.pop("out_indices", 3)
    model = build_model_with_cfg(
        TNT,
        name,
        pretrained,
        pretrained_filter_fn=fit_state_dict,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**VARIANTS[variant], **kwargs},
    )
    if "mean" not in kwargs and "std" not in kwargs:
        _normalise_by_config(model)
    return model


def _normalise_by_config(model: nn.Module) -> None:
    """uint8 images by the config's mean and std; of other numbers of channels, by their average."""
    tnt = model if isinstance(model, TNT) else model.model  # features_only wraps it
    statistics = [model.pretrained_cfg[name] for name in ("mean", "std")]
    if len(statistics[0]) != tnt.in_chans:
        statistics = [sum(values) / len(values) for values in statistics]
    tnt.set_normalization(*statistics)


@register_model
def tnt_s_patch16_224_fused(pretrained: bool = False, **kwargs: Any) -> TNT:
    """TNT-S of Table 1 on the fused kernels."""
    return _create("tnt_s_patch16_224_fused", "tnt_s", pretrained, **kwargs)


@register_model
def tnt_b_patch16_224_fused(pretrained: bool = False, **kwargs: Any) -> TNT:
    """TNT-B of Table 1 on the fused kernels."""
    return _create("tnt_b_patch16_224_fused", "tnt_b", pretrained, **kwargs)


@register_model
def tnt_s_legacy_patch16_224_fused(pretrained: bool = False, **kwargs: Any) -> TNT:
    """TNT-S in timm's legacy dialect on the fused kernels."""
    return _create("tnt_s_legacy_patch16_224_fused", "tnt_s_legacy", pretrained, **kwargs)


@register_model
def tnt_s_se_patch16_224_fused(pretrained: bool = False, **kwargs: Any) -> TNT:
    """TNT-S with squeeze and excitation (Table 4); no weights are published."""
    return _create("tnt_s_se_patch16_224_fused", "tnt_s_se", pretrained, **kwargs)


@register_model
def tnt_b_se_patch16_224_fused(pretrained: bool = False, **kwargs: Any) -> TNT:
    """TNT-B with squeeze and excitation; no weights are published."""
    return _create("tnt_b_se_patch16_224_fused", "tnt_b_se", pretrained, **kwargs)
