"""Running one op at one precision, with gradients: shared by the op tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

import pytest
import torch
from tolerance import assert_error_rule
from torch import Tensor

from tnt_kernels.backends import BACKENDS
from tnt_kernels.dispatch import describe
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec, case_id

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACCELERATED = tuple(name for name in BACKENDS if name != "reference")
ON_CPUS_ONLY = ("outer_attention",)
"""Ops without a kernel for GPUs, since PyTorch's own is as good there."""

KERNELS_PER_SIZE = (("native", "cuda"), ("emulated", "cpu"))
"""Backends, and devices of the tensors, that refuse sizes they have no kernel for."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def is_slow(backend: str) -> bool:
    """Whether a backend's kernels take seconds here for what a GPU does in microseconds."""
    return backend == "emulated" or (backend == "triton" and INTERPRETED)


def accelerated(device: str) -> tuple:
    """The accelerated backends that serve a device in this process."""
    serves = {"triton": device != "cpu" or INTERPRETED, "emulated": device == "cpu"}
    return tuple(name for name in ACCELERATED if serves.get(name, True))


def dtype_id(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def every_case() -> list:
    """(spec, case) pairs of all ops, with readable ids."""
    return [(spec, case) for spec in SPECS.values() for case in spec.cases]


def pair_id(value: Any) -> str:
    """Id of a (spec, case) pair or of a dtype."""
    if isinstance(value, tuple):
        return f"{value[0].name}-{case_id(value[1])}"
    return dtype_id(value) if isinstance(value, torch.dtype) else str(value)


def differentiable(spec: OpSpec) -> tuple:
    """Names of the inputs that take a gradient."""
    return (spec.activation, *spec.weights, *((spec.passthrough,) if spec.passthrough else ()))


def as_leaves(spec: OpSpec, args: Mapping[str, Any], dtype: Optional[torch.dtype] = None) -> dict:
    """Copies of the arguments, in `dtype` if given, with gradients on where there are any.

    Activations of integers stay as they are.
    """
    leaves = dict(args)
    for name in differentiable(spec):
        if isinstance(args[name], Tensor) and args[name].is_floating_point():
            leaves[name] = args[name].detach().to(dtype or args[name].dtype).requires_grad_()
    return leaves


def run_backend(backend: str, spec: OpSpec, args: Mapping[str, Any]) -> Tensor:
    """Run the op on one backend, which must take the call unless it has kernels per size."""
    call = describe(spec.name, args)
    reason = BACKENDS[backend].refusal(call)
    if reason is not None and (backend, call.device) in KERNELS_PER_SIZE:
        pytest.skip(reason)
    assert reason is None, reason
    return BACKENDS[backend].run(spec.name, args)


def output_and_gradients(
    backend: str, spec: OpSpec, args: Mapping[str, Any], dy: Optional[Tensor] = None
) -> dict:
    """Output and the gradient of every differentiable input, by name.

    `dy` defaults to reproducible normal values in the output's dtype.
    """
    out = run_backend(backend, spec, args)
    if dy is None:
        generator = torch.Generator().manual_seed(99)
        dy = torch.randn(out.shape, generator=generator).to(out.device)
    out.backward(dy.to(out.dtype))
    results = {"output": out.detach()}
    for name in differentiable(spec):
        if isinstance(args[name], Tensor) and args[name].requires_grad:
            results[f"gradient of {name}"] = args[name].grad
    return results


CONFIRMING_DRAWS = 16
"""Draws over which an error is judged when few of them break the rule: the largest of a few
errors is often twice that of a few others of the same distribution."""


def assert_parity(
    backend: str, spec: OpSpec, case: Mapping[str, Any], dtype: torch.dtype, device: str
) -> None:
    """Output and every gradient obey the error rule, pooled over draws; dtypes are the inputs'."""
    size = spec.make_args(case, dtype, device)[spec.activation].numel()
    most = 2 if is_slow(backend) else 8
    few = max(1, min(most, 4096 // max(1, size)))
    pools: tuple = ({}, {}, {})
    _draw(pools, range(few), backend, spec, case, dtype, device)
    try:
        _assert_pools(pools, spec)
    except AssertionError:
        _draw(pools, range(few, CONFIRMING_DRAWS), backend, spec, case, dtype, device)
        _assert_pools(pools, spec)


def _draw(
    pools: tuple,
    seeds: range,
    backend: str,
    spec: OpSpec,
    case: Mapping[str, Any],
    dtype: torch.dtype,
    device: str,
) -> None:
    """Add results of kernel, PyTorch and float64, by name, to the three pools."""
    for seed in seeds:
        args = spec.make_args(case, dtype, device, seed)
        kernel = output_and_gradients(backend, spec, as_leaves(spec, args))
        pytorch = output_and_gradients("reference", spec, as_leaves(spec, args))
        exact = output_and_gradients("reference", spec, as_leaves(spec, args, torch.float64))
        assert kernel.keys() == pytorch.keys()
        for pool, results in zip(pools, (kernel, pytorch, exact)):
            for name, value in results.items():
                pool.setdefault(name, []).append(value)


def _assert_pools(pools: tuple, spec: OpSpec) -> None:
    for name, values in pools[0].items():
        assert values[0].dtype is pools[1][name][0].dtype, name
        assert_error_rule(*(torch.stack(pool[name]) for pool in pools), f"{spec.name} {name}")
