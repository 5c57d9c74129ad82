"""`python -m tnt eval DATA`: accuracy on a split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import torch
import torch.nn.functional as F
from timm.utils import accuracy
from torch import nn
from tqdm import tqdm

from .data import (
    PADDING,
    Images,
    class_names,
    download_once,
    evaluation_order,
    loader,
    open_dataset,
)
from .errors import UserError
from .models import autocast, build, choose_device, data_config
from .options import EvalOptions
from .parallel import World, joined
from .transforms import ToDevice, evaluation_transform


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable,
    to_device: ToDevice,
    world: World,
    amp: Optional[str] = None,
    progress: str = "",
) -> dict[str, float]:
    """Mean loss, top-1 and top-5 accuracy in per cent over all samples of all processes."""
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=to_device.device)
    for images, targets in tqdm(
        batches, progress, disable=not (progress and world.main), leave=False
    ):
        images, targets = to_device(images, targets)
        with autocast(to_device.device, amp):
            logits = model(images).float()
        real = targets != PADDING
        logits, targets = logits[real], targets[real]
        if len(targets) == 0:
            continue
        correct = [share * len(targets) / 100 for share in accuracy(logits, targets, (1, 5))]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        sums += torch.stack([loss, *correct, loss.new_tensor(len(targets))]).double()
    model.train(training)
    loss, top1, top5, count = world.total(sums).tolist()
    return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}


def run(options: EvalOptions) -> dict[str, float]:
    """Print, and return, the accuracy of the options' model on their data."""
    device = choose_device(options.device)
    with joined(device) as world:
        download_once(options, (options.val_split,), world)
        source = open_dataset(options, options.val_split)  # before the weights: it fails at once
        model, description = build(options, options.weights)
        names = class_names(source)
        if description.class_names is not None and not options.dataset:
            source = open_dataset(options, options.val_split, description.class_names)
        elif names is not None and len(names) != description.num_classes:
            raise UserError(
                f"{options.data} has {len(names)} classes, the model {description.num_classes}; "
                f"evaluate on what it was trained for, or fine-tune it (python -m tnt finetune)"
            )
        model = model.to(world.device, memory_format=_format(options.channels_last))
        if options.compile:
            model.compile()
        config = data_config(model, description)
        images = Images(source, evaluation_transform(config), description.in_chans)
        batches = evaluation_order(len(images), options.batch_size, world)
        results = evaluate(
            model,
            loader(images, batches, options.workers),
            ToDevice(config, world.device, options.channels_last),
            world,
            options.amp,
            progress="eval",
        )
        if world.main:
            print(
                f"{len(images)} images: top-1 {results['top1']:.2f} %, top-5 "
                f"{results['top5']:.2f} %, loss {results['loss']:.4f}"
            )
    return results


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.preserve_format
