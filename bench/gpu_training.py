"""Training on the GPU as users run it, each way against plain steps; part of the acceptance run.

    python bench/gpu_training.py REPORT.json                        every check
    python bench/gpu_training.py REPORT.json captured_step fsdp     some of them

The report is written anew after every check. One that fails does not stop the others; the exit
status is 1 if any did.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import calls, memory
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tnt
from tnt.cli.parallel import shard

DEVICE = "cuda"
BATCH, STEPS = 16, 4
FULL: dict = {"drop_path_rate": 0.1}  # beyond the models' own sizes
SHALLOW: dict = {"depth": 2}  # depth costs minutes of compilation, and a compiler drops other paths
USUAL_SCALE = 2.0**14
"""GradScaler's once it has settled. At its first, 2**16, gradients that PyTorch's own layers sum in
float16 come within a factor of two or three of that type's range."""
SAME = 1e-2
"""Relative difference, at most, of losses or gradients of one computation in bfloat16."""
REGROUPED = 5e-2
"""The same where a compiler rounds at other places."""
EXACT_LOSS = 1e-4
"""Of a loss whose logits are all zero."""


def build(name: str = "tnt_s", **options: Any) -> nn.Module:
    """A model in training, the same at every call."""
    torch.manual_seed(0)
    return getattr(tnt, name)(**options).to(DEVICE).train()


def batches(model: nn.Module, count: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels on the device, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, model.in_chans, *model.pixel_embed.img_size)
    return [
        (
            torch.randn(shape, generator=generator).to(DEVICE),
            torch.randint(model.num_classes, (BATCH,), generator=generator).to(DEVICE),
        )
        for _ in range(count)
    ]


