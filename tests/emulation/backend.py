"""A backend whose ops are those of csrc/cuda on an emulated GPU: tests force it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional
from unittest import mock

import torch
from emulation import operators
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tnt.models import flow
from tnt_kernels import library, use_backend
from tnt_kernels.backends import BACKENDS, native

NAME = "emulated"
OPS = ("inner_attention", "inner_mlp", "inner_block", "pixel_embed", "pixel_to_patch")
NAMESPACE = "tnt_kernels_emulated"
LIBRARY = library.register(NAMESPACE)  # definitions end with it


class EmulatedBackend:
    """Takes what the CUDA kernels take, as a GPU of capability 9.0 would.

    Attributes:
        set_device: sets multiprocessors, at first 2, and whether warps run in falling order.
        calls: how often each operator ran.
        changed: what a test does to the results of an operator, by its name.
    """

    def __init__(self, set_device: Callable[[int, bool], None]) -> None:
        self.set_device = set_device
        self.calls: Counter = Counter()
        self.changed: dict = {}

    def refusal(self, call: Any) -> Optional[str]:
        """What the native backend says about the call on a GPU."""
        return native.cuda_refusal(call) if call.op in OPS else f"no {call.op} kernel"

    def run(self, op: str, args: Mapping[str, Any]) -> Tensor:
        """Run the op through its operator, autograd and autocast included."""
        return library.call(op, args, NAMESPACE)


class _Watch(TorchDispatchMode):
    """Counts the operators of a backend, and changes what a test wants changed."""

    def __init__(self, backend: EmulatedBackend) -> None:
        super().__init__()
        self.backend = backend

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Optional[dict] = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace != NAMESPACE:
            return found
        op = func._schema.name.split("::")[1]
        self.backend.calls[op] += 1
        return self.backend.changed.get(op, lambda results: results)(found)


def install() -> None:
    """Makes the emulated GPU a backend that op tests can name; calls do not choose it."""
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    BACKENDS[NAME] = EmulatedBackend(operators.load())


@contextmanager
def forced(backend: EmulatedBackend) -> Iterator[None]:
    """Every op of a model runs on `backend`, and attention among patches as it does on a GPU."""
    with (
        mock.patch.dict(BACKENDS, {NAME: backend}),
        mock.patch.object(flow, "_outer_attention_pays", return_value=False),
        use_backend(NAME),
        _Watch(backend),
    ):
        yield
