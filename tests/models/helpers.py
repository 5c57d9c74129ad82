"""Models with equal weights, and their comparison: shared by the model tests."""

from __future__ import annotations

from typing import Any

import torch
from models.authors import AuthorsTNT
from timm.models.tnt import TNT as TimmTNT
from tolerance import MODEL_RELATIVE_ERROR, assert_close
from torch import Tensor, nn

from tnt import TNT

# One small model: every path of the code, a second of time.
SMALL = {
    "img_size": 64,
    "embed_dim": 64,
    "inner_dim": 24,
    "depth": 2,
    "num_heads_outer": 2,
    "num_classes": 10,
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter values that matter (the initial ones are small, or zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(values * parameter.shape[1] ** -0.5)
            elif parameter.dim() == 1:
                parameter.add_(0.2 * values)
            else:
                parameter.copy_(0.1 * values)
    return model


def timm_and_ours(**kwargs: Any) -> tuple[TimmTNT, TNT]:
    """A timm model and ours with its weights, both in training mode."""
    theirs = randomize(TimmTNT(**kwargs))
    ours = TNT(**kwargs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def authors_model(**kwargs: Any) -> AuthorsTNT:
    """The authors' layout at the size of SMALL."""
    sizes = {"img_size": 64, "outer_dim": 64, "inner_dim": 24, "depth": 2, "outer_num_heads": 2}
    return randomize(AuthorsTNT(**{**sizes, "num_classes": 10, **kwargs}))


def images_for(model: nn.Module, batch: int = 2, seed: int = 1) -> Tensor:
    """Normal images of the size that `model` takes."""
    embed = model.pixel_embed if hasattr(model, "pixel_embed") else model.patch_embed
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, embed.proj.in_channels, *embed.img_size, generator=generator)


def output_and_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of one step and the gradient of floating images and every trained parameter."""
    images = images.clone().requires_grad_(images.is_floating_point())
    model.zero_grad()
    out = model(images)
    generator = torch.Generator().manual_seed(2)
    out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    results = {"output": out.detach()}
    if images.requires_grad:
        results["gradient of images"] = images.grad
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            results[f"gradient of {name}"] = parameter.grad.clone()
    return results


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Every entry within the tolerance of whole models."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert_close(ours[name], expected, MODEL_RELATIVE_ERROR, name)
