"""Triton's interpreter, taught the arithmetic that a GPU has.

As shipped (3.6 to 3.8) it multiplies the bit patterns of bfloat16 operands, rounds float32 to
bfloat16 towards zero and sums in sequence, where compiled kernels round to nearest and sum in a
tree. It also patches triton.language again at every call of a helper and checks every integer
operation for overflow, which together take most of its time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_create_dot = interpreter.InterpreterBuilder.create_dot
_cast_impl = interpreter.InterpreterBuilder.cast_impl


def _widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _dot(self, a, b, accumulator, *options):
    return _create_dot(self, _widened(a), _widened(b), accumulator, *options)


def _cast(self, source, target):
    if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
        return _cast_impl(self, source, target)
    rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
    return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)


def _tree_sum(self, operand):
    data = np.moveaxis(operand.handle.data, self.axis, 0)
    while data.shape[0] > 1:
        half = data.shape[0] // 2
        data = data[:half] + data[half:]
    data = np.expand_dims(data[0], self.axis) if self.keep_dims else data[0]
    return self.to_tensor(data, operand.dtype)


def _erf(self, operand):
    values = torch.from_numpy(np.ascontiguousarray(operand.data)).erf().numpy()
    return interpreter.TensorHandle(values, operand.dtype.scalar)


_patched_modules: set = set()


def _call_helper(self, *args, **kwargs):
    # The running kernel has patched `tl`; Triton's own helpers also use `tl.core`.
    module = self.fn.__module__
    if self.fn.__globals__.get("tl") is not tl and module not in _patched_modules:
        _patched_modules.add(module)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


def install() -> None:
    """Patch the interpreter of this process."""
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter.InterpreterBuilder.cast_impl = _cast
    interpreter.InterpreterBuilder.create_erf = _erf
    interpreter.ReduceOps.sum = _tree_sum
    interpreter.InterpretedFunction.__call__ = _call_helper
    options = interpreter.interpreter_builder.options
    options = dataclasses.replace(options, sanitize_overflow=False)
    interpreter.interpreter_builder.options = options
