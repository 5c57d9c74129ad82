"""A backend whose ops, forward and backward, are emulated CUDA kernels: tests force it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Optional
from unittest import mock

import torch
from emulation import pixels
from emulation.backwards import block_backward
from emulation.calls import emulate
from torch import Tensor

from tnt.models import flow
from tnt_kernels import library, use_backend
from tnt_kernels.backends import BACKENDS, native
from tnt_kernels.reference import PIXEL_EMBED, PIXEL_TO_PATCH, SPECS

NAME = "emulated"
NAMESPACE = "tnt_kernels_emulated"
OPS = ("inner_block", "pixel_embed", "pixel_to_patch")
ACTIVATIONS = ("x", "mid", "images", "pixels", "patch_tokens", "projection", "dy")
LIBRARY = library.register(NAMESPACE)


class EmulatedBackend:
    """Takes what the CUDA kernels take, as a GPU of capability 9.0 would.

    Attributes:
        calls: how often each operator ran.
        changed: what a test does to the results of an operator, by its name.
    """

    def __init__(
        self, kernels: ModuleType, pixel_kernels: ModuleType, backward_kernels: ModuleType
    ) -> None:
        self.kernels = kernels
        self.pixel_kernels = pixel_kernels
        self.backward_kernels = backward_kernels
        self.calls: Counter = Counter()
        self.changed: dict = {}

    def refusal(self, call: Any) -> Optional[str]:
        """What the native backend says about the call on a GPU that has every kernel."""
        with (
            mock.patch.object(native, "extension_problem", return_value=None),
            mock.patch.object(native, "cuda_capability", return_value=(9, 0)),
        ):
            return native.refusal(call._replace(device="cuda"))

    def run(self, op: str, args: Mapping[str, Any]) -> Tensor:
        """Run the op through its operator, autograd and autocast included."""
        return library.call(op, args, NAMESPACE)

    def inner_block(self, args: dict) -> tuple:
        out, mid = emulate(self.kernels, args)
        return out, mid if args["save_mid"] else mid.new_empty(0)

    def inner_block_backward(self, args: dict) -> tuple:
        need = (args["need_dx"], args["need_dw"])
        return block_backward(self.backward_kernels, args, args["mid"], args["dy"], need)

    def pixel_embed(self, args: dict) -> tuple:
        return (pixels.pixel_embed(self.pixel_kernels, args),)

    def pixel_embed_backward(self, args: dict) -> tuple:
        args = {**args, "bias": None, "pixel_pos": None}
        grads = pixels.pixel_embed_backward(self.pixel_kernels, args, args["dy"])
        return grads["images"], _flat(grads, PIXEL_EMBED, args)

    def pixel_to_patch(self, args: dict) -> tuple:
        out, projection = pixels.pixel_to_patch(self.pixel_kernels, args)
        if projection is None or not args["save_projection"]:
            projection = args["pixels"].new_empty(0)
        return out, projection

    def pixel_to_patch_backward(self, args: dict) -> tuple:
        dy = args["dy"]
        args = {**args, "patch_tokens": dy if args["has_patch_tokens"] else None}
        projection = args["projection"] if args["projection"].numel() else None
        need = (args["need_dpixels"], args["need_dw"])
        grads = pixels.pixel_to_patch_backward(self.pixel_kernels, args, dy, projection, need)
        return grads.get("pixels"), _flat(grads, PIXEL_TO_PATCH, args) if need[1] else None


def _flat(grads: Mapping[str, Tensor], spec: Any, args: Mapping[str, Any]) -> Tensor:
    """Backward's flat weight gradient; slots of absent weights are zero."""
    slots = zip(spec.weights, spec.weight_shapes(args))
    parts = [
        grads[n].flatten() if n in grads else torch.zeros(torch.Size(shape).numel())
        for n, shape in slots
    ]
    return torch.cat(parts)


_active: list = []  # the backend that the operators of LIBRARY run on


def _implementation(op: str, names: tuple, flags: tuple = ()) -> Callable:
    """The operator `op` on the active backend; a result whose flag is off becomes empty."""

    def run(*values: Any) -> Any:
        # as csrc/cuda/call.h does with activations; weights are taken at any stride
        args = {
            name: x.contiguous() if name in ACTIVATIONS and x is not None else x
            for name, x in zip(names, values, strict=True)
        }
        backend = _active[-1]
        backend.calls[op] += 1
        found = backend.changed.get(op, lambda results: results)(getattr(backend, op)(args))
        if flags:
            wanted = zip(found, flags, strict=True)
            found = tuple(x if args[flag] else args["dy"].new_empty(0) for x, flag in wanted)
        return found if len(found) > 1 else found[0]

    return run


def _implement(op: str) -> None:
    spec = SPECS[op]
    forward = spec.argument_names + ((spec.flag,) if spec.flag else ())
    LIBRARY.impl(op, _implementation(op, forward), "CPU")
    schema = spec.backward_schema
    names = tuple(part.split()[-1] for part in schema[1 : schema.index(")")].split(","))
    backward = _implementation(f"{op}_backward", names, names[-2:])
    LIBRARY.impl(f"{op}_backward", backward, "CPU")


for _op in OPS:
    _implement(_op)


@contextmanager
def forced(backend: EmulatedBackend) -> Iterator[None]:
    """Every op of a model runs on `backend`, and attention among patches as it does on a GPU."""
    _active.append(backend)
    try:
        with (
            mock.patch.dict(BACKENDS, {NAME: backend}),
            mock.patch.object(flow, "_outer_attention_pays", return_value=False),
            use_backend(NAME),
        ):
            yield
    finally:
        _active.pop()