def loss_of(
    model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Cross-entropy under autocast, without its cache, which would outlive a captured graph."""
    with torch.autocast(DEVICE, dtype, cache_enabled=False):
        logits = model(images)
    return F.cross_entropy(logits.float(), labels)


def gradients(model: nn.Module, batch: tuple, loss: Callable = loss_of) -> dict[str, Tensor]:
    """Every parameter's gradient, by name, whatever wraps or shards the model."""
    torch.manual_seed(2)  # of the dropped paths
    model.zero_grad()
    loss(model, *batch).backward()
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        found[name.removeprefix("module.")] = grad.clone()
    return found


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of what is expected, all tensors together."""
    if found.keys() != expected.keys():
        raise AssertionError(f"not in both: {sorted(found.keys() ^ expected.keys())}")
    off = sum((found[n] - e).double().square().sum().item() for n, e in expected.items())
    return math.sqrt(off / sum(e.double().square().sum().item() for e in expected.values()))


def within(figure: float, limit: float, what: str) -> float:
    """`figure` itself. Raises: AssertionError if it is above `limit`, or no number."""
    if not figure <= limit:
        raise AssertionError(f"{what}: {figure:.2e}, limit {limit:.0e}")
    return figure


class Training:
    """A model, fixed inputs and AdamW: a step that can be captured, and can start again."""

    def __init__(self, name: str = "tnt_s") -> None:
        self.model = build(name, **FULL)
        self.first, self.second = batches(self.model, 2)
        self.inputs = tuple(x.clone() for x in self.first)
        self.start = [p.detach().clone() for p in self.model.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, fused=True, capturable=DEVICE == "cuda"
        )

    def step(self) -> Tensor:
        """Forward, loss, backward, update; returns the loss."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model, *self.inputs)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def take(self, batch: tuple[Tensor, Tensor]) -> None:
        """Make `batch` the one that steps read."""
        for fixed, new in zip(self.inputs, batch, strict=True):
            fixed.copy_(new)

    @torch.no_grad()
    def restart(self) -> None:
        """Weights, moments and random numbers of the beginning, in the same memory."""
        for parameter, value in zip(self.model.parameters(), self.start, strict=True):
            parameter.copy_(value)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        torch.manual_seed(2)  # of the dropped paths
        self.take(self.first)

    def losses(self, run: Callable[[], Tensor]) -> Tensor:
        """Of steps from the beginning on one batch, which they learn, and of one on another."""
        self.restart()
        found = [run().clone() for _ in range(STEPS)]
        self.take(self.second)
        return torch.stack([*found, run().clone()])


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """What makes the host wait for the GPU raises."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def synchronisation() -> dict:
    """Steps of both models make the host wait for nothing."""
    for name in ("tnt_s", "tnt_b"):
        training = Training(name)
        training.step()  # loads libraries
        with waiting_is_an_error():
            training.step()
    return {"steps that waited": 0}


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`call` as a CUDA graph, which returns the same tensor at every replay."""
    if DEVICE == "cpu":
        call()
        return call
    return calls.captured(call, DEVICE)


def captured_step() -> dict:
    """A whole step as one CUDA graph: its losses are those of steps that are launched."""
    training = Training()
    replay = captured(training.step)
    launched, replayed = training.losses(training.step), training.losses(replay)
    if not launched[STEPS - 1] < 0.9 * launched[0]:
        raise AssertionError(f"nothing is learnt, so nothing is shown: losses {launched.tolist()}")
    figure = ((replayed - launched).abs() / launched).max().item()
    within(figure, SAME, f"losses {replayed.tolist()} against {launched.tolist()}")
    with torch.no_grad():
        for parameter in training.model.head.parameters():
            parameter.zero_()
    expected = math.log(training.model.num_classes)
    error = abs(replay().item() - expected)
    within(error, EXACT_LOSS, "loss after the head's weights were changed between replays")
    return {"largest difference": figure, "losses": replayed.tolist()}


def compiled_step() -> dict:
    """torch.compile(fullgraph=True) of forward and loss: eager's gradients."""
    model = build(**SHALLOW)
    (batch,) = batches(model, 1)
    compiled = gradients(model, batch, torch.compile(loss_of, fullgraph=True))
    figure = difference(compiled, gradients(model, batch))
    return {"difference": within(figure, REGROUPED, "gradients")}


def compiled_inference() -> dict:
    """torch.compile(mode="reduce-overhead"), which captures graphs itself: eager's logits."""
    model = build(**SHALLOW).eval()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    found, expected = {}, {}
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        for i, (images, _) in enumerate(batches(model, STEPS)):  # warm-up, capture, replays
            torch.compiler.cudagraph_mark_step_begin()
            found[i], expected[i] = compiled(images).clone(), model(images)
    return {"difference": within(difference(found, expected), REGROUPED, "logits")}


def scaled_fp16() -> dict:
    """Steps in float16 with GradScaler at its usual scale overflow nowhere."""
    training = Training()
    scaler = torch.amp.GradScaler(DEVICE, init_scale=USUAL_SCALE)
    losses = []
    for _ in range(STEPS):
        training.optimizer.zero_grad()
        loss = loss_of(training.model, *training.inputs, dtype=torch.float16)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        losses.append(loss.item())
    if scaler.get_scale() < USUAL_SCALE:
        raise AssertionError(f"gradients overflowed: the scale fell to {scaler.get_scale():.0f}")
    within(losses[-1], 0.9 * losses[0], f"the last of the losses {losses}")
    return {"scale": scaler.get_scale(), "losses": losses}


def _peak_bytes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> int:
    model.zero_grad()
    return memory.peak_bytes(lambda: loss_of(model, *batch).backward(), DEVICE)


def checkpointing() -> dict:
    """Activation checkpointing: the same gradients from less memory."""
    model = build(**FULL)
    (batch,) = batches(model, 1)
    expected, plain = gradients(model, batch), _peak_bytes(model, batch)
    model.set_grad_checkpointing()
    figure = within(difference(gradients(model, batch), expected), SAME, "gradients")
    peak = _peak_bytes(model, batch)
    within(peak / plain, 0.9, "peak memory over that of plain training")
    return {"difference": figure, "peak_mb": peak / 1e6, "peak_plain_mb": plain / 1e6}


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process group of this process alone, without a network."""
    with tempfile.TemporaryDirectory() as folder:
        on_gpu = DEVICE == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"file://{folder}/store",
            rank=0,
            world_size=1,
            device_id=torch.device("cuda", 0) if on_gpu else None,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


def _spread(wrap: Callable[[nn.Module], nn.Module]) -> dict:
    model = build(**FULL)
    (batch,) = batches(model, 1)
    expected = gradients(model, batch)
    with group_of_one():
        figure = difference(gradients(wrap(model), batch), expected)
    return {"difference": within(figure, SAME, "gradients")}


def ddp() -> dict:
    """DistributedDataParallel: gradients are those of the plain model."""
    ids = [0] if DEVICE == "cuda" else None
    return _spread(lambda model: DistributedDataParallel(model, device_ids=ids))


def fsdp() -> dict:
    """FSDP2, sharded as `python -m tnt train --fsdp` does: the plain model's gradients."""
    return _spread(shard)


def determinism() -> dict:
    """Two backward passes give the same bits, PyTorch's attention asked to do so, too."""
    model = build(**FULL)
    (batch,) = batches(model, 1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = gradients(model, batch), gradients(model, batch)
    finally:
        torch.use_deterministic_algorithms(False)
    differing = [name for name, grad in first.items() if not torch.equal(grad, second[name])]
    if differing:
        raise AssertionError(f"gradients of {', '.join(differing)} differ")
    return {"gradients compared": len(first), "that differ": 0}


CHECKS = {
    check.__name__: check
    for check in (
        synchronisation,
        captured_step,
        scaled_fp16,
        checkpointing,
        determinism,
        ddp,
        fsdp,
        compiled_inference,
        compiled_step,
    )
}


def main(report: Path, names: list[str]) -> int:
    """Run the checks, those that compile last; returns 1 if one failed."""
    found: dict = {}
    for name in names or CHECKS:
        begin = time.perf_counter()
        try:
            outcome = {"passed": True, **CHECKS[name]()}
        except Exception as error:  # whatever it is, the next check is run
            traceback.print_exc()
            outcome = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        found[name] = {**outcome, "seconds": round(time.perf_counter() - begin, 1)}
        print(name, found[name], flush=True)
        report.write_text(json.dumps(found))
        memory.release(DEVICE)
    return int(not all(outcome["passed"] for outcome in found.values()))


if __name__ == "__main__":
    # cuBLAS sums in one order only with a workspace of a fixed size, chosen before it starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
