"""`python -m tnt predict IMAGE...`: the most probable classes."""

from __future__ import annotations

import torch
from timm.data import create_transform

from .data import read_image, to_mode
from .errors import UserError
from .models import autocast, build, choose_device, class_name, data_config
from .options import PredictOptions


@torch.inference_mode()
def run(options: PredictOptions) -> list[list[tuple[str, float]]]:
    """Print, and return, class names and probabilities of every image, most probable first."""
    if not options.images:
        raise UserError("predict: no image given; python -m tnt predict photo.jpg")
    device = choose_device(options.device)
    images = [read_image(path) for path in options.images]
    model, description = build(options, options.weights)
    model = model.to(device).eval()
    if options.compile:
        model.compile()
    transform = create_transform(**data_config(model, description))
    predictions = []
    for path, image in zip(options.images, images):
        batch = transform(to_mode(image, description.in_chans)).unsqueeze(0).to(device)
        with autocast(device, options.amp):
            probabilities = model(batch).float().softmax(dim=1)[0]
        best = probabilities.topk(min(options.top, len(probabilities)))
        names = [class_name(description, index) for index in best.indices.tolist()]
        predictions.append(list(zip(names, best.values.tolist())))
        print(path)
        for name, probability in predictions[-1]:
            print(f"  {100 * probability:5.1f} %  {name}")
    return predictions
