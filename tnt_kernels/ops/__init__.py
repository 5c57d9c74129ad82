"""Public ops: docstring, checks, dispatch; nothing else."""

from .inner_block import inner_attention, inner_block, inner_mlp
from .outer_attention import outer_attention
from .pixel_embed import pixel_embed
from .pixel_to_patch import pixel_to_patch

__all__ = [
    "inner_attention",
    "inner_block",
    "inner_mlp",
    "outer_attention",
    "pixel_embed",
    "pixel_to_patch",
]
