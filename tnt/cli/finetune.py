"""`python -m tnt finetune DATA`: training from trained weights on other data (Table 8)."""

from __future__ import annotations

from dataclasses import replace

from . import train
from .options import FinetuneOptions

_CIFAR_EPOCHS, _EPOCHS = 64, 300  # of Section 3.5


def run(options: FinetuneOptions) -> dict[str, float]:
    """Fine-tune as the options say; returns the last evaluation."""
    if options.epochs is None:
        cifar = options.dataset in ("torch/cifar10", "torch/cifar100")
        options = replace(options, epochs=_CIFAR_EPOCHS if cifar else _EPOCHS)
    return train.run(options)
