"""Run TNTs that other code built (timm's, the authors') through the fused kernels, in place.

Blocks and pixel embeddings keep their attributes, parameters and hooks; only the class of each
module changes, to a subclass of its own class with another `forward`. So nothing is copied, the
state dict stays as it was, torch.compile notices the change, and `restore` undoes it exactly.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from .models.blocks import Block
from .models.embed import embed_pixels
from .models.flow import block_flow
from .models.fusion import BlockParts


class Layout(NamedTuple):
    """Names under which a family of TNT blocks keeps the parts of `BlockParts`."""

    family: str
    names: BlockParts  # of attribute names
    norm2_optional: bool


TIMM = Layout(
    "timm",
    BlockParts(
        norm_in="norm_in",
        attn_in="attn_in",
        norm_mlp_in="norm_mlp_in",
        mlp_in="mlp_in",
        norm1_proj="norm1_proj",
        proj="proj",
        norm2_proj="norm2_proj",
        norm_out="norm_out",
        attn_out="attn_out",
        norm_mlp="norm_mlp",
        mlp="mlp",
        drop_path="drop_path",
        se=None,
    ),
    norm2_optional=True,
)
AUTHORS = Layout(
    "the authors'",
    BlockParts(
        norm_in="inner_norm1",
        attn_in="inner_attn",
        norm_mlp_in="inner_norm2",
        mlp_in="inner_mlp",
        norm1_proj="proj_norm1",
        proj="proj",
        norm2_proj="proj_norm2",
        norm_out="outer_norm1",
        attn_out="outer_attn",
        norm_mlp="outer_norm2",
        mlp="outer_mlp",
        drop_path="drop_path",
        se="se_layer",
    ),
    norm2_optional=False,
)
# Relative; tells another computation from another rounding (TF32's included).
_PROBE_TOLERANCE = 1e-2
_PROBE_PATCHES = 4


def _parts(block: nn.Module, names: BlockParts) -> BlockParts:
    return BlockParts(*(None if name is None else getattr(block, name, None) for name in names))


class _Swapped:
    """Mixed into the class of an accelerated module; `original` is the class that it had."""

    original: type
    layout: Layout

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # the class is made at run time: pickle and deepcopy go through the original one
        return _rebuild, (self.original, type(self).role, self.layout), self.__dict__


class _BlockForward(_Swapped):
    role = "block"

    def forward(self, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        return block_flow(_parts(self, self.layout.names), pixels, patches)


class _EmbedForward(_Swapped):
    role = "embed"

    def forward(self, images: Tensor, pixel_pos: Optional[Tensor] = None) -> Tensor:
        if tuple(images.shape[2:]) != tuple(self.img_size):
            raise ValueError(
                f"TNT: images must be {tuple(self.img_size)} pixels, got "
                f"{tuple(images.shape[2:])}; resize them or build the model with img_size"
            )
        # timm's older classes have one order only, told by what their unfold cuts
        cuts_features = tuple(self.unfold.kernel_size) != tuple(self.patch_size)
        unfold_first = not getattr(self, "legacy", cuts_features)
        return embed_pixels(
            images, self.proj, pixel_pos, self.patch_size, unfold_first, self.unfold
        )


_FORWARDS = {forward.role: forward for forward in (_BlockForward, _EmbedForward)}
_swapped_classes: dict = {}


def _swapped_class(original: type, role: str, layout: Layout) -> type:
    key = (original, role, layout)
    if key not in _swapped_classes:
        members = {"original": original, "layout": layout, "__module__": __name__}
        bases = (_FORWARDS[role], original)
        _swapped_classes[key] = type(f"Fused{original.__name__}", bases, members)
    return _swapped_classes[key]


def _rebuild(original: type, role: str, layout: Layout) -> nn.Module:
    cls = _swapped_class(original, role, layout)
    return cls.__new__(cls)


def _modules_in(parts: BlockParts) -> bool:
    needed = parts._replace(norm2_proj=parts.norm_in, se=parts.norm_in)
    attentions, mlps = (parts.attn_in, parts.attn_out), (parts.mlp_in, parts.mlp)
    return (
        all(isinstance(part, nn.Module) for part in needed)
        and all(
            hasattr(attn, name)
            for attn in attentions
            for name in ("qk", "v", "proj", "attn_drop", "proj_drop", "num_heads", "scale")
        )
        and all(hasattr(mlp, name) for mlp in mlps for name in ("fc1", "act", "fc2"))
    )


def _block_layout(module: nn.Module) -> Optional[Layout]:
    for layout in (TIMM, AUTHORS):
        parts = _parts(module, layout.names)
        if _modules_in(parts) and (layout.norm2_optional or parts.norm2_proj is not None):
            return layout
    return None


def _is_embedding(module: nn.Module) -> bool:
    names = ("proj", "unfold", "img_size", "patch_size", "num_patches")
    return all(hasattr(module, name) for name in names) and isinstance(module.unfold, nn.Unfold)


def accelerate(model: nn.Module, verify: bool = True) -> nn.Module:
    """Make every TNT block and pixel embedding inside `model` run on the fused kernels.

    Works on timm's TNT and on the authors' (recognised by the names of their layers, bare or
    inside another module), in training and in eval mode, before or after torch.compile. Parameters
    stay the same objects under the same state-dict keys. Blocks with forward hooks on layers that
    fusion would skip, adapters, dropout while training and the like call those layers as before,
    and a warning says so. A model of this package is returned as it is.

    Args:
        model: the module; changed in place.
        verify: first compare one block and one embedding of each kind, fused and not, on random
            input: a fork that keeps the names but computes something else is refused.
    Returns: `model`.
    Raises: TypeError when `model` is no module, ValueError when it has no TNT block, or one that
        computes something else.
    """
    _check_module("accelerate", model)
    swaps = _swaps(model)
    blocks = sum(isinstance(module, (Block, _BlockForward)) for module in model.modules())
    if not blocks and not any(issubclass(cls, _BlockForward) for _, cls in swaps):
        raise ValueError(
            f"accelerate: {type(model).__name__} holds no TNT block; pass a TNT of timm "
            f"(tnt_s_patch16_224, ...) or of the authors' code"
        )
    if verify:
        _verify(swaps)
    for module, cls in swaps:
        module.__class__ = cls
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`: every module gets back the class that it had.

    Returns: `model`, changed in place. Raises: TypeError when it is no module.
    """
    _check_module("restore", model)
    for module in model.modules():
        if isinstance(module, _Swapped):
            module.__class__ = module.original
    return model


