"""pixel_to_patch: pixel embeddings projected and added into the patch embeddings (Eq. 8)."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from .. import checks, dispatch
from ..reference import PIXEL_TO_PATCH
from ..types import PixelToPatchWeights


def _check_weights(op: str, pixels: Tensor, weights: tuple) -> None:
    norm1_weight, _, proj_weight, _, norm2_weight, norm2_bias = weights
    _, num_tokens, dim = pixels.shape
    width = num_tokens * dim
    remedy = f"pass weights for patches of {num_tokens} tokens and {dim} channels"
    for name, tensor, axes in (("norm1_weight", norm1_weight, 1), ("proj_weight", proj_weight, 2)):
        if not isinstance(tensor, Tensor) or tensor.dim() != axes or tensor.shape[0] == 0:
            got = tuple(getattr(tensor, "shape", ())) or type(tensor).__name__
            expected = "a tensor (S*C,) or (C,)" if axes == 1 else f"a tensor (D, {width})"
            checks.fail(op, name, expected, got, remedy)
    if norm1_weight.shape[0] not in (width, dim):
        expected = f"({width},) to norm the patch or ({dim},) to norm each token"
        checks.fail(op, "norm1_weight", expected, tuple(norm1_weight.shape), remedy)
    if (norm2_weight is None) != (norm2_bias is None):
        name = "norm2_weight" if norm2_weight is None else "norm2_bias"
        checks.fail(op, name, "given with its partner", None, "pass both norm2 tensors or neither")
    outer_dim = proj_weight.shape[0]
    norm1, vector = (norm1_weight.shape[0],), (outer_dim,)
    shapes = (norm1, norm1, (outer_dim, width), vector, vector, vector)
    optional = ("proj_bias", "norm2_weight", "norm2_bias")
    checks.check_shapes(op, weights, PIXEL_TO_PATCH.weights, shapes, optional, pixels, remedy)


def _check_patch_tokens(op: str, pixels: Tensor, patch_tokens: Any, outer_dim: int) -> None:
    checks.check_activation(op, "patch_tokens", patch_tokens, 3, "(B, N+1, D)")
    batch, num_rows, dim = patch_tokens.shape
    if dim != outer_dim or batch * (num_rows - 1) != pixels.shape[0]:
        expected = f"(B, N+1, {outer_dim}) with B*N = {pixels.shape[0]}"
        remedy = "pass one row per patch plus the class token in row 0"
        checks.fail(op, "patch_tokens", expected, tuple(patch_tokens.shape), remedy)
    if patch_tokens.device != pixels.device:
        got, remedy = f"a tensor on {patch_tokens.device}", "move pixels and patches to one device"
        checks.fail(op, "patch_tokens", f"on {pixels.device}", got, remedy)


def pixel_to_patch_args(
    pixels: Tensor,
    weights: PixelToPatchWeights,
    patch_tokens: Optional[Tensor] = None,
    *,
    eps: float = 1e-5,
) -> dict:
    """Check the arguments of `pixel_to_patch` and name them as the operator does."""
    op = "pixel_to_patch"
    checks.check_activation(op, "pixels", pixels, 3, "(P, S, C)")
    if pixels.shape[1] == 0 or pixels.shape[2] == 0:
        remedy = "only the number of patches may be zero"
        checks.fail(op, "pixels", "(P, S, C) with S, C >= 1", tuple(pixels.shape), remedy)
    checks.check_bundle(op, weights, PixelToPatchWeights)
    _check_weights(op, pixels, weights)
    if patch_tokens is not None:
        _check_patch_tokens(op, pixels, patch_tokens, weights[2].shape[0])
    checks.check_eps(op, eps)
    return dict(zip(PIXEL_TO_PATCH.argument_names, (pixels, patch_tokens, *weights, float(eps))))


def pixel_to_patch(
    pixels: Tensor,
    weights: PixelToPatchWeights,
    patch_tokens: Optional[Tensor] = None,
    *,
    eps: float = 1e-5,
    backend: Optional[str] = None,
) -> Tensor:
    """Project the pixel embeddings of each patch and add them to the patch embeddings.

        Z[1:] = Z[1:] + LN2(FC(LN1(Vec(Y))))                  (arXiv 2103.00112, Eq. 8)

    Args:
        pixels: (P, S, C) float32 | bfloat16 | float16 | float64; P = B*N.
        weights: tensors float32 or of the pixels' dtype; see PixelToPatchWeights. The length of
            norm1_weight tells the dialect: S*C norms the patch, C each token (timm's legacy).
        patch_tokens: (B, N+1, D), row 0 is the class token and is not touched; any floating
            dtype. None: the stem, which returns the projection alone.
        eps: added to the variance in both norms.
        backend: name of the backend to force, see `use_backend`.
    Returns: (B, N+1, D), dtype of patch_tokens; or (P, D), dtype of pixels, for the stem. A new
        tensor; differentiable in all tensors.
    Raises: ValueError (shape, device), TypeError (dtype), BackendUnavailable (forced backend).
    """
    args = pixel_to_patch_args(pixels, weights, patch_tokens, eps=eps)
    return dispatch.run("pixel_to_patch", args, backend)
