"""Running an op on the emulated kernels from the op's own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from emulation.memory import from_bytes, span, weight
from torch import Tensor

from tnt_kernels.backends.native import CUDA_HEADS, CUDA_SIZES
from tnt_kernels.reference.inner_block import ATTENTION_WEIGHTS, MLP_WEIGHTS

SIZES = tuple(
    (tokens, dim, heads) for tokens, dim in CUDA_SIZES for heads in CUDA_HEADS if dim % heads == 0
)
TF32 = "tf32"  # in place of a dtype: float32 tensors whose products are in TF32
DTYPES = (torch.bfloat16, torch.float16, torch.float32, TF32)
BODIES = tuple((dtype, *sizes) for dtype in DTYPES for sizes in SIZES)

executed: set = set()  # bodies
calls_that_left_range: list = []  # sizes of calls whose weights fp16 might not hold
caught: set = set()  # names of planted faults
planted = 0


def body_id(body: tuple) -> str:
    """`bfloat16-S16-C24-heads4`."""
    dtype, tokens, dim, heads = body
    return f"{str(dtype).removeprefix('torch.')}-S{tokens}-C{dim}-heads{heads}"


def emulate(
    kernels: ModuleType,
    args: Mapping[str, Any],
    *,
    attention: bool = True,
    mlp: bool = True,
    **setting: Any,
) -> tuple[Tensor, Tensor]:
    """(out, mid) of inner_block's arguments; without a half, its weights are not passed.

    `args["tf32"]`, if it is there and true, asks for products in TF32.
    """
    x = args["x"].contiguous()
    wanted = ATTENTION_WEIGHTS * attention + MLP_WEIGHTS * mlp
    factors = {name: args[name] for name in ("drop_path_attn", "drop_path_mlp")}
    sizes = (x.shape[1], x.shape[2], args["num_heads"])
    dtype = TF32 if args.get("tf32") else x.dtype
    call = {
        "sizes": (x.shape[0], *sizes),
        "halves": (attention, mlp),
        "weights": [
            weight(args[name]) if name in wanted else None
            for name in ATTENTION_WEIGHTS + MLP_WEIGHTS
        ],
        "x": span(x),
        **{name: span(values) for name, values in factors.items()},
        "eps": args["eps"],
        "save_mid": attention and mlp,
        "setting": setting,
    }
    out, mid, left_range = kernels.inner_block(str(dtype).removeprefix("torch."), call)
    executed.add((dtype, *sizes))
    if left_range:
        calls_that_left_range.append(sizes)
    return from_bytes(out, x.dtype, x.shape), from_bytes(mid, x.dtype, x.shape) if mid else x
