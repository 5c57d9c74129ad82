"""Running an op on the emulated kernels from the op's own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor

from tnt_kernels.backends.native import CUDA_HEADS, CUDA_SIZES
from tnt_kernels.reference.inner_block import ATTENTION_WEIGHTS, MLP_WEIGHTS

SIZES = tuple(
    (tokens, dim, heads) for tokens, dim in CUDA_SIZES for heads in CUDA_HEADS if dim % heads == 0
)
TF32 = "tf32"  # in place of a dtype: float32 tensors whose products are in TF32
DTYPES = (torch.bfloat16, torch.float16, torch.float32, TF32)
BODIES = tuple((dtype, *sizes) for dtype in DTYPES for sizes in SIZES)
WEIGHT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

executed: set = set()  # bodies
calls_that_left_range: list = []  # sizes of calls whose weights fp16 might not hold
caught: set = set()  # names of planted faults
planted = 0


def body_id(body: tuple) -> str:
    """`bfloat16-S16-C24-heads4`."""
    dtype, tokens, dim, heads = body
    return f"{str(dtype).removeprefix('torch.')}-S{tokens}-C{dim}-heads{heads}"


def _weight(weight: Optional[Tensor]) -> Optional[tuple]:
    if weight is None:
        return None
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride()))
    bytes_spanned = (last + 1) * weight.element_size()
    strides = (*weight.stride(), 0)[:2]
    return (weight.data_ptr(), bytes_spanned, *strides, WEIGHT_TYPES[weight.dtype])


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=like.dtype).view(like.shape)


def emulate(
    kernels: ModuleType,
    args: Mapping[str, Any],
    *,
    attention: bool = True,
    mlp: bool = True,
    blocks: int = 2,
    reversed_order: bool = False,
    guard_end: bool = True,
) -> tuple[Tensor, Tensor]:
    """(out, mid) of inner_block's arguments; without a half, its weights are not passed.

    `args["tf32"]`, if it is there and true, asks for products in TF32.
    """
    x = args["x"]
    wanted = ATTENTION_WEIGHTS * attention + MLP_WEIGHTS * mlp
    names = ATTENTION_WEIGHTS + MLP_WEIGHTS
    factors = (args["drop_path_attn"], args["drop_path_mlp"])
    sizes = (x.shape[1], x.shape[2], args["num_heads"])
    dtype = TF32 if args.get("tf32") else x.dtype
    out, mid, left_range = kernels.inner_block(
        str(dtype).removeprefix("torch."),
        sizes,
        _bytes(x),
        [_weight(args[name]) if name in wanted else None for name in names],
        (attention, mlp),
        tuple([] if f is None else f.tolist() for f in factors),
        args["eps"],
        attention and mlp,
        blocks,
        reversed_order,
        guard_end,
    )
    executed.add((dtype, *sizes))
    if left_range:
        calls_that_left_range.append(sizes)
    return _tensor(out, x), _tensor(mid, x) if mid else x
