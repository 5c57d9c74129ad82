"""Processes of one run: torchrun's environment, DDP, FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


class World(NamedTuple):
    """This process among all of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


_worlds: list[World] = []


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun or SLURM started, or that of one process; left on exit.

    Inside another `joined`, its world.
    """
    if _worlds:
        yield _worlds[-1]
        return
    if not is_distributed_env():
        yield World(0, 1, device)
        return
    found = init_distributed_device_so(device.type)
    _worlds.append(World(found["global_rank"], found["world_size"], torch.device(found["device"])))
    try:
        yield _worlds[-1]
    finally:
        _worlds.pop()
        dist.destroy_process_group()


def shard(model: nn.Module) -> nn.Module:
    """FSDP2: parameters of each block, and the rest, are split over all processes; in place."""
    for block in getattr(model, "blocks", []):
        fully_shard(block)
    return fully_shard(model)


def replicate(model: nn.Module, world: World) -> nn.Module:
    """DDP around `model`, or the model itself in a world of one process."""
    if world.size == 1:
        return model
    ids = None if world.device.type == "cpu" else [world.device]
    # the only buffers, statistics of uint8 images, are the same everywhere
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def gradients_wait(model: nn.Module, waiting: bool) -> None:
    """Whether the next backward leaves gradients unreduced, since more micro-batches follow."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = not waiting
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(not waiting)
