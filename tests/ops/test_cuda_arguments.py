"""Public ops on CUDA tensors that are only described: the same checks, choice and shapes as on CPU.

Fake tensors have a device and a shape and no memory, so a GPU is not needed to call an op on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops import test_errors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import tnt_kernels as tk
from tnt_kernels.backends import native, triton

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this build of PyTorch describes no CUDA tensors"
)

OPS = ("inner_block", "inner_attention", "inner_mlp", "pixel_embed", "pixel_to_patch")
ROWS = [row for row in test_errors.TABLE if row[0] in OPS and "cpu" not in row[2][2]]
CALLS = {name: getattr(test_errors, f"_{name}") for name in OPS}


@pytest.fixture(autouse=True)
def ops_see_cuda_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What test_errors passes to an op arrives as fake CUDA tensors; explain() too."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def moved(value: Any) -> Any:
        dense = isinstance(value, torch.Tensor) and value.layout is torch.strided
        if not dense or value.is_nested or value.device.type != "cpu":
            return value
        return mode.from_tensor(value.detach()).to("cuda").requires_grad_(value.requires_grad)

    def on_cuda(op: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with mode:
                args, kwargs = tree_map(moved, (args, kwargs))
                return op(*args, **kwargs)

        return call

    for name in OPS:
        monkeypatch.setattr(tk, name, on_cuda(getattr(tk, name)))
    monkeypatch.setattr(tk, "explain", on_cuda(tk.explain))
    monkeypatch.setattr(native, "extension_problem", lambda op, device: None)
    monkeypatch.setattr(native, "cuda_capability", lambda: (9, 0))
    monkeypatch.setattr(triton, "refusal", lambda call: "left out here")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("op", "call", "row"), ROWS)
def test_bad_input_is_refused_in_the_words_of_the_cpu_op(
    op: str, call: Callable, row: tuple
) -> None:
    test_errors.test_bad_input_is_refused_by_name(op, call, row)


@pytest.mark.filterwarnings("ignore:.*running plain PyTorch on a GPU")
@pytest.mark.parametrize("op", OPS)
def test_good_calls_give_a_cuda_tensor(op: str) -> None:
    out = CALLS[op]()
    assert out.device.type == "cuda" and out.dtype is torch.float32


def test_explain_of_cuda_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def explained(**changes: Any) -> Any:
        def explain(*args: Any, **kwargs: Any) -> Any:
            return tk.explain("inner_block", *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(tk, "inner_block", explain)
            return test_errors._inner_block(**changes)

    found = explained()
    assert found.backend == "native" and found.call.device == "cuda"
    assert str(found).startswith("inner_block on cuda, float32, S=16, C=24, heads=4, H=96")
    found = explained(num_heads=3)
    assert found.backend == "reference"
    assert found.refusals["native"] == "3 heads are not one of 1, 2, 4, 8"
    monkeypatch.setattr(native, "cuda_capability", lambda: (7, 5))
    assert "capability 7.5; the kernels need 8.0" in explained().refusals["native"]
    with pytest.raises(tk.BackendUnavailable, match=r"'native' was asked for .*capability 7\.5"):
        test_errors._inner_block(backend="native")
