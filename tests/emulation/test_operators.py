"""The operators of csrc/cuda on emulated GPUs: what the op tests do not ask of every backend.

`make test-emulated` runs the op tests themselves on these operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from emulation.backend import NAME, NAMESPACE, OPS, EmulatedBackend
from ops.helpers import as_leaves, assert_parity, output_and_gradients
from ops.test_errors import check_backward_calls, check_forward_calls
from tolerance import REORDERED_FLOAT32_SUM, assert_close

from tnt_kernels import dispatch, use_backend
from tnt_kernels.backends import BACKENDS
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

ALL_SPECS = pytest.mark.parametrize("spec", [SPECS[op] for op in OPS], ids=lambda spec: spec.name)
MANY_PATCHES = {
    "pixel_embed": {"B": 3, "Cin": 3, "H": 48, "W": 64, "C": 24, "patch": 16, "stride": 4},
    "pixel_to_patch": {"B": 3, "N": 23, "S": 16, "C": 24, "D": 384, "dialect": "published"},
}
INNER = {"P": 150, "S": 16, "C": 24, "heads": 4, "bias": True, "drop_path": 0.3}


@pytest.fixture(autouse=True)
def emulated(backend: EmulatedBackend) -> Iterator[EmulatedBackend]:
    with mock.patch.dict(BACKENDS, {NAME: backend}):
        yield backend


def _on(backend: EmulatedBackend, spec: OpSpec, args: dict, *device: Any) -> dict:
    backend.set_device(*device)
    return output_and_gradients(NAME, spec, as_leaves(spec, args))


@ALL_SPECS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gpus_of_any_size_agree(
    emulated: EmulatedBackend, spec: OpSpec, dtype: torch.dtype
) -> None:
    """Only sums over patches depend on how many multiprocessors share them, and by rounding."""
    args = spec.make_args(MANY_PATCHES.get(spec.name, INNER), dtype, "cpu")
    expected = _on(emulated, spec, args, 1, False)
    for multiprocessors in (3, 132):
        found = _on(emulated, spec, args, multiprocessors, False)
        for name, value in expected.items():
            if name.removeprefix("gradient of ") in spec.weights:
                limit = REORDERED_FLOAT32_SUM + torch.finfo(dtype).eps  # one more rounding
                assert_close(found[name], value, limit, name)
            else:
                assert torch.equal(found[name], value), name
        again = _on(emulated, spec, args, multiprocessors, True)
        assert all(torch.equal(again[name], value) for name, value in found.items())


@pytest.mark.parametrize("dialect", ["published", "legacy", "stem"])
def test_images_may_be_none(dialect: str) -> None:
    """Of class tokens alone, too."""
    case = {"B": 0, "N": 4, "S": 16, "C": 24, "D": 384, "dialect": dialect}
    assert_parity(NAME, SPECS["pixel_to_patch"], case, torch.float32, "cpu")
    if dialect != "stem":
        case = {**case, "B": 2, "N": 0}
        assert_parity(NAME, SPECS["pixel_to_patch"], case, torch.float32, "cpu")


@ALL_SPECS
def test_graphs_of_any_size_compile(spec: OpSpec) -> None:
    """What the kernels refuse is asked with symbolic sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda args: dispatch.run(spec.name, args), fullgraph=True, dynamic=True, backend="eager"
    )
    with use_backend(NAME), torch.no_grad():
        for seed, case in enumerate((spec.cases[0], spec.cases[2])):
            args = spec.make_args(case, torch.float32, "cpu", seed)
            assert torch.equal(compiled(args), dispatch.run(spec.name, args))


@ALL_SPECS
def test_direct_calls_do_not_crash(spec: OpSpec) -> None:
    check_forward_calls(NAMESPACE, spec, spec.make_args(spec.cases[1], torch.float32, "cpu"))
    check_backward_calls(NAMESPACE, spec, spec.make_args(spec.cases[1], torch.float32, "cpu"))
