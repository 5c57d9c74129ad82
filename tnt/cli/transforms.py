"""From decoded images to normalised batches: timm's transforms, in two halves.

The first half runs where images are read and ends in uint8 tensors; the second, `ToDevice`, runs
on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import AutoAugment, RandAugment, create_transform
from torch import Tensor

from .options import TrainOptions


def training_transform(options: TrainOptions, config: dict[str, Any]) -> Any:
    """timm's random crop, flip and augmentation of the options, to uint8 tensors."""
    transform = create_transform(
        config["input_size"],
        is_training=True,
        no_aug=not options.augment,
        scale=options.scale,
        hflip=options.hflip,
        auto_augment=options.auto_augment,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        use_prefetcher=True,
    )
    for step in transform.transforms:
        policies = step.policy if isinstance(step, AutoAugment) else []
        policies = [step.ops] if isinstance(step, RandAugment) else policies
        for op in (op for policy in policies for op in policy):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    # RandAugment at its strongest keeps 0 bits, a black image, which Pillow 13 refuses to make
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def evaluation_transform(config: dict[str, Any]) -> Any:
    """timm's resizing and central crop, to uint8 tensors."""
    return create_transform(**config, use_prefetcher=True)


class ToDevice:
    """Moves a batch of uint8 images to a device and normalises it there, float32."""

    def __init__(
        self, config: dict[str, Any], device: torch.device, channels_last: bool = False
    ) -> None:
        shape = (1, -1, 1, 1)
        self.device = device
        self.mean = torch.tensor(config["mean"], device=device).view(shape) * 255
        self.std = torch.tensor(config["std"], device=device).view(shape) * 255
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True, memory_format=self.format)
        images = images.float().sub_(self.mean).div_(self.std)
        return images, targets.to(self.device, non_blocking=True)
