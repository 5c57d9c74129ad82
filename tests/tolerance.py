"""The only tolerances of the test suite, each with its reason."""

from __future__ import annotations

import torch
from torch import Tensor

MODEL_RELATIVE_ERROR = 2e-5
"""Whole float32 models against timm's: hundreds of roundings, summed in another order."""

SAME_MATHS_FLOAT64 = 1e-12
"""Two float64 evaluations of one formula."""

EXP2_RELATIVE_ERROR = 1.8e-7
GELU_ERROR_PER_UNIT = 2.9e-7
GELU_TAIL_ERROR = 9.5e-8
GELU_SLOPE_ERROR = 2.7e-7
"""The bounds that csrc/cpu/simd.h states for its functions, roundings included: of 2^x relative;
of gelu(x) per |x|, and absolute for negative x; of its derivative absolute."""

REORDERED_FLOAT32_SUM = 1e-5
"""Weight gradients, sums over all tokens of a batch, cut into other parts."""

INTERPRETED_ROWS = 1e-6
"""Rows of products that Triton's interpreter leaves to NumPy: BLAS may round one by its place."""

SAME_RUN = 1e-6
"""Losses of a run that was stopped and went on, which repeats the same arithmetic."""

REGROUPED_RUN = 1e-4
"""Losses of a run of a few steps whose sums are grouped otherwise: accumulation, compilation."""

HALF_PRECISION_RUN = 0.02
"""The first losses of a run in bfloat16 or float16, against float32."""

REGROUPED_HALF_PRECISION_RUN = 2e-3
"""Losses in float16 where the order of a sum decides some roundings."""

TRAINING_START = 1e-5
"""Losses of the first epoch on two implementations of one model, from the same weights."""

TRAINING_DRIFT = 0.02
"""Mean losses of the epochs of that run: every step amplifies the roundings of those before."""

ERROR_RATIO = 2.0
"""A kernel's error is at most this many times that of PyTorch at the same precision."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root of the summed squared difference over that of `expected` (0 when both are empty)."""
    if expected.numel() == 0:
        return 0.0
    expected = expected.double()
    scale = expected.norm().item()
    error = (actual.double() - expected).norm().item()
    return error / scale if scale > 0 else error


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude of `expected`."""
    if expected.numel() == 0:
        return 0.0
    expected = expected.double()
    scale = expected.abs().max().item()
    error = (actual.double() - expected).abs().max().item()
    return error / scale if scale > 0 else error


def assert_error_rule(kernel: Tensor, pytorch: Tensor, exact: Tensor, what: str) -> None:
    """The kernel's error is at most twice PyTorch's at the same precision, both against float64.

    Root mean square and maximum are both held to it. Small tensors can make PyTorch exact by
    luck, so a fraction of one rounding of the dtype is granted on top: a tenth for the root mean
    square, one for the maximum.
    """
    assert kernel.shape == exact.shape, f"{what}: shape {kernel.shape}, not {exact.shape}"
    eps = torch.finfo(kernel.dtype).eps
    for measure, slack in ((relative_error, 0.1 * eps), (largest_error, eps)):
        ours, theirs = measure(kernel, exact), measure(pytorch, exact)
        assert ours <= ERROR_RATIO * theirs + slack, (
            f"{what}: {measure.__name__} {ours:.3e} against PyTorch's {theirs:.3e}"
        )


def assert_close(actual: Tensor, expected: Tensor, limit: float, what: str) -> None:
    """Relative error (root of summed squares) below `limit`."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    error = relative_error(actual, expected)
    assert error < limit, f"{what}: relative error {error:.3e}, limit {limit:.0e}"
