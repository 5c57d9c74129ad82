"""Running the inner block's backward on emulated kernels from the op's own arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import torch
from emulation.build import FLAGS, EmulatorBuild
from emulation.calls import SIZES
from emulation.memory import from_bytes, span, weight
from torch import Tensor

from tnt_kernels.reference.inner_block import ATTENTION_WEIGHTS, MLP_WEIGHTS

WEIGHTS = ATTENTION_WEIGHTS + MLP_WEIGHTS
NAMESPACES = {"BFloat16": "bf16", "Float16": "fp16", "Float32": "fp32"}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BODIES = tuple((dtype, *sizes) for dtype in DTYPES for sizes in SIZES)
KERNELS = {(half, *body) for half in ("attention", "mlp") for body in BODIES}

executed: set = set()  # of KERNELS


class BackwardBuild(EmulatorBuild):
    """Modules of the backward kernels."""

    def __init__(self, folder: str):
        super().__init__(folder, ("backward_bindings.cpp", "emulator.cpp"))

    def add_backward(
        self,
        name: str,
        csrc: str = "csrc",
        configs: str = "",
        dtypes: Sequence[str] = tuple(NAMESPACES),
    ) -> Path:
        """The module whose bodies come from `csrc`: all configurations unless some are named.

        Types that are not in `dtypes` have no bodies.
        """
        objects = list(self.common)
        for dtype, namespace in NAMESPACES.items():
            changed = dtype in dtypes
            library, folder = (name, csrc) if changed else ("unchanged", "csrc")
            key = f"{library}-{namespace}"
            if key not in self.objects:
                flags = [*FLAGS, f"-I{folder}", "-Icsrc"]
                flags += [f"-DTNT_DTYPE={dtype}", f"-DTNT_NAMESPACE={namespace}"]
                wanted = configs if changed else "ConfigList<>"
                flags += [f"-DTNT_CONFIGS={wanted}"] if wanted else []
                self.objects[key] = self.compile("inner_backward.cpp", key, flags)
            objects.append(self.objects[key])
        return self.link(name, objects)


def half_backward(
    kernels: ModuleType,
    half: str,
    args: Mapping[str, Any],
    x: Tensor,
    dy: Tensor,
    need: tuple = (True, True),
    **setting: Any,
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """(dx, flat dw) of `half`, "attention" or "mlp", of inner_block's arguments.

    `x` is what the half is given, `dy` the gradient of its result; what is not in `need` is None.
    """
    is_mlp = half == "mlp"
    names = MLP_WEIGHTS if is_mlp else ATTENTION_WEIGHTS
    x, dy = x.contiguous(), dy.contiguous()
    sizes = (*x.shape, args["num_heads"])
    call = {
        "sizes": sizes,
        "is_mlp": is_mlp,
        "need_dx": need[0],
        "need_dw": need[1],
        "eps": args["eps"],
        "weights": [weight(args[name]) if name in names else None for name in WEIGHTS],
        "x": span(x),
        "dy": span(dy),
        "drop_path": span(args["drop_path_mlp" if is_mlp else "drop_path_attn"]),
        "setting": setting,
    }
    dx, dw = kernels.backward(str(x.dtype).removeprefix("torch."), call)
    executed.add((half, x.dtype, *sizes[1:]))
    return (
        from_bytes(dx, x.dtype, x.shape) if need[0] else None,
        from_bytes(dw, torch.float32, (-1,)) if need[1] else None,
    )


def block_backward(
    kernels: ModuleType,
    args: Mapping[str, Any],
    mid: Tensor,
    dy: Tensor,
    need: tuple = (True, True),
    **setting: Any,
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """(dx, flat dw) of inner_block as its backward launches the two halves."""
    dmid, mlp_dw = half_backward(kernels, "mlp", args, mid, dy, (True, need[1]), **setting)
    dx, attention_dw = half_backward(kernels, "attention", args, args["x"], dmid, need, **setting)
    return dx, torch.cat([attention_dw, mlp_dw]) if need[1] else None
