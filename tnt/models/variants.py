"""The published models (Table 1) and the sizes they are built from."""

from __future__ import annotations

from typing import Any

from .tnt import TNT

# Width of each flow and heads; everything else is TNT's default.
_SIZES = {
    "tnt_s": {"embed_dim": 384, "inner_dim": 24, "num_heads_outer": 6},
    "tnt_b": {"embed_dim": 640, "inner_dim": 40, "num_heads_outer": 10},
}
VARIANTS = {
    "tnt_s": _SIZES["tnt_s"],
    "tnt_b": _SIZES["tnt_b"],
    "tnt_s_legacy": {**_SIZES["tnt_s"], "legacy": True},
    "tnt_s_se": {**_SIZES["tnt_s"], "se": True},
    "tnt_b_se": {**_SIZES["tnt_b"], "se": True},
}


def _config(name: str, model: TNT) -> dict:
    """What timm's data pipeline and fine-tuning read: input size, normalisation, layer names."""
    return {
        "architecture": name,
        "url": "",
        "num_classes": model.num_classes,
        "input_size": (model.in_chans, *model.pixel_embed.img_size),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        **model.pixel_embed.normalization,
        "first_conv": "pixel_embed.proj",
        "classifier": "head",
        "paper_ids": "arXiv:2103.00112",
        "paper_name": "Transformer in Transformer",
        "license": "apache-2.0",
    }


def create(name: str, **kwargs: Any) -> TNT:
    """Build the variant `name`; keyword arguments are TNT's and override the variant's.

    Raises: ValueError for an unknown name, or what TNT raises.
    """
    if name not in VARIANTS:
        raise ValueError(f"create: name must be one of {', '.join(VARIANTS)}; got {name!r}")
    model = TNT(**{**VARIANTS[name], **kwargs})
    model.pretrained_cfg = model.default_cfg = _config(name, model)
    return model


def tnt_s(**kwargs: Any) -> TNT:
    """TNT-S of Table 1: 23.8 M parameters, 5.2 GMACs at 224 pixels; arguments are TNT's."""
    return create("tnt_s", **kwargs)


def tnt_b(**kwargs: Any) -> TNT:
    """TNT-B of Table 1: 65.4 M parameters, 14.1 GMACs at 224 pixels; arguments are TNT's."""
    return create("tnt_b", **kwargs)


def tnt_s_legacy(**kwargs: Any) -> TNT:
    """TNT-S in the dialect of timm's tnt_s_legacy_patch16_224; arguments are TNT's."""
    return create("tnt_s_legacy", **kwargs)


def tnt_s_se(**kwargs: Any) -> TNT:
    """TNT-S with squeeze and excitation (Table 4): 24.7 M parameters; arguments are TNT's."""
    return create("tnt_s_se", **kwargs)


def tnt_b_se(**kwargs: Any) -> TNT:
    """TNT-B with squeeze and excitation (Sec. 2.4): 67.9 M parameters; arguments are TNT's."""
    return create("tnt_b_se", **kwargs)
