"""Compiled C++ kernels: `_C` for CPU tensors, `_C_cuda` for CUDA tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from ..library import call as call_operator
from .native_pixels import pixel_embed_refusal, pixel_to_patch_refusal

EXTENSION_OF_DEVICE = {"cpu": "_C", "cuda": "_C_cuda"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU_TOKENS = (4, 16, 64)
CUDA_SIZES = ((16, 24), (16, 40), (64, 6), (4, 96))  # (S, C), as in inner_block/instances.cuh
CUDA_HEADS = (1, 2, 4, 8)
CUDA_CAPABILITY = (8, 0)
_PACKAGE = Path(__file__).resolve().parent.parent

_load_results: dict = {}


def _extension_paths(name: str) -> list:
    return sorted(_PACKAGE.glob(f"{name}.*"))


def _load(name: str) -> Optional[str]:
    """Load an extension once; None when it is loaded, else why it is not."""
    if name not in _load_results:
        _load_results[name] = _try_to_load(name)
    return _load_results[name]


def _try_to_load(name: str) -> Optional[str]:
    paths = _extension_paths(name)
    if not paths:
        remedy = "install a CUDA toolkit and reinstall with FORCE_CUDA=1" * (name == "_C_cuda")
        return f"extension {name} was not built; {remedy or 'reinstall with `pip install .`'}"
    try:
        torch.ops.load_library(str(paths[0]))
    except OSError as error:
        return f"extension {name} does not load: {error}"
    return None


_load("_C")  # at once, so that programs that call torch.ops find the CPU kernels


@torch.compiler.assume_constant_result
def cpu_isa() -> str:
    """Instruction set of the CPU kernels: generic, avx2, avx512, avx512+amx; none without them."""
    return _cpu_isa()


@functools.cache  # models ask at every call
def _cpu_isa() -> str:
    if _load("_C") is not None:
        return "none"
    name = ctypes.CDLL(str(_extension_paths("_C")[0])).tnt_kernels_cpu_isa
    name.restype = ctypes.c_char_p
    return name().decode()


@torch.compiler.assume_constant_result
def extension_problem(op: str, device: str) -> Optional[str]:
    """Why the extension for `device` cannot run `op`, or None; loads it on first use."""
    name = EXTENSION_OF_DEVICE[device]
    problem = _load(name)
    if problem is not None:
        return problem
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tnt_kernels::{op}", device.upper()):
        return f"extension {name} has no {op} kernel"
    return None


@torch.compiler.assume_constant_result
def cuda_capability() -> tuple:
    """Compute capability of the current GPU; (0, 0) where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def refusal(call: Any) -> Optional[str]:
    """Why the compiled kernels do not take `call`, or None when they do."""
    if call.device not in EXTENSION_OF_DEVICE:
        return f"no compiled kernels for device {call.device}"
    problem = extension_problem(call.op, call.device)
    if problem is not None:
        return problem
    if call.differentiable:
        problem = extension_problem(f"{call.op}_backward", call.device)
        if problem is not None:
            return f"{problem}, and a gradient is wanted"
    if call.device == "cuda":
        return _capability_refusal() or cuda_refusal(call)
    if call.dtype not in DTYPES:
        return _dtype_refusal(call)
    if call.op in ("inner_attention", "inner_block") and call.dims["S"] not in CPU_TOKENS:
        return f"S={call.dims['S']} tokens per patch is not one of 4, 16, 64"
    return None


def _dtype_refusal(call: Any) -> str:
    dtype = str(call.dtype).removeprefix("torch.")
    return f"dtype {dtype} is not one of float32, bfloat16, float16"


def _capability_refusal() -> Optional[str]:
    if cuda_capability() >= CUDA_CAPABILITY:
        return None
    found, needed = (".".join(map(str, c)) for c in (cuda_capability(), CUDA_CAPABILITY))
    return f"the GPU has compute capability {found}; the kernels need {needed} or later"


def cuda_refusal(call: Any) -> Optional[str]:
    """Why no kernel of csrc/cuda takes `call`, or None; GPU and extension are not asked."""
    if call.dtype not in DTYPES:
        return _dtype_refusal(call)
    if call.op == "pixel_embed":
        return pixel_embed_refusal(call.dims, call.dtype, call.differentiable)
    if call.op == "pixel_to_patch":
        return pixel_to_patch_refusal(call.dims)
    return _inner_refusal(call.dims)


def _inner_refusal(dims: Mapping[str, int]) -> Optional[str]:
    tokens, dim = dims["S"], dims["C"]
    # not `in`: torch.compile would reason about all symbolic sizes at once, without end in sight
    if not any(tokens == s and dim == c for s, c in CUDA_SIZES):
        sizes = ", ".join(map(str, CUDA_SIZES))
        return f"(S, C) = ({tokens}, {dim}) is not one of {sizes}"
    if dims.get("heads", 1) not in CUDA_HEADS:
        return f"{dims['heads']} heads are not one of 1, 2, 4, 8"
    if dims.get("H", 4 * dim) != 4 * dim:
        return f"hidden width H={dims['H']} is not 4 C"
    return None


def run(op: str, args: Mapping[str, Any]) -> Tensor:
    """Run `tnt_kernels::<op>`."""
    return call_operator(op, args)
