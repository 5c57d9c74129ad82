"""Vectorised exp and GELU of csrc/cpu/simd.h, per instruction set, against float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from cpp.build import load
from tolerance import EXP2_RELATIVE_ERROR, GELU_ERROR_PER_UNIT, GELU_SLOPE_ERROR, GELU_TAIL_ERROR

COUNT = 1 << 20


@pytest.fixture(scope="module")
def simd_math() -> ModuleType:
    pytest.importorskip("pybind11")
    return load("simd_math", ["csrc/cpu/gelu_table.cpp"])


@pytest.fixture(params=["generic", "avx2", "avx512"])
def functions(request: pytest.FixtureRequest, simd_math: ModuleType) -> ModuleType:
    if not hasattr(simd_math, request.param):
        pytest.skip(f"this machine or its compiler has no {request.param}")
    return getattr(simd_math, request.param)


def gelu_inputs() -> np.ndarray:
    """Evenly spaced values, and every binade down to where x is its own multiple of 1/2."""
    binades = np.geomspace(2.0**-30, 64, COUNT // 4)
    return np.concatenate([np.linspace(-16, 16, COUNT), binades, -binades]).astype(np.float32)


def exact_gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's erf-GELU and its derivative in float64."""
    leaf = torch.from_numpy(x).double().requires_grad_()
    y = torch.nn.functional.gelu(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach().numpy(), slope.numpy()


def test_exp2_relative_error(functions: ModuleType) -> None:
    x = np.linspace(-126, 0, COUNT).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    error = np.abs(functions.exp2_nonpositive(x) - exact) / exact
    assert error.max() <= EXP2_RELATIVE_ERROR


def test_exp2_of_what_underflows_and_of_nan(functions: ModuleType) -> None:
    x = np.zeros(16, np.float32)
    x[:4] = -200, -1e30, -np.inf, np.nan
    y = functions.exp2_nonpositive(x)
    assert np.array_equal(y[:3], [0, 0, 0])
    assert np.isnan(y[3])


def test_gelu_and_slope_error(functions: ModuleType) -> None:
    x = gelu_inputs()
    exact, exact_slope = exact_gelu(x)
    y, slope = functions.gelu_and_slope(x)
    assert np.array_equal(y, functions.gelu(x))  # training and inference compute one function
    error = np.abs(y - exact)
    assert (error / np.abs(x)).max() <= GELU_ERROR_PER_UNIT
    assert error[x < 0].max() <= GELU_TAIL_ERROR
    assert np.abs(slope - exact_slope).max() <= GELU_SLOPE_ERROR


def test_gelu_propagates_nan_and_infinity(functions: ModuleType) -> None:
    x = np.zeros(16, np.float32)
    x[:3] = np.nan, np.inf, 1e30
    for y in (functions.gelu(x), functions.gelu_and_slope(x)[0]):
        assert np.isnan(y[0])
        assert np.array_equal(y[1:3], x[1:3])
    assert np.isnan(functions.gelu_and_slope(x)[1][0])
