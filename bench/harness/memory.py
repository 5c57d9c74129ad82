"""Peak memory that a call adds to what was allocated before it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what the profiler's own library logs to standard error."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Peak of the tensor memory that `call` allocates, bytes.

    CPU: from the allocator's own record of every allocation, so exact and repeatable; scratch
    memory of kernels and libraries that does not come from PyTorch's allocator is not in it.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    pending = list(record.profiler.kineto_results.experimental_event_tree())
    changes = []
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    current = peak = 0
    for _, size in sorted(changes):
        current += size
        peak = max(peak, current)
    return peak


def saved_bytes(forward: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Bytes that `forward` keeps for its backward pass."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # holds all that was saved, so that no address is used twice
    del result
    return sum(kept.values())


def is_exhausted(error: RuntimeError) -> bool:
    """Whether `error` says that memory did not suffice."""
    text = str(error)
    cpu = "can't allocate memory" in text or "not enough memory" in text
    return isinstance(error, torch.OutOfMemoryError) or cpu


def release(device: str) -> None:
    """Give back what earlier calls have left."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
