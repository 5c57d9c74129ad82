"""The inner block and its halves on Triton: layout, allocation, launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from .gradients import norm_gradients, sum_partials
from .inner_backward import (
    inner_attention_bwd_dw_kernel,
    inner_attention_bwd_dx_kernel,
    inner_mlp_bwd_dw_kernel,
    inner_mlp_bwd_dx_kernel,
)
from .inner_forward import inner_fwd_kernel
from .launch import architecture, launch, power_of_two, precision
from .tilings import gradient_programs, inner_tiling

_NO_ATTENTION = (None,) * 8
_NO_MLP = (None,) * 6


def _contiguous(tensors: Sequence[Optional[Tensor]]) -> list:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _launch(
    kernel: Any,
    x: Tensor,
    pointers: Sequence[Optional[Tensor]],
    eps: float,
    num_heads: int = 0,
    hidden: int = 0,
) -> None:
    """Run `kernel`, one program per tile of tokens."""
    tiling, num_tokens, constants = _specialise(kernel, x, num_heads, hidden)
    grid = (triton.cdiv(num_tokens, tiling.rows),)
    launch(kernel, grid, tiling, *pointers, num_tokens, eps, **constants)


def _launch_partial(
    kernel: Any,
    dy: Tensor,
    x: Tensor,
    pointers: Sequence[Optional[Tensor]],
    eps: float,
    out: Tensor,
    num_heads: int = 0,
    hidden: int = 0,
) -> None:
    """Run `kernel`, some programs per block of the weights, and sum their results into `out`."""
    tiling, num_tokens, constants = _specialise(kernel, x, num_heads, hidden)
    programs = min(triton.cdiv(num_tokens, tiling.rows), gradient_programs(architecture(x)))
    partial = torch.empty((programs, out.numel()), dtype=torch.float32, device=x.device)
    grid = (programs, num_heads or triton.cdiv(hidden, tiling.columns))
    launch(kernel, grid, tiling, dy, x, partial, *pointers, num_tokens, eps, **constants)
    sum_partials(partial, out)


def _specialise(kernel: Any, x: Tensor, num_heads: int, hidden: int) -> tuple:
    """(tiling, number of tokens, the kernel's constants)."""
    patches, tokens, dim = x.shape
    span, block_c = max(16, tokens), power_of_two(dim)
    tiling = inner_tiling(kernel.fn.__name__, x.dtype, block_c, span, architecture(x))
    constants = {"S": tokens, "C": dim, "PRECISION": precision(x)}
    constants.update(BLOCK_TOKENS=tiling.rows, BLOCK_C=block_c)
    if num_heads:
        constants.update(HEADS=num_heads, SPAN=span, BLOCK_HEAD=power_of_two(dim // num_heads))
    if hidden:
        constants.update(HIDDEN=hidden, BLOCK_HIDDEN=tiling.columns)
    return tiling, patches * tokens, constants


def _forward(
    x: Tensor,
    attention: Sequence[Optional[Tensor]],
    mlp: Sequence[Optional[Tensor]],
    drop_paths: tuple,
    num_heads: int,
    eps: float,
    save_mid: bool = False,
) -> tuple:
    x, *pointers = _contiguous((x, *attention, *mlp, *drop_paths))
    out = torch.empty_like(x)
    mid = torch.empty_like(x) if save_mid else None
    if x.numel() > 0:
        hidden = 1 if mlp[2] is None else mlp[2].shape[0]
        _launch(inner_fwd_kernel, x, (x, out, mid, *pointers), eps, num_heads, hidden)
    return out, mid


def inner_block(x: Tensor, *values: Any) -> tuple:
    """(out, mid) of Eqs. 6-7; mid is empty unless asked for."""
    *weights, drop_path_attn, drop_path_mlp, num_heads, eps, save_mid = values
    drop_paths = (drop_path_attn, drop_path_mlp)
    out, mid = _forward(x, weights[:8], weights[8:], drop_paths, num_heads, eps, save_mid)
    return out, (x.new_empty(0) if mid is None else mid)


def inner_attention(x: Tensor, *values: Any) -> Tensor:
    """Eq. 6."""
    *weights, drop_path, num_heads, eps = values
    return _forward(x, weights, _NO_MLP, (drop_path, None), num_heads, eps)[0]


def inner_mlp(x: Tensor, *values: Any) -> Tensor:
    """Eq. 7."""
    *weights, drop_path, eps = values
    return _forward(x, _NO_ATTENTION, weights, (None, drop_path), 1, eps)[0]


def _attention_backward(
    dy: Tensor,
    x: Tensor,
    weights: Sequence[Optional[Tensor]],
    drop_path: Optional[Tensor],
    num_heads: int,
    eps: float,
    dx: Optional[Tensor],
    dw: Optional[Tensor],
) -> None:
    """Fill dx (contiguous) and dw (the eight flat gradients), each unless None."""
    gamma, beta, qk_weight, _, v_weight, *_ = weights
    pointers = (*weights[:7], drop_path)
    if dx is not None:
        kernel = inner_attention_bwd_dx_kernel
        _launch(kernel, x, (dy, x, dx, *pointers), eps, num_heads)
    if dw is not None:
        kernel, out = inner_attention_bwd_dw_kernel, dw[2 * x.shape[2] :]
        _launch_partial(kernel, dy, x, pointers, eps, out, num_heads)
        norm_gradients(dw, gamma, beta, qk_weight, v_weight)


def _mlp_backward(
    dy: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    drop_path: Optional[Tensor],
    eps: float,
    dx: Optional[Tensor],
    dw: Optional[Tensor],
) -> None:
    """Fill dx (contiguous) and dw (the six flat gradients), each unless None."""
    gamma, beta, fc1_weight, *_ = weights
    pointers, hidden = (*weights[:5], drop_path), fc1_weight.shape[0]
    if dx is not None:
        kernel = inner_mlp_bwd_dx_kernel
        _launch(kernel, x, (dy, x, dx, *pointers), eps, hidden=hidden)
    if dw is not None:
        kernel, out = inner_mlp_bwd_dw_kernel, dw[2 * x.shape[2] :]
        _launch_partial(kernel, dy, x, pointers, eps, out, hidden=hidden)
        norm_gradients(dw, gamma, beta, fc1_weight)


def _gradients(x: Tensor, sizes: tuple, need_dx: bool, need_dw: bool) -> tuple:
    """Uninitialised dx and dw, None where they are not wanted; dw split into `sizes`."""
    dx = torch.empty_like(x) if need_dx else None
    if not need_dw:
        return dx, None, (None,) * len(sizes)
    # Without patches no kernel runs, and the sums over them are zero.
    allocate = torch.zeros if x.numel() == 0 else torch.empty
    dw = allocate(sum(sizes), dtype=torch.float32, device=x.device)
    return dx, dw, dw.split(sizes)


def _results(x: Tensor, dx: Optional[Tensor], dw: Optional[Tensor]) -> tuple:
    dx = x.new_empty(0) if dx is None else dx
    return dx, (x.new_empty(0, dtype=torch.float32) if dw is None else dw)


def _attention_size(dim: int) -> int:
    return 4 * dim * dim + 6 * dim


def _mlp_size(dim: int, hidden: int) -> int:
    return 2 * hidden * dim + hidden + 3 * dim


def inner_attention_backward(dy: Tensor, x: Tensor, *values: Any) -> tuple:
    """(dx, dw) of Eq. 6."""
    *tensors, num_heads, eps, need_dx, need_dw = values
    dy, x, *weights, drop_path = _contiguous((dy, x, *tensors))
    dx, dw, (attention_dw,) = _gradients(x, (_attention_size(x.shape[2]),), need_dx, need_dw)
    if x.numel() > 0:
        _attention_backward(dy, x, weights, drop_path, num_heads, eps, dx, attention_dw)
    return _results(x, dx, dw)


def inner_mlp_backward(dy: Tensor, x: Tensor, *values: Any) -> tuple:
    """(dx, dw) of Eq. 7."""
    *tensors, eps, need_dx, need_dw = values
    dy, x, *weights, drop_path = _contiguous((dy, x, *tensors))
    sizes = (_mlp_size(x.shape[2], weights[2].shape[0]),)
    dx, dw, (mlp_dw,) = _gradients(x, sizes, need_dx, need_dw)
    if x.numel() > 0:
        _mlp_backward(dy, x, weights, drop_path, eps, dx, mlp_dw)
    return _results(x, dx, dw)


def inner_block_backward(dy: Tensor, x: Tensor, mid: Tensor, *values: Any) -> tuple:
    """(dx, dw) of Eqs. 6-7; mid is computed again where forward did not keep it."""
    *tensors, num_heads, eps, need_dx, need_dw = values
    dy, x, mid, *tensors = _contiguous((dy, x, mid, *tensors))
    *weights, drop_path_attn, drop_path_mlp = tensors
    attention, mlp = weights[:8], weights[8:]
    if mid.numel() != x.numel():
        mid = _forward(x, attention, _NO_MLP, (drop_path_attn, None), num_heads, eps)[0]
    sizes = (_attention_size(x.shape[2]), _mlp_size(x.shape[2], mlp[2].shape[0]))
    dx, dw, (attention_dw, mlp_dw) = _gradients(x, sizes, need_dx, need_dw)
    if x.numel() > 0:
        dmid = torch.empty_like(x)
        _mlp_backward(dy, mid, mlp, drop_path_mlp, eps, dmid, mlp_dw)
        _attention_backward(dmid, x, attention, drop_path_attn, num_heads, eps, dx, attention_dw)
    return _results(x, dx, dw)
