"""The mathematical definition of every op, in plain PyTorch, with equation numbers.

These functions are leaves: they import nothing of the package but types and the spec, run on any
device and in any floating dtype, differentiate any number of times, and are the oracle of every
test. Weights are cast to the dtype of the activations.
"""

from .inner_block import INNER_ATTENTION, INNER_BLOCK, INNER_MLP
from .outer_attention import OUTER_ATTENTION
from .pixel_embed import PIXEL_EMBED
from .pixel_to_patch import PIXEL_TO_PATCH

SPECS = {
    spec.name: spec
    for spec in (
        INNER_ATTENTION,
        INNER_MLP,
        INNER_BLOCK,
        PIXEL_EMBED,
        PIXEL_TO_PATCH,
        OUTER_ATTENTION,
    )
}

__all__ = [
    "INNER_ATTENTION",
    "INNER_BLOCK",
    "INNER_MLP",
    "OUTER_ATTENTION",
    "PIXEL_EMBED",
    "PIXEL_TO_PATCH",
    "SPECS",
]
