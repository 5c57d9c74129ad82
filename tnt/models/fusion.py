"""What may be fused: a fused function reads a module's parameters and never calls the module.

That is right only while calling the module does exactly what its class says: no hooks, no
replaced `forward`, no adapter or quantised layer in its place. Each predicate here returns None
when that holds, else the reason, which is said once.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula


class BlockParts(NamedTuple):
    """The modules of one TNT block, by timm's names; `norm2_proj` and `se` may be None."""

    norm_in: nn.Module
    attn_in: nn.Module
    norm_mlp_in: nn.Module
    mlp_in: nn.Module
    norm1_proj: nn.Module
    proj: nn.Module
    norm2_proj: Optional[nn.Module]
    norm_out: nn.Module
    attn_out: nn.Module
    norm_mlp: nn.Module
    mlp: nn.Module
    drop_path: nn.Module
    se: Optional[nn.Module]


_said: set = set()


@torch.compiler.assume_constant_result
def say_once(message: str) -> None:
    """Warn about `message` the first time it is met, also while torch.compile traces."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def hooked(module: nn.Module) -> bool:
    """True when calling `module` runs more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def plain(module: Any, kind: type) -> bool:
    """True when calling `module` is `kind.forward` on its parameters and nothing else."""
    # the function is compared, not the class: a parametrised Linear is a subclass that keeps it
    return (
        type(module).forward is kind.forward
        and "forward" not in module.__dict__
        and not hooked(module)
    )


def _norm_reason(name: str, norm: nn.Module, eps: Optional[float] = None) -> Optional[str]:
    if not plain(norm, nn.LayerNorm):
        return f"{name} is not a plain LayerNorm ({_describe(norm)})"
    if norm.weight is None or norm.bias is None or len(norm.normalized_shape) != 1:
        return f"{name} is a LayerNorm without weight and bias over the last axis"
    if eps is not None and norm.eps != eps:
        return f"{name} has eps {norm.eps} beside {eps}"
    return None


def _linear_reason(name: str, linear: nn.Module) -> Optional[str]:
    if not plain(linear, nn.Linear):
        return f"{name} is not a plain Linear ({_describe(linear)})"
    return None


def _describe(module: nn.Module) -> str:
    return f"{type(module).__name__}{' with hooks' if hooked(module) else ''}"


def _dropout_reason(name: str, module: nn.Module) -> Optional[str]:
    if plain(module, nn.Identity):
        return None
    if not plain(module, nn.Dropout):
        return f"{name} is not a plain Dropout ({_describe(module)})"
    return None


def active_dropout(module: nn.Module) -> float:
    """The rate with which a Dropout or Identity drops at this moment."""
    return module.p if module.training and isinstance(module, nn.Dropout) else 0.0


def _attention_dropouts(attn: nn.Module) -> dict:
    return {"attn_drop": attn.attn_drop, "proj_drop": attn.proj_drop}


def _mlp_dropouts(mlp: nn.Module) -> dict:
    # timm names the two dropouts of an MLP apart, the authors share one
    names = ("drop1", "drop2") if hasattr(mlp, "drop1") else ("drop",)
    return {f"mlp.{name}": getattr(mlp, name) for name in names}


def drop_path_reason(drop_path: nn.Module) -> Optional[str]:
    """None when the rate of `drop_path` can be read off (`drop_prob`) or it is an Identity."""
    if hooked(drop_path):
        return f"drop_path has hooks ({type(drop_path).__name__})"
    if plain(drop_path, nn.Identity) or hasattr(drop_path, "drop_prob"):
        return None
    return f"drop_path is of an unknown kind ({type(drop_path).__name__})"


def _branches_reason(attn: nn.Module, mlp: nn.Module) -> Optional[str]:
    """Whether attention and MLP are the linear layers and the exact GELU that they seem."""
    if hooked(attn):
        return "its attention has hooks"
    for name in ("qk", "v", "proj"):
        reason = _linear_reason(name, getattr(attn, name))
        if reason:
            return reason
    return _mlp_reason(mlp) or _dropouts_reason(_attention_dropouts(attn))


