"""TNT models: architecture, variants, checkpoints."""

from .checkpoint import load_checkpoint
from .tnt import TNT
from .variants import VARIANTS, create, tnt_b, tnt_b_se, tnt_s, tnt_s_legacy, tnt_s_se

__all__ = [
    "TNT",
    "VARIANTS",
    "create",
    "load_checkpoint",
    "tnt_b",
    "tnt_b_se",
    "tnt_s",
    "tnt_s_legacy",
    "tnt_s_se",
]
