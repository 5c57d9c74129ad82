"""Running the pixel ops on emulated kernels from the ops' own arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import torch
from emulation.build import FLAGS, ROOT, EmulatorBuild
from emulation.memory import WEIGHT_TYPES, from_bytes, span, weight
from torch import Tensor

from tnt_kernels.reference import PIXEL_EMBED, PIXEL_TO_PATCH

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMESPACES = {"BFloat16": "bf16", "Float16": "fp16", "Float32": "fp32"}
TF32 = "tf32"  # in place of a dtype: float32 tensors whose products are in TF32
SOURCES = ("pixel_embed.cpp", "pixel_to_patch.cpp")
BODIES = {
    "sum_partials",
    "pixel_embed_bwd_pack",
    *(f"pixel_embed_bwd_dimages-{namespace}" for namespace in NAMESPACES.values()),
    *(
        f"{body}-{namespace}-groups{groups}{images}"
        for body in ("pixel_embed_pack", "pixel_embed_fwd", "pixel_embed_bwd_dw")
        for namespace in NAMESPACES.values()
        for groups in (3, 5)
        for images in ("", "-uint8")
    ),
    *(
        f"{body}-{namespace}-{width}"
        for body in ("patch_normalise", "patch_norm2_bwd", "patch_norm1_bwd")
        for namespace in NAMESPACES.values()
        for width in (384, 640)
    ),
    *(
        f"{body}-{namespace}-{width}"
        for body in ("pixel_to_patch_pack", "pixel_to_patch_fwd")
        for namespace in (*NAMESPACES.values(), "tf32")
        for width in (384, 640)
    ),
}

executed: set = set()  # of BODIES


class PixelBuild(EmulatorBuild):
    """Modules of the pixel ops' kernels."""

    def __init__(self, folder: str):
        super().__init__(folder, ("pixel_bindings.cpp", "emulator.cpp"))

    def add_pixels(
        self,
        name: str,
        csrc: str = "csrc",
        dtypes: Sequence[str] = tuple(NAMESPACES),
        sources: Sequence[str] = SOURCES,
    ) -> Path:
        """The module whose bodies come from `csrc`.

        Types that are not in `dtypes`, and ops not in `sources`, have the bodies of the checkout.
        """
        objects = list(self.common)
        for dtype, namespace in (*NAMESPACES.items(), ("TensorFloat32", "tf32")):
            for source in SOURCES:
                if namespace == "tf32" and source == "pixel_embed.cpp":
                    continue  # bound by memory: always at full accuracy
                changed = csrc != "csrc" and dtype in dtypes and source in sources
                library, folder = (name, csrc) if changed else ("unchanged", "csrc")
                key = f"{library}-{namespace}-{source}"
                if key not in self.objects:
                    flags = [*FLAGS, f"-I{folder}", f"-DTNT_DTYPE={dtype}"]
                    flags += ["-Icsrc", f"-DTNT_NAMESPACE={namespace}"]
                    self.objects[key] = self.compile(source, key, flags)
                objects.append(self.objects[key])
        return self.link(name, objects)


def kernels_in(folder: str) -> set:
    """Names of the kernels in a folder of csrc/cuda, without `_kernel`."""
    sources = (ROOT / "csrc" / "cuda" / folder).glob("*.cu")
    pattern = r"__global__[^;{]*?(\w+)_kernel\("
    return {name for source in sources for name in re.findall(pattern, source.read_text())}


def dtype_id(dtype: Any) -> str:
    """`float32` for torch.float32; `tf32`."""
    return str(dtype).removeprefix("torch.")


def compute_dtype(args: Mapping[str, Any]) -> torch.dtype:
    """What pixel_embed computes in and returns."""
    return args[PIXEL_EMBED.typed_by(args)].dtype


