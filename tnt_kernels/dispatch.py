"""Which backend a call takes: a pure function of device, dtype and sizes.

`select` walks the backends in order of preference and asks each `refusal(call)`: None means yes,
a string says why not. The same answers make the choice and its explanation.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .backends import BACKENDS
from .checks import autocast_dtype
from .library import cast_for_autocast, will_differentiate
from .reference import SPECS

ENVIRONMENT_VARIABLE = "TNT_KERNELS_BACKEND"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot take the call; the message says why."""


class Call(NamedTuple):
    """What a backend is asked about: no tensors, so that any device can be described."""

    op: str
    device: str
    dtype: torch.dtype
    dims: Mapping[str, int]
    differentiable: bool = False  # whether backward may follow


@dataclass(frozen=True)
class Explanation:
    """The backend that a call takes and why each other one was passed over."""

    call: Call
    backend: Optional[str]
    refusals: Mapping[str, str]
    forced: Optional[str] = None

    def __str__(self) -> str:
        sizes = ", ".join(f"{key}={value}" for key, value in self.call.dims.items())
        dtype = str(self.call.dtype).removeprefix("torch.")
        lines = [f"{self.call.op} on {self.call.device}, {dtype}, {sizes}"]
        if self.forced:
            lines.append(f"  asked for: {self.forced}")
        lines.append(f"  takes: {self.backend or 'no backend'}")
        lines += [f"  not {name}: {reason}" for name, reason in self.refusals.items()]
        return "\n".join(lines)


# Process-wide rather than per thread: torch.compile can guard on a module global, and the
# threads that run backward and data loading see the same choice.
_forced: Optional[str] = None


def _check_name(name: Optional[str], source: str) -> Optional[str]:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{source}: backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


_from_environment = _check_name(os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE)


@contextmanager
def use_backend(name: Optional[str]) -> Iterator[None]:
    """Force every op called inside onto one backend; None restores the automatic choice.

    Process-wide. A forced backend never falls back: it raises BackendUnavailable with the reason.

    Args:
        name: "native", "triton", "reference" or None.
    Raises: ValueError for an unknown name.
    """
    global _forced
    previous, _forced = _forced, _check_name(name, "use_backend")
    try:
        yield
    finally:
        _forced = previous


def describe(op: str, args: Mapping[str, Any]) -> Call:
    """The description of a call from its named arguments, autocast included."""
    spec = SPECS[op]
    device, dtype = (
        args[spec.activation].device.type,
        _dtype_after_autocast(args[spec.typed_by(args)]),
    )
    return Call(op, device, dtype, spec.dims(args), will_differentiate(args))


def _dtype_after_autocast(x: Tensor) -> torch.dtype:
    autocast = autocast_dtype(x.device.type)
    return x.dtype if autocast is None or x.dtype is torch.float64 else autocast


def explain_call(call: Call, backend: Optional[str] = None) -> Explanation:
    """Decide a call: the named (or forced) backend if given, else the first that takes it."""
    forced = _check_name(backend, call.op) or _forced or _from_environment
    refusals = {}
    chosen = None
    for name in (forced,) if forced else tuple(BACKENDS):
        reason = BACKENDS[name].refusal(call)
        if reason is None:
            chosen = name
            break
        refusals[name] = reason
    return Explanation(call, chosen, refusals, forced)


def select(call: Call, backend: Optional[str] = None) -> str:
    """Name of the backend that takes `call`.

    Raises: BackendUnavailable if a backend was asked for by name and refuses.
    """
    found = explain_call(call, backend)
    if found.backend is None:
        raise BackendUnavailable(
            f"{call.op}: backend {found.forced!r} was asked for but cannot take this call: "
            f"{found.refusals[found.forced]}; ask for no backend to let one be chosen"
        )
    if call.device == "cuda" and found.backend == "reference" and not found.forced:
        _warn_slow_path(found)
    return found.backend


_warned: set = set()


def _warn_slow_path(found: Explanation) -> None:
    key = (found.call.op, tuple(found.refusals.values()))
    if torch.compiler.is_compiling() or key in _warned or found.call.dtype is torch.float64:
        return
    _warned.add(key)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in found.refusals.items())
    warnings.warn(
        f"{found.call.op}: running plain PyTorch on a GPU, which is slow ({reasons})", stacklevel=4
    )


def run(op: str, args: Mapping[str, Any], backend: Optional[str] = None) -> Tensor:
    """Run `op` on checked arguments through the backend that takes it."""
    chosen = select(describe(op, args), backend)
    name = SPECS[op].typed_by(args)
    args = {**args, name: cast_for_autocast(args[name])}
    return BACKENDS[chosen].run(op, args)
