"""Where the time of a TNT goes: embedding, inner flow, projection, outer flow, head.

Every stage runs under a profiler label. Fused blocks call three functions of `tnt.models.flow`,
which are wrapped; timm's blocks call modules, whose `forward` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tnt.models import flow
from tnt.models import tnt as fused_model

from .memory import quiet

STAGES = ("embedding", "inner", "projection", "outer", "head")
_PREFIX = "stage "
_BLOCK_STAGES = {
    "inner": ("norm_in", "attn_in", "norm_mlp_in", "mlp_in"),
    "projection": ("norm1_proj", "proj", "norm2_proj"),
    "outer": ("norm_out", "attn_out", "norm_mlp", "mlp", "se_layer"),
}
_MODEL_STAGES = {
    "embedding": ("pixel_embed", "norm1_proj", "proj", "norm2_proj"),
    "head": ("norm", "head"),
}


def _labelled(function: Callable, stage: str) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(_PREFIX + stage):
            return function(*args, **kwargs)

    return call


def _module_patches(parent: nn.Module, stages: dict) -> Iterator[Any]:
    for stage, names in stages.items():
        for name in names:
            module = getattr(parent, name, None)
            if isinstance(module, nn.Module):
                yield mock.patch.object(module, "forward", _labelled(module.forward, stage))


@contextmanager
def labels(model: nn.Module, ours: bool) -> Iterator[None]:
    """Label the stages of `model`, a TNT of ours or of timm, while the context lasts."""
    with ExitStack() as stack:
        if ours:  # a module with another forward would not be fused
            functions = {"inner_flow": "inner", "add_pixels": "projection", "outer_flow": "outer"}
            for name, stage in functions.items():
                original = getattr(flow, name)
                stack.enter_context(mock.patch.object(flow, name, _labelled(original, stage)))
            stem = _labelled(fused_model.add_pixels, "embedding")
            stack.enter_context(mock.patch.object(fused_model, "add_pixels", stem))
            stages = {"embedding": ("pixel_embed",), "head": _MODEL_STAGES["head"]}
        else:
            stages = _MODEL_STAGES
            for block in model.blocks:
                for patch in _module_patches(block, _BLOCK_STAGES):
                    stack.enter_context(patch)
        for patch in _module_patches(model, stages):
            stack.enter_context(patch)
        yield


def breakdown(
    model: nn.Module,
    ours: bool,
    call: Callable[[], object],
    device: str,
    trace: Optional[Path] = None,
    runs: int = 3,
) -> dict[str, float]:
    """Milliseconds of a forward pass per stage, and "rest": what no stage covers.

    trace: also write what was recorded as a Chrome trace.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with labels(model, ours), quiet():
        call()
        with profile(activities=activities) as record:
            for _ in range(runs):
                with record_function(_PREFIX + "total"):
                    call()
                if device == "cuda":
                    torch.cuda.synchronize()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        record.export_chrome_trace(str(trace))
    times = {}
    for event in record.key_averages():
        if event.key.startswith(_PREFIX):
            total_us = event.device_time_total if device == "cuda" else event.cpu_time_total
            times[event.key[len(_PREFIX) :]] = total_us / runs / 1e3
    found = {stage: times.get(stage, 0.0) for stage in STAGES}
    return {**found, "rest": times["total"] - sum(found.values())}
