"""What is trained, and one step of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from .data import seed_everything
from .errors import UserError
from .models import autocast
from .options import TrainOptions
from .parallel import World, gradients_wait, replicate, shard
from .transforms import ToDevice

_BASE_BATCH = 1024  # the batch that --lr is meant for
_STEP_STREAM = 1  # keeps the random numbers of steps apart from those of samples
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def micro_batch_size(options: TrainOptions, world: World) -> int:
    """Images that one process takes at a time: the largest even share within --micro-batch.

    Raises: UserError when no whole number fits.
    """
    share, rest = divmod(options.batch_size, world.size)
    if rest or share < 1 or options.micro_batch < 1:
        raise UserError(
            f"--batch-size {options.batch_size} cannot be split over {world.size} processes in "
            f"micro-batches of at most {options.micro_batch}; give a multiple of {world.size}"
        )
    micro = next(n for n in range(min(share, options.micro_batch), 0, -1) if share % n == 0)
    if micro % 2 and (options.mixup or options.cutmix):
        raise UserError(
            f"Mixup pairs images, but a micro-batch would be {micro}: give a --batch-size of which "
            f"every process takes an even share, or --mixup 0 --cutmix 0"
        )
    return micro


class Trainer:
    """Model, optimizer, schedule, scaler and averaged model, and the step that moves them all.

    Args:
        model: on the CPU, with its initial weights, the same on every process.
        micros: micro-batches that this process takes per step.
        steps_per_epoch: optimizer steps of an epoch.
        config: timm's data configuration, for normalisation.
    """

    def __init__(
        self,
        options: TrainOptions,
        model: nn.Module,
        num_classes: int,
        world: World,
        micros: int,
        steps_per_epoch: int,
        config: dict[str, Any],
    ) -> None:
        self.options, self.world, self.micros = options, world, micros
        self.step = 0
        memory_format = torch.channels_last if options.channels_last else torch.preserve_format
        self.model = model.to(world.device, memory_format=memory_format).train()
        if options.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.ema: Optional[ModelEmaV3] = None
        if options.ema:
            decay, warmup = options.ema_decay, options.ema_warmup
            # DTensors have no fused lerp
            self.ema = ModelEmaV3(
                self.model, decay=decay, use_warmup=warmup, foreach=not options.fsdp
            ).requires_grad_(False)
        if options.fsdp:
            _check_fsdp(world)
            shard(self.model)
            if self.ema is not None:
                shard(self.ema.module)
        if options.compile:
            self.model.compile()
        self.parallel = self.model if options.fsdp else replicate(self.model, world)

        self.optimizer = create_optimizer_v2(
            self.model,
            opt=options.opt,
            lr=options.lr * options.batch_size / _BASE_BATCH,
            weight_decay=options.weight_decay,
            layer_decay=options.layer_decay,
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=options.sched,
            num_epochs=options.epochs,
            warmup_epochs=options.warmup_epochs,
            warmup_lr=options.warmup_lr,
            min_lr=options.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
        self.scheduler.step_update(0)
        fp16 = options.amp == "fp16"
        self.scaler = NativeScaler(world.device.type) if fp16 else None

        self.to_device = ToDevice(config, world.device, options.channels_last)
        self.erase = RandomErasing(options.reprob, mode="pixel", device=world.device)
        mixes = options.mixup > 0 or options.cutmix > 0
        smoothing = options.smoothing
        self.mixup = (
            Mixup(options.mixup, options.cutmix, label_smoothing=smoothing, num_classes=num_classes)
            if mixes
            else None
        )
        self.loss = create_classification_loss(smoothing=smoothing, soft_targets=mixes)

    @property
    def lr(self) -> float:
        """The highest learning rate among the parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One optimizer step on the next micro-batches; returns the mean loss of all processes."""
        total = torch.zeros((), device=self.world.device)
        for micro in range(self.micros):
            images, targets = next(batches)
            number = micro * self.world.size + self.world.rank  # as TrainingOrder counts them
            device = self.world.device
            seed_everything(self.options.seed, _STEP_STREAM, self.step, number, device=device)
            images, targets = self._prepare(images, targets)
            last = micro == self.micros - 1
            gradients_wait(self.parallel, not last)
            with autocast(device, self.options.amp):
                logits = self.parallel(images)
            loss = self.loss(logits.float(), targets) / self.micros
            total += loss.detach()
            self._backward(loss, last)
        self.optimizer.zero_grad()
        self.step += 1
        self.scheduler.step_update(self.step)
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        return self.world.total(total) / self.world.size

    def _prepare(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = self.to_device(images, targets)
        images = self.erase(images)
        return (images, targets) if self.mixup is None else self.mixup(images, targets)

    def _backward(self, loss: Tensor, last: bool) -> None:
        clip = self.options.clip_grad
        parameters = self.model.parameters()
        if self.scaler is not None:
            self.scaler(loss, self.optimizer, clip, parameters=parameters, need_update=last)
            return
        loss.backward()
        if last:
            if clip is not None:
                dispatch_clip_grad(parameters, clip)
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, whole and on the CPU.

        Every process calls it; with FSDP2 only the main one gets the tensors. The state of random
        generators is no part of it: each step seeds them with its own number.
        """
        return {
            "step": self.step,
            "model": get_model_state_dict(self.model, options=_WHOLE),
            "model_ema": None
            if self.ema is None
            else get_model_state_dict(self.ema.module, options=_WHOLE),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, of a run on any number of processes."""
        self.step = state["step"]
        set_model_state_dict(self.model, state["model"], options=_WHOLE)
        if self.ema is not None:
            set_model_state_dict(self.ema.module, state["model_ema"], options=_WHOLE)
        set_optimizer_state_dict(
            self.model, self.optimizer, optim_state_dict=state["optimizer"], options=_WHOLE
        )
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


def _check_fsdp(world: World) -> None:
    if world.size == 1 and not torch.distributed.is_initialized():
        raise UserError("--fsdp needs processes to shard over: torchrun -m tnt train ... --fsdp")
