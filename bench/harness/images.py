"""A real photograph as a batch, through timm's evaluation transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

PUBLISHED_MEAN = PUBLISHED_STD = (0.5, 0.5, 0.5)
"""Input normalisation of the published TNT weights."""


def bundled_photo() -> Path:
    """A photograph that ships with scikit-learn."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"


def photo_batch(batch_size: int, img_size: int, path: Optional[Path] = None) -> Tensor:
    """(batch_size, 3, img_size, img_size) float32: one photo, resized and normalised, repeated."""
    from PIL import Image
    from timm.data import create_transform

    transform = create_transform(
        (3, img_size, img_size),
        interpolation="bicubic",
        crop_pct=0.9,
        mean=PUBLISHED_MEAN,
        std=PUBLISHED_STD,
    )
    with Image.open(path or bundled_photo()) as photo:
        image = transform(photo.convert("RGB"))
    return torch.stack([image] * batch_size)
