"""What is timed: an inference or a training step of a contestant, as a call without arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tnt_kernels

from .contestants import Contestant

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRAPH_WARMUPS = 3


def precision(device: str, dtype: str) -> Any:
    """Context in which a model runs at `dtype`: autocast, but for float32."""
    if DTYPES[dtype] is None:
        return nullcontext()
    return torch.autocast(device, dtype=DTYPES[dtype])


def _choice(row: Contestant) -> Any:
    return nullcontext() if row.backend is None else tnt_kernels.use_backend(row.backend)


def _runner(row: Contestant) -> Callable[[Tensor], Tensor]:
    return torch.compile(row.model) if row.mode == "compiled" else row.model


def captured(call: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    """`call` as a CUDA graph; its result is the same tensor at every replay."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARMUPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def inference(row: Contestant, batch: Tensor, dtype: str) -> Callable[[], Tensor]:
    """One forward pass in evaluation mode."""
    row.model.eval()
    run, device = _runner(row), batch.device.type

    def call() -> Tensor:
        with torch.inference_mode(), precision(device, dtype), _choice(row):
            return run(batch)

    return captured(call, device) if row.mode == "graph" else call


def training(row: Contestant, batch: Tensor, dtype: str) -> Callable[[], Tensor]:
    """Forward, loss, backward and an AdamW step on fixed labels.

    float16: the loss is scaled by a constant, as a GradScaler that has settled would.
    """
    row.model.train()
    run, device = _runner(row), batch.device.type
    capturable = row.mode == "graph"
    parameters = row.model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True, capturable=capturable)
    labels = torch.arange(len(batch), device=batch.device)
    scale = 1024.0 if dtype == "float16" else 1.0

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision(device, dtype), _choice(row):
            logits = run(batch)
            loss = F.cross_entropy(logits.float(), labels)
        with _choice(row):
            (loss * scale).backward()
        if scale != 1.0:
            grads = [p.grad for p in row.model.parameters() if p.grad is not None]
            torch._foreach_div_(grads, scale)
        optimizer.step()
        return loss.detach()

    return captured(call, device) if row.mode == "graph" else call


TASKS = {"inference": inference, "training": training}