def _embed_arguments(args: Mapping[str, Any], dy: Optional[Tensor], setting: dict) -> tuple:
    """The call as the bindings take it, and what must outlive it."""
    images, w = args["images"].contiguous(), args["weight"].flatten(1)
    batch, in_chans, height, width = images.shape
    pos = args["pixel_pos"]
    pos = None if pos is None else pos.flatten(2)[0]
    values = {
        "in_chans": in_chans,
        "height": height,
        "width": width,
        "dim": w.shape[0],
        "kernel": args["weight"].shape[2],
        **{name: args[name] for name in ("patch_h", "patch_w", "stride", "unfold_first")},
        "bytes": images.dtype is torch.uint8,
        "num_patches": batch * (height // args["patch_h"]) * (width // args["patch_w"]),
        "images": span(images),
        "mean": span(args["mean"]),
        "std": span(args["std"]),
        "dy": span(dy),
        "weight": weight(w),
        "bias": weight(args["bias"]),
        "pixel_pos": weight(pos),
        "setting": setting,
    }
    return values, (images, w, pos, dy)


def pixel_embed(kernels: ModuleType, args: Mapping[str, Any], **setting: Any) -> Tensor:
    """(P, S, C)."""
    values, _kept = _embed_arguments(args, None, setting)
    dtype = compute_dtype(args)
    out = kernels.pixel_embed(dtype_id(dtype), values)
    executed.update(kernels.executed())
    tokens = (args["patch_h"] // args["stride"]) * (args["patch_w"] // args["stride"])
    return from_bytes(out, dtype, (values["num_patches"], tokens, values["dim"]))


def pixel_embed_backward(
    kernels: ModuleType, args: Mapping[str, Any], dy: Tensor, **setting: Any
) -> dict:
    """Gradients by the names of the inputs; uint8 images have none."""
    images, dtype = args["images"], compute_dtype(args)
    values, _kept = _embed_arguments(args, dy.to(dtype).contiguous(), setting)
    name = dtype_id(dtype)
    grads = {}
    if images.is_floating_point():
        dimages = kernels.pixel_embed_image_grad(name, values)
        grads["images"] = from_bytes(dimages, images.dtype, images.shape)
    flat = kernels.pixel_embed_weight_grad(name, values)
    executed.update(kernels.executed())
    shapes = PIXEL_EMBED.weight_shapes(args)
    flat = from_bytes(flat, torch.float32, (-1,)).split([math.prod(shape) for shape in shapes])
    weights = {n: part.view(s) for n, part, s in zip(PIXEL_EMBED.weights, flat, shapes)}
    return {**grads, **weights}


def shared_bytes(kernels: ModuleType, args: Mapping[str, Any]) -> tuple:
    """Shared memory of a forward block of one warp, and of a backward block."""
    values, _kept = _embed_arguments(args, None, {})
    return kernels.pixel_embed_shared_bytes(dtype_id(compute_dtype(args)), values)


def _patch_arguments(args: Mapping[str, Any], setting: dict, **tensors: Any) -> dict:
    tokens = args["patch_tokens"]
    pixels = args["pixels"]
    out_type = pixels.dtype if tokens is None else tokens.dtype
    return {
        "num_patches": pixels.shape[0],
        "width": args["proj_weight"].shape[1],
        "patches_per_image": 0 if tokens is None else tokens.shape[1] - 1,
        "norm1_width": args["norm1_weight"].shape[0],
        "tokens_type": WEIGHT_TYPES[out_type],
        "eps": args["eps"],
        "save_projection": True,
        "need_dpixels": True,
        "need_dw": True,
        "pixels": span(pixels),
        **{name: weight(args[name]) for name in PIXEL_TO_PATCH.weights},
        **{name: span(tensors.get(name)) for name in ("tokens", "dy", "projection", "drows")},
        **{name: tensors[name] for name in ("need_dpixels", "need_dw") if name in tensors},
        "setting": setting,
    }


def pixel_to_patch(kernels: ModuleType, args: Mapping[str, Any], **setting: Any) -> tuple:
    """(out, projection or None). `args["tf32"]`, if true, asks for products in TF32."""
    pixels, tokens = args["pixels"], args["patch_tokens"]
    dtype = TF32 if args.get("tf32") else dtype_id(pixels.dtype)
    values = _patch_arguments(args, setting, tokens=tokens)
    found = kernels.patch_forward(dtype, values)
    executed.update(kernels.executed())
    shape = (pixels.shape[0], args["proj_weight"].shape[0])
    like = (pixels.dtype, shape) if tokens is None else (tokens.dtype, tokens.shape)
    projection = found.get("projection")
    if projection is not None:
        projection = from_bytes(projection, pixels.dtype, shape)
    return from_bytes(found["out"], *like), projection


def pixel_to_patch_backward(
    kernels: ModuleType,
    args: Mapping[str, Any],
    dy: Tensor,
    projection: Optional[Tensor],
    need: tuple = (True, True),
    **setting: Any,
) -> dict:
    """Gradients by the names of the inputs, with products by PyTorch, as csrc/cuda does.

    `need` tells whether the gradient of the pixels and those of the weights are wanted.
    """
    pixels = args["pixels"]
    name, dtype = dtype_id(pixels.dtype), pixels.dtype
    rows_shape = (pixels.shape[0], args["proj_weight"].shape[1])
    wanted = dict(zip(("need_dpixels", "need_dw"), need))

    def run(kernel: Any, **tensors: Any) -> dict:
        return kernel(name, _patch_arguments(args, setting, **tensors, **wanted))

    found = run(kernels.patch_norm2_backward, dy=dy, projection=projection)
    dz = from_bytes(found.pop("dz"), dtype, rows_shape)
    grads = {}
    if need[1]:
        rows = from_bytes(run(kernels.patch_normalise)["rows"], dtype, rows_shape)
        grads["proj_weight"] = (dz.t() @ rows).float()
    drows = dz @ args["proj_weight"].to(dtype)
    found.update(run(kernels.patch_norm1_backward, drows=drows))
    if need[0]:
        grads["pixels"] = from_bytes(found.pop("pixels"), dtype, pixels.shape)
    executed.update(kernels.executed())
    floats = {n: from_bytes(data, torch.float32, (-1,)) for n, data in found.items()}
    return {**grads, **floats}
