"""Pixel embeddings into patch embeddings (arXiv 2103.00112 Eq. 8, in the three dialects in use)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import Args, OpSpec
from ._sampling import empty, sampler


def pixel_to_patch(
    pixels: Tensor,
    patch_tokens: Optional[Tensor],
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Optional[Tensor],
    norm2_weight: Optional[Tensor],
    norm2_bias: Optional[Tensor],
    eps: float,
) -> Tensor:
    """Z = Z + LN2(FC(LN1(Vec(Y)))) on the patch rows, Eq. 8; pixels (P, S, C), Z (B, N+1, D).

    LN1 spans the vectorised patch or each token, by its length; LN2 may be absent. Row 0 of Z,
    the class token, is untouched. Without `patch_tokens` (the stem) the projection (P, D) itself
    is returned.
    """
    num_patches, num_tokens, dim = pixels.shape
    norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias = (
        None if w is None else w.to(pixels.dtype)
        for w in (norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias)
    )
    width = norm1_weight.shape[0]
    rows = pixels if width == dim else pixels.reshape(num_patches, num_tokens * dim)
    rows = F.layer_norm(rows, (width,), norm1_weight, norm1_bias, eps)
    rows = rows.reshape(num_patches, num_tokens * dim)
    projection = F.linear(rows, proj_weight, proj_bias)  # (P, D)
    if norm2_weight is not None:
        projection = F.layer_norm(projection, projection.shape[1:], norm2_weight, norm2_bias, eps)
    if patch_tokens is None:
        return projection
    batch, num_rows, outer_dim = patch_tokens.shape
    class_token, patches = patch_tokens[:, :1], patch_tokens[:, 1:]
    update = projection.to(patch_tokens.dtype).reshape(batch, num_rows - 1, outer_dim)
    return torch.cat([class_token, patches + update], dim=1)


def _weight_shapes(args: Args) -> list:
    outer_dim = args["proj_weight"].shape[0]
    norm1 = (args["norm1_weight"].shape[0],)
    vector = (outer_dim,)
    return [norm1, norm1, tuple(args["proj_weight"].shape), vector, vector, vector]


def _outputs(args: Args) -> tuple:
    pixels, tokens = args["pixels"], args["patch_tokens"]
    projection_shape = (pixels.shape[0], args["proj_weight"].shape[0])
    out = pixels.new_empty(projection_shape) if tokens is None else tokens.new_empty(tokens.shape)
    if args["save_projection"] and args["norm2_weight"] is not None:
        return out, pixels.new_empty(projection_shape)
    return out, empty(pixels)


def _dims(args: Args) -> dict:
    _, num_tokens, dim = args["pixels"].shape
    outer_dim, norm1 = args["proj_weight"].shape[0], args["norm1_weight"].shape[0]
    return {"S": num_tokens, "C": dim, "D": outer_dim, "norm1": norm1}


def _macs(args: Args) -> int:
    return args["pixels"].shape[0] * args["proj_weight"].numel()


def _bytes_moved(args: Args) -> int:
    pixels, weight, tokens = args["pixels"], args["proj_weight"], args["patch_tokens"]
    if tokens is None:
        output = pixels.shape[0] * weight.shape[0] * pixels.element_size()
    else:
        output = 2 * tokens.numel() * tokens.element_size()
    return pixels.numel() * pixels.element_size() + weight.numel() * weight.element_size() + output


def _backward_values(args: Args, projection: Optional[Tensor]) -> tuple:
    weights = tuple(args[name] for name in PIXEL_TO_PATCH.weights)
    return args["pixels"], projection, *weights, args["patch_tokens"] is not None, args["eps"]


def make_args(case: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int = 0) -> dict:
    """Random arguments; keys of a case: B, N, S, C, D, dialect = published | legacy | stem."""
    draw = sampler(dtype, device, seed)
    batch, patches, outer_dim, dialect = case["B"], case["N"], case["D"], case["dialect"]
    width = case["S"] * case["C"]
    norm1_width = case["C"] if dialect == "legacy" else width
    has_norm2 = dialect != "legacy"
    return {
        "pixels": draw(batch * patches, case["S"], case["C"]),
        "patch_tokens": None if dialect == "stem" else draw(batch, patches + 1, outer_dim),
        "norm1_weight": 1 + draw(norm1_width, std=0.2),
        "norm1_bias": draw(norm1_width, std=0.2),
        "proj_weight": draw(outer_dim, width, std=width**-0.5),
        "proj_bias": None if dialect == "published" else draw(outer_dim, std=0.2),
        "norm2_weight": 1 + draw(outer_dim, std=0.2) if has_norm2 else None,
        "norm2_bias": draw(outer_dim, std=0.2) if has_norm2 else None,
        "eps": 1e-5,
    }


CASES = tuple(
    {"B": batch, "N": patches, "S": s, "C": c, "D": outer_dim, "dialect": dialect}
    for batch, patches, s, c, outer_dim in (
        (1, 1, 16, 24, 384),
        (3, 7, 16, 40, 640),
        (2, 9, 64, 6, 384),
        (1, 35, 4, 96, 384),
        (2, 3, 16, 10, 37),
        (0, 4, 16, 24, 64),
    )
    for dialect in ("published", "legacy", "stem")
)

PIXEL_TO_PATCH = OpSpec(
    name="pixel_to_patch",
    arguments=(
        "Tensor pixels, Tensor? patch_tokens, Tensor norm1_weight, Tensor norm1_bias, "
        "Tensor proj_weight, Tensor? proj_bias, Tensor? norm2_weight, Tensor? norm2_bias, float eps"
    ),
    flag="save_projection",
    activation="pixels",
    weights=(
        "norm1_weight",
        "norm1_bias",
        "proj_weight",
        "proj_bias",
        "norm2_weight",
        "norm2_bias",
    ),
    backward_arguments=(
        "Tensor pixels, Tensor projection, Tensor norm1_weight, Tensor norm1_bias, "
        "Tensor proj_weight, Tensor? proj_bias, Tensor? norm2_weight, Tensor? norm2_bias, "
        "bool has_patch_tokens, float eps"
    ),
    passthrough="patch_tokens",
    reference=pixel_to_patch,
    fake=_outputs,
    backward_values=_backward_values,
    weight_shapes=_weight_shapes,
    dims=_dims,
    macs=_macs,
    bytes_moved=_bytes_moved,
    make_args=make_args,
    cases=CASES,
)