def _check_module(function: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model must be a torch.nn.Module, got {type(model).__name__}; pass the "
            f"model itself, not its state dict"
        )


def _swaps(model: nn.Module) -> list[tuple[nn.Module, type]]:
    """The modules to accelerate, each with the class it is to get."""
    swaps = []
    for module in model.modules():
        if isinstance(module, (_Swapped, Block)):
            continue
        layout = _block_layout(module)
        if layout is not None:
            swaps.append((module, _swapped_class(type(module), "block", layout)))
        elif _is_embedding(module):
            swaps.append((module, _swapped_class(type(module), "embed", TIMM)))
    return swaps


def _verify(swaps: list[tuple[nn.Module, type]]) -> None:
    """Compare a copy of the first module of each class, with random parameters, both ways."""
    seen = set()
    for module, cls in swaps:
        meta = any(parameter.is_meta for parameter in module.parameters())
        if cls in seen or meta:
            continue
        seen.add(cls)
        probe = _random_copy(module)
        inputs = _probe_inputs(probe, cls)
        with torch.no_grad():
            expected = type(module).forward(probe, *(tensor.clone() for tensor in inputs))
            probe.__class__ = cls
            got = probe(*inputs)
        if not _close(expected, got):
            raise ValueError(
                f"accelerate: {type(module).__name__} has the layers of a TNT "
                f"{cls.role} but computes something else; it cannot be accelerated"
            )


def _random_copy(module: nn.Module) -> nn.Module:
    """A float32 copy in eval mode, without hooks, with parameters that are all in effect."""
    probe = copy.deepcopy(module).float().eval()
    generator = torch.Generator().manual_seed(0)
    for part in probe.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
            hooks.clear()
    with torch.no_grad():
        for parameter in probe.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(values * fan_in**-0.5 if fan_in > 1 else 1 + 0.2 * values)
    return probe


def _probe_inputs(probe: nn.Module, cls: type) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    if issubclass(cls, _EmbedForward):
        shapes = [(1, probe.proj.in_channels, *probe.img_size)]
        if len(inspect.signature(cls.original.forward).parameters) > 2:  # timm adds the positions
            shapes.append((1, probe.proj.out_channels, *probe.new_patch_size))
    else:
        parts = _parts(probe, cls.layout.names)
        dim, dim_out = parts.attn_in.v.in_features, parts.attn_out.v.in_features
        num_tokens = parts.proj.in_features // dim
        shapes = [(_PROBE_PATCHES, num_tokens, dim), (1, _PROBE_PATCHES + 1, dim_out)]
    device = next(probe.parameters()).device
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def _close(expected: Any, got: Any) -> bool:
    if isinstance(expected, Tensor):
        expected, got = (expected,), (got,)
    return all(
        ours.shape == theirs.shape
        and (ours - theirs).abs().max() <= _PROBE_TOLERANCE * theirs.abs().max()
        for ours, theirs in zip(got, expected, strict=True)
    )
