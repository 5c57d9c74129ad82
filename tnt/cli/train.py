"""`python -m tnt train DATA`: the paper's recipe, resumable at every step."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from .data import (
    Images,
    TrainingOrder,
    class_names,
    download_once,
    evaluation_order,
    loader,
    open_dataset,
    seed_everything,
)
from .engine import Trainer, micro_batch_size
from .errors import UserError
from .evaluate import evaluate
from .logs import RunLog, Silence, progress
from .models import Description, build, choose_device, data_config
from .options import TrainOptions, to_yaml
from .parallel import World, joined
from .saving import export, load_state, save_state, write_whole
from .transforms import evaluation_transform, training_transform

LAST, BEST, CONFIG = "last.pt", "best.safetensors", "config.yaml"
# What a resumed run may change, since the loss curve does not depend on it.
_FREE = {"data", "output", "resume", "config", "weights", "device", "workers", "micro_batch"}
_FREE |= {"compile", "channels_last", "grad_checkpointing", "fsdp", "download"}
_FREE |= {"log_every", "save_every", "tensorboard"}


@dataclass
class Place:
    """How far a run is."""

    epoch: int = 0
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # of the epoch's steps
    best: float = -math.inf  # top-1


def run(options: TrainOptions) -> dict[str, float]:
    """Train as the options say; returns the last evaluation.

    Raises: UserError for what cannot be used, before anything is written where that can be.
    """
    folder = Path(options.output)
    with joined(choose_device(options.device)) as world:
        download_once(options, (options.train_split, options.val_split), world)
        train_source = open_dataset(options, options.train_split)
        names = class_names(train_source)
        if names is None:
            raise UserError(f"--dataset {options.dataset} has no class names to count classes by")
        val_source = open_dataset(options, options.val_split, names)
        state = _state_to_resume(options, folder)
        seed_everything(options.seed)
        found = None if state is None else Description(**state["description"])
        model, description = build(
            options,
            options.weights if found is None else None,
            found=found,
            num_classes=len(names),
            class_names=names,
            **({"drop_path_rate": options.drop_path} if options.drop_path else {}),
        )
        config = data_config(model, description)
        training = _training_loader(options, config, train_source, world)
        validation = _validation_loader(options, config, val_source, world)
        order = training.batch_sampler
        micros = order.micros // world.size
        trainer = Trainer(options, model, len(names), world, micros, order.steps, config)
        place = Place()
        if state is not None:
            trainer.load(state)
            place = Place(state["epoch"], state["epoch_step"], state["loss_sum"], state["best"])
        if world.main:
            _make_folder(folder, options)
        return Run(options, trainer, description, folder, place).go(training, validation)


class Run:
    """The loop over epochs, with its log and its files."""

    def __init__(
        self,
        options: TrainOptions,
        trainer: Trainer,
        description: Description,
        folder: Path,
        place: Place,
    ) -> None:
        self.options, self.trainer, self.description = options, trainer, description
        self.folder, self.place = folder, place
        self.world = trainer.world
        self.log: Any = Silence()
        if self.world.main:
            self.log = RunLog(folder, trainer.step, place.epoch, options.tensorboard)

    def go(self, training: DataLoader, validation: DataLoader) -> dict[str, float]:
        """Train to the last epoch; returns the last evaluation."""
        results: dict[str, float] = {}
        try:
            with closing(self.log):
                while self.place.epoch < self.options.epochs:
                    self._epoch(training)
                    results = self._evaluate(validation, training.batch_sampler.steps)
                    self._save()
        except OSError as error:  # of a log, or of a disk that is gone
            raise UserError(
                f"the run in {self.folder} stopped: {error}. Set that right, then go on with "
                f"--resume auto"
            ) from error
        if self.world.main:
            print(f"best top-1 {self.place.best:.2f} % ({self.folder / BEST})")
        return results

    def _epoch(self, training: DataLoader) -> None:
        options, place, order = self.options, self.place, training.batch_sampler
        order.start_at(place.epoch, place.step)
        batches = iter(training)
        losses = torch.tensor(place.loss_sum, dtype=torch.float64, device=self.world.device)
        steps = range(place.step, order.steps)
        for step in progress(steps, place.epoch, options.epochs, self.world.main):
            lr, number = self.trainer.lr, self.trainer.step
            loss = self.trainer.train_step(batches)
            losses += loss
            place.step = step + 1
            if number % options.log_every == 0:
                value = _finite(loss, number)
                self.log.log_step(number, place.epoch, value, lr, options.batch_size)
            if options.save_every and self.trainer.step % options.save_every == 0:
                place.loss_sum = _finite(losses, number)
                self._save()
        place.loss_sum = _finite(losses, self.trainer.step)

    def _evaluate(self, validation: DataLoader, steps: int) -> dict[str, float]:
        trainer, place = self.trainer, self.place
        models = {"": trainer.model, **({"ema_": trainer.ema.module} if trainer.ema else {})}
        results = {}
        for prefix, model in models.items():
            found = evaluate(
                model, validation, trainer.to_device, self.world, self.options.amp, "evaluation"
            )
            results.update({prefix + name: value for name, value in found.items()})
        self.log.log_epoch(place.epoch, place.loss_sum / steps, results, trainer.lr)
        top1 = {prefix: results[f"{prefix}top1"] for prefix in models}
        better = max(top1, key=lambda prefix: top1[prefix])
        if self.world.main:
            shown = ", ".join(f"{prefix}top-1 {value:.2f} %" for prefix, value in top1.items())
            print(f"epoch {place.epoch + 1}: loss {place.loss_sum / steps:.4f}, {shown}")
        self.place = Place(place.epoch + 1, 0, 0.0, max(place.best, top1[better]))
        if top1[better] > place.best:
            self._export(models[better])
        return results

    def _export(self, model: torch.nn.Module) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(model, options=whole)
        if self.world.main:
            export(self.folder / BEST, weights, self.description)

    def _save(self) -> None:
        state = {
            **self.trainer.state(),
            "epoch": self.place.epoch,
            "epoch_step": self.place.step,
            "loss_sum": self.place.loss_sum,
            "best": self.place.best,
            "description": asdict(self.description),
            "options": yaml.safe_load(to_yaml(self.options)),
        }
        if self.world.main:
            save_state(self.folder / LAST, state)
        self.world.wait()


def _finite(loss: torch.Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(
            f"the loss is {value} at step {step}; the last checkpoint is from before. Try a "
            f"smaller --lr, --clip-grad 1, or --amp bf16 instead of fp16"
        )
    return value


def _state_to_resume(options: TrainOptions, folder: Path) -> Optional[dict[str, Any]]:
    """The state to go on from, or None for a new run. Raises: UserError when it does not fit."""
    last = folder / LAST
    if options.resume is None:
        if last.exists():
            raise UserError(
                f"--output {folder} holds a run; go on with it by --resume auto, or choose another"
            )
        return None
    path = last if options.resume == "auto" else Path(options.resume)
    if options.resume == "auto" and not path.exists():
        return None
    state = load_state(path)
    own = yaml.safe_load(to_yaml(options))
    differing = [
        f"{name} (was {state['options'].get(name)}, is {value})"
        for name, value in own.items()
        if name not in _FREE and state["options"].get(name) != value
    ]
    if differing:
        raise UserError(
            f"--resume {path}: other options than the run began with: {', '.join(differing)}. "
            f"Repeat them (--config {path.parent / CONFIG}), or start a new run from --weights "
            f"{path}"
        )
    return state


def _make_folder(folder: Path, options: TrainOptions) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}") from error
    write_whole(folder / CONFIG, lambda file: file.write(to_yaml(options).encode()))


def _training_loader(
    options: TrainOptions, config: dict[str, Any], source: Dataset, world: World
) -> DataLoader:
    transform = training_transform(options, config)
    images = Images(source, transform, config["input_size"][0], options.seed)
    micro = micro_batch_size(options, world)
    order = TrainingOrder(
        images, options.batch_size, micro, options.aug_repeats, options.seed, world
    )
    if order.steps == 0:
        raise UserError(
            f"{options.data} ({options.train_split}) has {len(images)} images, too few for one "
            f"batch of {options.batch_size}; give a smaller --batch-size"
        )
    return loader(images, order, options.workers)


def _validation_loader(
    options: TrainOptions, config: dict[str, Any], source: Dataset, world: World
) -> DataLoader:
    images = Images(source, evaluation_transform(config), config["input_size"][0])
    batch = micro_batch_size(options, world)
    return loader(images, evaluation_order(len(images), batch, world), options.workers)
