"""What the CUDA kernels take and refuse, asked with a device that is only described."""

from __future__ import annotations

from typing import Any, Optional

import pytest
import torch

from tnt_kernels.backends import native, triton
from tnt_kernels.dispatch import Call, explain_call

KERNELS = ("inner_block", "inner_attention", "inner_mlp")
TNT_S = {"S": 16, "C": 24, "heads": 4, "H": 96}


@pytest.fixture(autouse=True)
def described_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of capability 9.0 with the extension that is built today, and no Triton."""

    def problem(op: str, device: str) -> Optional[str]:
        known = op.removesuffix("_backward") in KERNELS
        return None if known else f"extension _C_cuda has no {op} kernel"

    monkeypatch.setattr(native, "extension_problem", problem)
    monkeypatch.setattr(native, "cuda_capability", lambda: (9, 0))
    monkeypatch.setattr(triton, "refusal", lambda call: "left out here")


def explain(op: str = "inner_block", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    differentiable = changes.pop("differentiable", False)
    return explain_call(Call(op, "cuda", dtype, {**TNT_S, **changes}, differentiable))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", native.CUDA_SIZES, ids=str)
def test_sizes_of_the_paper_take_the_kernels(
    op: str, dtype: torch.dtype, size: tuple, differentiable: bool
) -> None:
    tokens, dim = size
    sizes = {"S": tokens, "C": dim, "heads": 2, "H": 4 * dim}
    found = explain(op, dtype, **sizes, differentiable=differentiable)
    assert found.backend == "native" and not found.refusals


def test_without_a_backward_kernel_gradients_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "extension _C_cuda has no inner_block_backward kernel"
    monkeypatch.setattr(
        native, "extension_problem", lambda op, device: reason if "backward" in op else None
    )
    assert explain().backend == "native"
    found = explain(differentiable=True)
    assert found.refusals["native"] == f"{reason}, and a gradient is wanted"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"S": 9}, r"(S, C) = (9, 24) is not one of (16, 24), (16, 40), (64, 6), (4, 96)"),
        ({"C": 32, "H": 128}, "(S, C) = (16, 32) is not one of"),
        ({"heads": 3}, "3 heads are not one of 1, 2, 4, 8"),
        ({"H": 48}, "hidden width H=48 is not 4 C"),
        ({"dtype": torch.float64}, "dtype float64 is not one of"),
        ({"op": "pixel_embed"}, "extension _C_cuda has no pixel_embed kernel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals_say_why(changes: dict, reason: str) -> None:
    found = explain(**changes)
    assert found.backend == "reference"
    assert reason in found.refusals["native"]


STEM = {"C": 24, "Cin": 3, "k": 7, "patch_h": 16, "patch_w": 16, "stride": 4}


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(24, 4), (40, 4), (6, 2), (96, 8)], ids=str)
def test_stems_of_the_paper_take_the_kernels(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: tuple, differentiable: bool
) -> None:
    monkeypatch.setattr(native, "extension_problem", lambda op, device: None)
    dim, stride = size
    dims = {**STEM, "C": dim, "stride": stride}
    found = explain_call(Call("pixel_embed", "cuda", dtype, dims, differentiable))
    assert found.backend == "native" and not found.refusals
    wide = explain_call(Call("pixel_embed", "cuda", dtype, {**dims, "k": 9}, differentiable))
    assert wide.refusals["native"] == "window k=9 is not one of 3, 5, 7"


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", native.CUDA_SIZES, ids=str)
def test_projections_of_the_paper_take_the_kernels(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: tuple, differentiable: bool
) -> None:
    monkeypatch.setattr(native, "extension_problem", lambda op, device: None)
    tokens, dim = size
    for norm1 in (tokens * dim, dim):
        dims = {"S": tokens, "C": dim, "D": tokens * dim, "norm1": norm1}
        found = explain_call(Call("pixel_to_patch", "cuda", dtype, dims, differentiable))
        assert found.backend == "native" and not found.refusals
    narrow = explain_call(Call("pixel_to_patch", "cuda", dtype, {**dims, "D": 64}, differentiable))
    assert narrow.refusals["native"] == f"D=64 is not S*C={tokens * dim}"


def test_old_gpus_are_refused_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cuda_capability", lambda: (7, 5))
    reason = explain().refusals["native"]
    assert reason == "the GPU has compute capability 7.5; the kernels need 8.0 or later"


def test_calls_know_whether_a_gradient_is_wanted() -> None:
    from tnt_kernels.dispatch import describe
    from tnt_kernels.reference import SPECS

    args = SPECS["inner_mlp"].make_args({"P": 1, "S": 16, "C": 24}, torch.float32, "cpu")
    assert not describe("inner_mlp", args).differentiable
    args["fc1_weight"].requires_grad_()
    assert describe("inner_mlp", args).differentiable
    with torch.no_grad():
        assert not describe("inner_mlp", args).differentiable
