"""Argument checks of the public ops: every message names op, argument, expected, got, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@torch.compiler.assume_constant_result  # PyTorch 2.11 cannot trace the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def autocast_dtype(device: str) -> Optional[torch.dtype]:
    """What autocast casts to on this kind of device; None where it is off or unknown (meta)."""
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fail(op: str, argument: str, expected: str, got: Any, remedy: str, error=ValueError) -> None:
    """Raise `error` with the package's one form of message."""
    raise error(f"{op}: {argument} must be {expected}, got {got}; {remedy}")


def check_activation(
    op: str, argument: str, x: Any, ndim: int, shape: str, dtypes: tuple = FLOATING
) -> None:
    """A dense tensor of `ndim` axes, named in `shape`, and of one of `dtypes`."""
    if not isinstance(x, Tensor):
        fail(op, argument, "a tensor", type(x).__name__, "pass a torch.Tensor", TypeError)
    if x.layout is not torch.strided or x.is_nested:
        remedy = "convert it with .to_dense() or pad it"
        fail(op, argument, "a dense (strided) tensor", x.layout, remedy, TypeError)
    check_dtype(op, argument, x, dtypes)
    if x.dim() != ndim:
        fail(op, argument, shape, tuple(x.shape), f"reshape it to {ndim} axes")


def check_dtype(op: str, argument: str, x: Tensor, dtypes: tuple) -> None:
    """A tensor of one of `dtypes`."""
    if x.dtype not in dtypes:
        *names, last = map(_name, dtypes)
        expected = f"{', '.join(names)} or {last}"
        fail(op, argument, expected, _name(x.dtype), "convert it with .to(dtype)", TypeError)


def check_weight(
    op: str, argument: str, weight: Any, shape: tuple, like: Tensor, remedy: str
) -> None:
    """A tensor of exactly `shape`, on the device of `like`, float32 or of its dtype."""
    if not isinstance(weight, Tensor):
        fail(op, argument, f"a tensor {shape}", type(weight).__name__, remedy, TypeError)
    if weight.shape != shape:
        fail(op, argument, shape, tuple(weight.shape), remedy)
    check_companion(op, argument, weight, like)


def check_device(op: str, argument: str, tensor: Tensor, like: Tensor) -> None:
    """On the device of `like`."""
    if tensor.device != like.device:
        remedy = "move the weights and the input to one device"
        fail(op, argument, f"on {like.device}", f"a tensor on {tensor.device}", remedy)


def check_float32(
    op: str, argument: str, values: Any, shape: tuple, like: Tensor, remedy: str
) -> None:
    """A float32 tensor of exactly `shape`, on the device of `like`."""
    if not isinstance(values, Tensor):
        fail(op, argument, f"a tensor {shape}", type(values).__name__, remedy, TypeError)
    if values.shape != shape:
        fail(op, argument, shape, tuple(values.shape), remedy)
    if values.dtype is not torch.float32:
        remedy = "convert it with .float()"
        fail(op, argument, "float32", _name(values.dtype), remedy, TypeError)
    check_device(op, argument, values, like)


def check_companion(op: str, argument: str, tensor: Tensor, like: Tensor) -> None:
    """Device and dtype of a tensor that accompanies the activation `like`."""
    check_device(op, argument, tensor, like)
    autocast = autocast_dtype(like.device.type) is not None
    allowed = tensor.dtype is torch.float32 or tensor.dtype is like.dtype
    if not allowed and not (autocast and tensor.dtype in FLOATING):
        expected = " or ".join(dict.fromkeys(("float32", _name(like.dtype))))
        remedy = "convert weights and input to one dtype"
        fail(op, argument, expected, _name(tensor.dtype), remedy, TypeError)


def check_bundle(op: str, weights: Any, kind: type) -> None:
    """A bundle of weights of the right class, or a plain tuple of its length."""
    if not isinstance(weights, tuple) or len(weights) != len(kind._fields):
        expected = f"{kind.__name__} ({len(kind._fields)} tensors)"
        got = f"a tuple of {len(weights)}" if isinstance(weights, tuple) else type(weights).__name__
        fail(op, "weights", expected, got, f"build it with {kind.__name__}(...)", TypeError)


def check_shapes(
    op: str,
    weights: Any,
    fields: Iterable[str],
    shapes: Iterable[tuple],
    optional: Iterable[str],
    like: Tensor,
    remedy: str,
) -> None:
    """Check the named tensors of a bundle against their shapes; those in `optional` may be None."""
    for name, weight, shape in zip(fields, weights, shapes):
        if weight is None and name in optional:
            continue
        check_weight(op, name, weight, shape, like, remedy)


def check_drop_path(op: str, argument: str, factors: Optional[Tensor], x: Tensor) -> None:
    """None, or (P,) float32 factors that take no gradient."""
    if factors is None:
        return
    if not isinstance(factors, Tensor):
        remedy = "pass one factor per patch, 0 or 1 / keep_prob"
        fail(op, argument, "a (P,) tensor", type(factors).__name__, remedy, TypeError)
    if factors.shape != x.shape[:1]:
        remedy = "pass one factor per patch, 0 or 1 / keep_prob"
        fail(op, argument, (x.shape[0],), tuple(factors.shape), remedy)
    if factors.dtype is not torch.float32:
        remedy = "convert it with .float()"
        fail(op, argument, "float32", _name(factors.dtype), remedy, TypeError)
    if factors.device != x.device:
        remedy = "draw the factors on the input's device"
        fail(op, argument, f"on {x.device}", f"a tensor on {factors.device}", remedy)
    if factors.requires_grad:
        remedy = "it is not differentiable: pass .detach()"
        fail(op, argument, "a tensor without gradient", "requires_grad=True", remedy)


def check_positive_int(op: str, argument: str, value: Any) -> None:
    """An integer of at least 1 (a symbolic one passes)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        expected, remedy = "an integer", "pass a positive int"
        fail(op, argument, expected, type(value).__name__, remedy, TypeError)
    if value < 1:
        fail(op, argument, "at least 1", value, "pass a positive int")


def check_heads(op: str, num_heads: Any, dim: int) -> None:
    """A positive integer that divides the inner width."""
    check_positive_int(op, "num_heads", num_heads)
    if dim % num_heads:
        remedy = f"choose num_heads among the divisors of {dim}"
        fail(op, "num_heads", f"a divisor of the inner width {dim}", num_heads, remedy)


def check_eps(op: str, eps: Any) -> None:
    """A LayerNorm epsilon: a non-negative finite number."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        fail(op, "eps", "a number", type(eps).__name__, "pass a float, such as 1e-5", TypeError)
    if not 0.0 <= eps < float("inf"):
        fail(op, "eps", "finite and not negative", eps, "pass a float, such as 1e-5")
