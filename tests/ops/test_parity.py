"""Every accelerated backend against the definition, both against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.helpers import (
    ACCELERATED,
    DTYPES,
    as_leaves,
    assert_parity,
    every_case,
    output_and_gradients,
    pair_id,
    run_backend,
)
from tolerance import assert_error_rule

from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec


@pytest.mark.parametrize("dtype", DTYPES, ids=pair_id)
@pytest.mark.parametrize("pair", every_case(), ids=pair_id)
@pytest.mark.parametrize("backend", ACCELERATED)
def test_output_and_gradients_match_reference(
    backend: str, pair: tuple, dtype: torch.dtype, device: str
) -> None:
    spec, case = pair
    assert_parity(backend, spec, case, dtype, device)


def _fuzzed(seed: int) -> tuple:
    """A random op and case: sizes that no list of cases foresaw."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    name = list(SPECS)[seed % len(SPECS)]
    heads = pick(1, 2, 3, 4, 8)
    dim = heads * pick(3, 5, 6, 10, 12)
    if name == "pixel_embed":
        stride = pick(1, 2, 4)
        patch_h, patch_w = (stride * pick(1, 2, 3, 4) for _ in range(2))
        case = {
            "B": pick(1, 2, 3),
            "Cin": pick(1, 2, 3),
            "H": patch_h * pick(1, 2, 3),
            "W": patch_w * pick(1, 2, 5),
            "C": dim,
            "patch": (patch_h, patch_w),
            "stride": stride,
            "k": pick(1, 3, 5, 7),
            "unfold_first": pick(True, False),
            "uint8": pick(True, False),
        }
    elif name == "pixel_to_patch":
        case = {
            "B": pick(1, 2, 3),
            "N": pick(1, 2, 11),
            "S": pick(1, 3, 16),
            "C": dim,
            "D": pick(17, 64, 130),
            "dialect": pick("published", "legacy", "stem"),
        }
    elif name == "outer_attention":
        case = {"B": pick(1, 2, 3), "N": pick(2, 13, 40), "heads": heads, "head_dim": dim // heads}
    else:
        case = {
            "P": pick(1, 2, 3, 5, 33, 130),
            "S": pick(4, 16, 64),
            "C": dim,
            "heads": heads,
            "H": pick(5, dim, 3 * dim + 1, 4 * dim),
            "bias": pick(True, False),
            "drop_path": pick(0.0, 0.5),
        }
    return SPECS[name], case


@pytest.mark.parametrize("fuzzed", [_fuzzed(seed) for seed in range(40)], ids=pair_id)
@pytest.mark.parametrize("backend", ACCELERATED)
def test_fuzzed_sizes_match_reference(backend: str, fuzzed: tuple, device: str) -> None:
    spec, case = fuzzed
    assert_parity(backend, spec, case, torch.float32, device)


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
@pytest.mark.parametrize("backend", ACCELERATED)
def test_sixteen_bit_activations_take_float32_weights(
    backend: str, spec: OpSpec, device: str
) -> None:
    """What autocast passes: gradients of the weights come back in float32."""
    sixteen = spec.make_args(spec.cases[1], torch.bfloat16, device)
    single = spec.make_args(spec.cases[1], torch.float32, device)
    args = {n: sixteen[n] if n == spec.activation else single[n] for n in sixteen}
    results = output_and_gradients(backend, spec, as_leaves(spec, args))
    exact = output_and_gradients("reference", spec, as_leaves(spec, args, torch.float64))
    rounded = output_and_gradients("reference", spec, as_leaves(spec, args, torch.bfloat16))
    for name, value in results.items():
        is_weight = any(name == f"gradient of {weight}" for weight in spec.weights)
        assert not is_weight or value.dtype is torch.float32, name
        assert_error_rule(value, rounded[name], exact[name], name)


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _every_other_row(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((x, torch.full_like(x, float("nan"))), dim=1).flatten(0, 1)[::2]


@pytest.mark.parametrize("layout", [_transposed, _every_other_row], ids=["transposed", "strided"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
@pytest.mark.parametrize("backend", ACCELERATED)
def test_strided_inputs_give_the_same_values(
    backend: str, spec: OpSpec, layout: Any, device: str
) -> None:
    """Activations, weights and incoming gradients of any strides, bit for bit."""
    args = spec.make_args(spec.cases[2], torch.float32, device)
    plain = output_and_gradients(backend, spec, as_leaves(spec, args))
    strided = as_leaves(spec, args)
    views = dict(strided)
    for name, value in strided.items():
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            views[name] = layout(value)
            assert not views[name].is_contiguous() or min(value.shape) == 1
    dy = torch.randn(plain["output"].shape, generator=torch.Generator().manual_seed(99))
    result = run_backend(backend, spec, views)
    result.backward(layout(dy.to(device)))
    assert torch.equal(result, plain["output"])
    for name, value in strided.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            assert torch.equal(value.grad, plain[f"gradient of {name}"]), name


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
@pytest.mark.parametrize("backend", ACCELERATED)
def test_expanded_incoming_gradient(backend: str, spec: OpSpec, device: str) -> None:
    """`.sum().backward()` hands backward a gradient of zero strides."""
    args = spec.make_args(spec.cases[1], torch.float32, device)
    shape = run_shape(spec, args)
    ones = torch.ones(shape, device=device)
    plain = output_and_gradients(backend, spec, as_leaves(spec, args), ones)
    expanded = torch.ones((), device=device).expand(shape)
    results = output_and_gradients(backend, spec, as_leaves(spec, args), expanded)
    for name, value in results.items():
        assert torch.equal(value, plain[name]), name


def run_shape(spec: OpSpec, args: dict) -> torch.Size:
    """Shape of the op's output."""
    return spec.reference(*args.values()).shape


@pytest.mark.parametrize("frozen", ["weights", "activation", "one weight only"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
@pytest.mark.parametrize("backend", ACCELERATED)
def test_frozen_inputs_get_no_gradient(
    backend: str, spec: OpSpec, frozen: str, device: str
) -> None:
    """Gradients that are asked for do not depend on which others are."""
    if not spec.weights:
        pytest.skip("one differentiable input only")
    args = spec.make_args(spec.cases[1], torch.float32, device)
    full = output_and_gradients(backend, spec, as_leaves(spec, args))
    leaves = as_leaves(spec, args)
    for name, value in leaves.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            is_weight = name in spec.weights
            wanted = {
                "weights": not is_weight,
                "activation": is_weight,
                "one weight only": name == spec.weights[0],
            }[frozen]
            value.requires_grad_(wanted)
    results = output_and_gradients(backend, spec, leaves)
    assert len(results) > 1
    for name, value in results.items():
        assert torch.equal(value, full[name]), name
