"""What each command takes. Defaults of training are Table 3 of the paper and DeiT's recipe.

A field is a flag (`batch_size` is --batch-size), a key of a YAML file, and the text below it is
its help. A YAML file (--config) is read as if its lines were flags in front of the given ones.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import tyro
import yaml
from tyro.conf import Positional, arg

from .errors import UserError

DEFAULT_MODEL = "tnt_s_patch16_224_fused"


@dataclass(kw_only=True)
class ModelOptions:
    """Which model, and on what it runs."""

    model: str = DEFAULT_MODEL
    """timm's name of the model; ours end in _fused. A weights file of this program that names
    its model goes first."""
    model_kwargs: dict[str, str] = field(default_factory=dict)
    """Further arguments of the model: --model-kwargs depth 4 embed_dim 192."""
    img_size: Optional[int] = None
    """Side of the images in pixels; the model's own by default."""
    crop_pct: Optional[float] = None
    """Share of an image's shorter side that evaluation and prediction keep; the model's own by
    default (0.9 for TNT)."""
    in_chans: int = 3
    """Channels of the images: 3, or 1 for grey ones."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    amp: Optional[Literal["bf16", "fp16"]] = None
    """Automatic mixed precision; float32 by default."""
    compile: bool = False
    """Run the model through torch.compile."""
    channels_last: bool = False
    """Keep images and convolutions in the channels-last memory format."""
    config: Optional[str] = None
    """YAML file with any of these options; flags go before it."""


@dataclass(kw_only=True)
class DataOptions:
    """Where images come from."""

    data: Annotated[str, Positional, arg(metavar="DATA")]
    """Folder with one folder per split and class (train/cat/1.jpg, val/cat/2.jpg), or the
    folder in which a dataset of --dataset lives."""
    dataset: str = ""
    """torch/cifar10, torch/cifar100, torch/flowers102, torch/pets, any other map-style dataset
    that timm reads (torch/NAME, hfds/NAME), or empty for folders."""
    val_split: str = "val"
    """Split that is evaluated (folders: also validation, ...)."""
    download: bool = False
    """Download a torch/... dataset into the folder if it is missing."""
    workers: int = 4
    """Processes that decode and augment images; 0 does it in the main one."""


@dataclass(kw_only=True)
class TrainOptions(ModelOptions, DataOptions):
    """Train a model. The default is the recipe of Table 3: 300 epochs of AdamW, batch 1024."""

    output: str = "runs/train"
    """Folder of the run: config.yaml, last.pt, best.safetensors, steps.csv, epochs.csv."""
    resume: Optional[str] = None
    """auto goes on from last.pt in the output folder (or starts, when there is none); else the
    path of such a file."""
    weights: Optional[str] = None
    """Weights to start from: a file, hub (timm's published ones) or hf-hub:OWNER/NAME. A head of
    another number of classes is left out."""
    train_split: str = "train"
    """Split that is trained on."""

    epochs: Optional[int] = 300
    """Passes over the data."""
    batch_size: int = 1024
    """Images per optimizer step, over all devices."""
    micro_batch: int = 128
    """At most this many images at a time on one device; gradients accumulate to the batch."""
    seed: int = 0
    """Of initial weights, order, augmentation and dropout."""

    opt: str = "adamw"
    """timm's name of the optimizer."""
    lr: float = 1e-3
    """Learning rate for a batch of 1024; scaled in proportion to --batch-size."""
    weight_decay: float = 0.05
    """Not applied to positions, class token, biases and norms."""
    layer_decay: Optional[float] = None
    """Factor of the learning rate from each block to the one before it."""
    clip_grad: Optional[float] = None
    """Largest norm of the gradient."""
    sched: str = "cosine"
    """timm's name of the schedule."""
    warmup_epochs: int = 5
    """Epochs in which the learning rate rises."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule."""

    smoothing: float = 0.1
    """Label smoothing."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    augment: bool = True
    """Random crops, flips and RandAugment; without it images are resized and cropped centrally."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image that a random crop takes."""
    hflip: float = 0.5
    """Probability of mirroring an image."""
    auto_augment: Optional[str] = "rand-m9-mstd0.5-inc1"
    """timm's policy string."""
    mixup: float = 0.8
    """Alpha of Mixup; 0 for none."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 for none."""
    reprob: float = 0.25
    """Probability of erasing a random rectangle."""
    aug_repeats: int = 3
    """Augmented copies of an image per epoch; 0 for none. An epoch keeps its length."""

    ema: bool = True
    """Keep an exponential moving average of the weights."""
    ema_decay: float = 0.99996
    """Of the average, per step."""
    ema_warmup: bool = False
    """Start the average with a small decay, for short runs."""
    grad_checkpointing: bool = False
    """Recompute activations in backward to save memory."""
    fsdp: bool = False
    """Shard parameters, gradients and optimizer over processes (FSDP2) instead of DDP."""

    log_every: int = 50
    """Steps between rows of steps.csv."""
    save_every: int = 0
    """Also save every so many steps; a checkpoint is saved after each epoch anyway."""
    tensorboard: bool = True
    """Write TensorBoard's event files into the output folder."""


@dataclass(kw_only=True)
class FinetuneOptions(TrainOptions):
    """Fine-tune published or own weights on other data, as in Table 8: 384 pixels, the training
    recipe, a new head, interpolated positions."""

    output: str = "runs/finetune"
    """Folder of the run: config.yaml, last.pt, best.safetensors, steps.csv, epochs.csv."""
    weights: Optional[str] = "hub"
    """Weights to start from: a file, hub (timm's published ones) or hf-hub:OWNER/NAME."""
    img_size: Optional[int] = 384
    """Side of the images in pixels."""
    epochs: Optional[int] = None
    """Passes over the data; by default the paper's: 64 on CIFAR, 300 elsewhere."""


@dataclass(kw_only=True)
class EvalOptions(ModelOptions, DataOptions):
    """Top-1 and top-5 accuracy on a split."""

    weights: str = "hub"
    """A file, hub (timm's published weights) or hf-hub:OWNER/NAME."""
    batch_size: int = 64
    """Images at a time on one device."""


@dataclass(kw_only=True)
class PredictOptions(ModelOptions):
    """The most probable classes of images."""

    images: Annotated[tuple[str, ...], Positional, arg(metavar="IMAGE...")]
    """Image files."""
    weights: str = "hub"
    """A file, hub (timm's published weights) or hf-hub:OWNER/NAME."""
    top: int = 5
    """Classes to print for each image."""


@dataclass(kw_only=True)
class VisualizeOptions(ModelOptions):
    """Pictures of what the model computes: patch features, their t-SNE, pixel embeddings
    (Figs. 4 and 5 of the paper)."""

    image: Annotated[str, Positional, arg(metavar="IMAGE")]
    """Image file."""
    weights: str = "hub"
    """Weights of the TNT: a file, hub (timm's published ones), hf-hub:OWNER/NAME or random."""
    output: str = "runs/visualize"
    """Folder of the PNG files."""
    deit: str = "deit_small_patch16_224"
    """timm's name of the plain transformer beside it; empty for none."""
    deit_weights: str = "hub"
    """Its weights."""
    deit_kwargs: dict[str, str] = field(default_factory=dict)
    """Further arguments of it."""
    patch_img_size: int = 1024
    """Side of the image for patch features and t-SNE; the paper takes 1024."""
    blocks: tuple[int, ...] = (1, 6, 12)
    """Blocks to show, counted from 1."""
    maps: int = 12
    """Feature maps per block, drawn at random."""
    seed: int = 0
    """Of that draw and of t-SNE."""


COMMANDS: dict[str, type] = {
    "train": TrainOptions,
    "finetune": FinetuneOptions,
    "eval": EvalOptions,
    "predict": PredictOptions,
    "visualize": VisualizeOptions,
}


def parse(command: str, arguments: list[str]) -> Any:
    """The options of `command` from flags, and from the YAML file of --config.

    Raises: SystemExit (2) for flags that do not parse; UserError for a bad YAML file.
    """
    kind = COMMANDS[command]
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(arguments)[0].config
    given = {} if path is None else _read_yaml(path, kind)
    positional = next(f.name for f in dataclasses.fields(kind) if f.name in _POSITIONALS)
    default = {positional: given.pop(positional)} if positional in given else None
    if default is not None:
        default = kind(**default)
    flags = [flag for name, value in given.items() for flag in _as_flags(name, value)]
    return tyro.cli(kind, prog=f"python -m tnt {command}", args=flags + arguments, default=default)


_POSITIONALS = ("data", "images", "image")


def _read_yaml(path: str, kind: type) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path} cannot be read: {reason}") from error
    known = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold `option: value` lines, got {content!r}")
    unknown = [name for name in content if str(name).replace("-", "_") not in known]
    if unknown:
        raise UserError(
            f"--config {path} has {', '.join(map(str, unknown))}, which is no option; known are "
            f"{', '.join(known)}"
        )
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _as_flags(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        values = [str(part) for item in value.items() for part in item]
    elif isinstance(value, (list, tuple)):
        values = [str(part) for part in value]
    else:
        values = [str(value)]
    return [f"--{flag}", *values]


def to_yaml(options: Any) -> str:
    """The options as a YAML file that --config reads."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()}
    return yaml.safe_dump({k: v for k, v in fields.items() if k != "config"}, sort_keys=False)
