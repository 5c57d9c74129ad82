"""Public ops: docstring, checks, dispatch; nothing else."""

from .inner_block import inner_attention, inner_block, inner_mlp
from .pixel_embed import pixel_embed
from .pixel_to_patch import pixel_to_patch

__all__ = ["inner_attention", "inner_block", "inner_mlp", "pixel_embed", "pixel_to_patch"]
