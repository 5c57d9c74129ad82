"""Triton kernels: any GPU that Triton reaches, and the CPU under Triton's interpreter.

The operators live in a namespace of their own, `tnt_kernels_triton`, beside the compiled kernels
of `tnt_kernels`, with the same schemas, autograd, fakes, autocast and FLOP formulas. They are
plain registrations rather than `torch.library.triton_op`. What triton_op adds is that Inductor
traces into the launch; every host function, choice of tiling included, would have to be traceable
for that, and autograd would differentiate the trace instead of calling our backward. Around an
opaque operator a compiled graph is as whole, and what Inductor could fuse is in the kernels.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, Optional

import torch
from torch import Tensor

from ...library import call as call_operator
from ...library import register
from ...reference import SPECS
from ...spec import OpSpec

NAMESPACE = "tnt_kernels_triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_TOKENS, MOST_CHANNELS = 64, 128
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_MODULES = {
    "inner_attention": "inner",
    "inner_mlp": "inner",
    "inner_block": "inner",
    "pixel_embed": "pixel_embed",
    "pixel_to_patch": "pixel_to_patch",
}
OPS = tuple(_MODULES)


@functools.cache
def _host_function(name: str) -> Callable:
    """Triton is imported here, by the first call: it is slow to import and may be absent."""
    module = _MODULES[name.removesuffix("_backward")]
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def _check(spec: OpSpec, name: str, args: Mapping[str, Any]) -> None:
    """What the public functions have checked, for those who call the operator itself."""
    dtype = args[spec.activation].dtype
    if "mean" in args:
        dtype = _check_normalisation(spec, name, args)
    if dtype not in DTYPES:
        raise TypeError(f"{name}: {spec.activation} must be one of {DTYPES}, got {dtype}")
    for weight, shape in zip(spec.weights, spec.weight_shapes(args)):
        value = args.get(weight)
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: {weight} must be {shape}, got {tuple(value.shape)}")


def _check_normalisation(spec: OpSpec, name: str, args: Mapping[str, Any]) -> torch.dtype:
    """That uint8 images, and no others, have a mean and std; the dtype of the computation."""
    images = args[spec.activation]
    is_bytes = images.dtype is torch.uint8
    for statistic in ("mean", "std"):
        values = args[statistic]
        if (values is not None) is not is_bytes:
            needed = "given with uint8 images" if is_bytes else "None for floating images"
            raise ValueError(f"{name}: {statistic} must be {needed}")
        if is_bytes and (values.shape != images.shape[1:2] or values.dtype is not torch.float32):
            raise ValueError(f"{name}: {statistic} must be ({images.shape[1]},) float32")
    if is_bytes and args.get(f"need_d{spec.activation}"):
        raise ValueError(f"{name}: uint8 images have no gradient; pass need_dimages=False")
    return args[spec.typed_by(args)].dtype


def _implement(library: torch.library.Library, spec: OpSpec) -> None:
    forward_names = spec.argument_names
    backward_arguments = f"dy, {spec.backward_arguments}, need_d{spec.activation}, need_dw"
    backward_names = tuple(part.split()[-1] for part in backward_arguments.split(","))

    def implementation(name: str, names: tuple) -> Callable:
        def run_kernels(*values: Any) -> Any:
            _check(spec, name, dict(zip(names, values)))
            return _host_function(name)(*values)

        return run_kernels

    for name, names in ((spec.name, forward_names), (f"{spec.name}_backward", backward_names)):
        for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            library.impl(name, implementation(name, names), key)


_LIBRARY = register(NAMESPACE)
for _name in _MODULES:
    _implement(_LIBRARY, SPECS[_name])


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def device_problem(device: str) -> Optional[str]:
    """Why Triton cannot run on a device, or None."""
    if device != "cuda" and not (device == "cpu" and INTERPRETED):
        remedy = "; TRITON_INTERPRET=1 interprets them" if device == "cpu" else ""
        return f"Triton kernels do not run on device {device}{remedy}"
    return None if _is_installed() else "triton is not installed; `pip install triton`"


def refusal(call: Any) -> Optional[str]:
    """Why the Triton kernels do not take `call`, or None when they do."""
    problem = device_problem(call.device)
    if problem is not None:
        return problem
    if call.op not in _MODULES:
        return f"there is no Triton kernel for {call.op}"
    if call.dtype not in DTYPES:
        dtype = str(call.dtype).removeprefix("torch.")
        return f"dtype {dtype} is not one of float32, bfloat16, float16"
    tokens, dim = call.dims["S"], call.dims["C"]
    if call.op.startswith("inner"):
        if tokens > MOST_TOKENS or tokens & (tokens - 1):
            return f"S={tokens} tokens per patch is not a power of two up to {MOST_TOKENS}"
        if dim > MOST_CHANNELS:
            return f"C={dim} channels are more than {MOST_CHANNELS}"
    return None


def run(op: str, args: Mapping[str, Any]) -> Tensor:
    """Run `tnt_kernels_triton::<op>`."""
    return call_operator(op, args, NAMESPACE)