def _mlp_reason(mlp: nn.Module) -> Optional[str]:
    """Whether an MLP is the two linear layers around an exact GELU that it seems."""
    if hooked(mlp):
        return "its MLP has hooks"
    for name in ("fc1", "fc2"):
        reason = _linear_reason(name, getattr(mlp, name))
        if reason:
            return reason
    if not plain(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        return f"its activation is not the exact GELU ({_describe(mlp.act)})"
    # timm's Mlp has a norm between its layers, an Identity in TNT
    if hasattr(mlp, "norm") and not plain(mlp.norm, nn.Identity):
        return f"its MLP has a norm ({_describe(mlp.norm)})"
    return _dropouts_reason(_mlp_dropouts(mlp))


def _dropouts_reason(dropouts: dict) -> Optional[str]:
    reasons = (_dropout_reason(name, module) for name, module in dropouts.items())
    return next(filter(None, reasons), None)


def inner_reason(parts: BlockParts) -> Optional[str]:
    """Why the inner flow (Eqs. 6-7) of a block cannot be fused at this moment, or None."""
    attn, mlp = parts.attn_in, parts.mlp_in
    reason = (
        _norm_reason("norm_in", parts.norm_in)
        or _norm_reason("norm_mlp_in", parts.norm_mlp_in, parts.norm_in.eps)
        or _branches_reason(attn, mlp)
        or drop_path_reason(parts.drop_path)
    )
    if reason:
        return reason
    if attn.proj.bias is None or mlp.fc1.bias is None or mlp.fc2.bias is None:
        return "proj, fc1 and fc2 must have a bias"
    if attn.scale != (attn.v.in_features // attn.num_heads) ** -0.5:
        return f"its softmax scale {attn.scale} is not head_dim ** -0.5"
    for name, module in {**_attention_dropouts(attn), **_mlp_dropouts(mlp)}.items():
        if active_dropout(module):
            return f"{name} of {module.p} is active while training"
    return None


def projection_reason(
    norm1: nn.Module, proj: nn.Module, norm2: Optional[nn.Module]
) -> Optional[str]:
    """Why the pixel-to-patch step (Eq. 8) cannot be fused at this moment, or None."""
    reason = _norm_reason("norm1_proj", norm1) or _linear_reason("proj", proj)
    if reason is None and norm2 is not None:
        reason = _norm_reason("norm2_proj", norm2, norm1.eps)
    return reason


def attention_reason(attn: nn.Module) -> Optional[str]:
    """Why the outer attention must call `attn` itself, or None when its layers may be called."""
    if hooked(attn):
        return f"it has hooks ({type(attn).__name__})"
    return _dropout_reason("attn_drop", attn.attn_drop)


def fuses_gelu(mlp: nn.Module, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN can apply the GELU of `mlp` while it writes the product before it.

    On CPUs, where no gradient is wanted. torch.compile does the same by itself.
    """
    if (
        x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not torch.backends.mkldnn.is_available()
        or not torch.backends.mkldnn.enabled
        or _mlp_reason(mlp) is not None
        or any(map(active_dropout, _mlp_dropouts(mlp).values()))
    ):
        return False
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float32


def _linear_pointwise_flops(x: tuple, weight: tuple, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


# FlopCounterMode knows the plain linear layer only
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _operator = torch.ops.mkldnn._linear_pointwise
    if _operator not in flop_registry:
        register_flop_formula(_operator)(_linear_pointwise_flops)


def embed_reason(conv: nn.Module, unfold: Optional[nn.Module] = None) -> Optional[str]:
    """Why the pixel embedding (Eq. 13) cannot be fused at this moment, or None."""
    if not plain(conv, nn.Conv2d):
        return f"proj is not a plain Conv2d ({_describe(conv)})"
    if unfold is not None and hooked(unfold):
        return "unfold has hooks"
    side, stride = conv.kernel_size[0], conv.stride[0]
    expected = ((side, side), (stride, stride), (side // 2, side // 2), (1, 1), 1, "zeros")
    found = (
        tuple(conv.kernel_size),
        tuple(conv.stride),
        conv.padding,
        tuple(conv.dilation),
        conv.groups,
        conv.padding_mode,
    )
    if found != expected or side % 2 == 0:
        return "proj is not a square, odd convolution with zero padding of half its size"
    return None


def drop_path_factors(drop_path: nn.Module, count: int, like: Tensor) -> Optional[Tensor]:
    """(count,) float32 factors, 0 or 1 / keep, or None when nothing is dropped.

    Drawn as timm draws them (one Bernoulli per row of the residual's first axis), so that a seed
    gives the same paths with and without fusion.
    """
    rate = getattr(drop_path, "drop_prob", None) or 0.0
    if rate == 0.0 or not drop_path.training:
        return None
    keep = 1.0 - rate
    factors = torch.empty(count, dtype=torch.float32, device=like.device).bernoulli_(keep)
    if keep > 0.0 and getattr(drop_path, "scale_by_keep", True):
        factors.div_(keep)
    return factors
