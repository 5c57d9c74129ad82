"""Whole models on a described GPU: the fused operators, nothing on the host, nothing waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Optional

import pytest
import timm
import torch
import torch.nn.functional as F
from models import described
from models.helpers import SMALL, assert_same, randomize
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import GraphModule

import tnt
from tnt.models import flow
from tnt_kernels.backends import triton

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this build of PyTorch describes no CUDA tensors"
)

DEPTH = 2
MODELS = ("tnt_s", "tnt_b", "tnt_s_legacy", "tnt_s_se")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """A GPU of capability 9.0 with every compiled kernel."""
    return described.describe_gpu(monkeypatch)


def build(gpu: FakeTensorMode, name: str) -> nn.Module:
    """A shallow model in training with every kind of dropout that stays fused."""
    model = getattr(tnt, name)(
        depth=DEPTH,
        img_size=32,
        device="meta",
        drop_path_rate=0.2,
        drop_rate=0.1,
        pos_drop_rate=0.1,
    )
    return described.move(model.train(), gpu)


def batch() -> tuple[Tensor, Tensor]:
    return torch.empty(3, 3, 32, 32, device="cuda"), torch.empty(3, dtype=torch.long, device="cuda")


def autocast(dtype: Optional[torch.dtype]) -> Any:
    return torch.autocast("cuda", dtype) if dtype else nullcontext()


def forward_calls(blocks: int = DEPTH) -> dict:
    """Of the compiled operators; the stem's projection is one more than the blocks'."""
    return {
        "tnt_kernels.pixel_embed": 1,
        "tnt_kernels.pixel_to_patch": 1 + blocks,
        "tnt_kernels.inner_block": blocks,
    }


def training_calls(recomputed: int = 0) -> dict:
    return {
        **forward_calls(DEPTH + recomputed),
        "tnt_kernels.pixel_embed_backward": 1,
        "tnt_kernels.pixel_to_patch_backward": 1 + DEPTH,
        "tnt_kernels.inner_block_backward": DEPTH,
    }


def step_of(model: nn.Module, dtype: Optional[torch.dtype]) -> Callable[[], None]:
    """A whole training step: forward, loss, backward, scaler and fused AdamW."""
    images, labels = batch()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, capturable=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    assert scaler.is_enabled() == (dtype is torch.float16)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(dtype):
            loss = F.cross_entropy(model(images), labels)
        described.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    return step


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "bfloat16") for name in MODELS), ("tnt_s", "float32"), ("tnt_s", "float16")],
)
def test_training_stays_on_the_device(gpu: FakeTensorMode, name: str, precision: str) -> None:
    model = build(gpu, name)
    with gpu:
        step = step_of(model, DTYPES[precision])
        step()  # the state of optimizer and scaler exists from here on
        with described.recorded() as recorder:
            step()
    assert recorder.hidden() == []
    assert recorder.fused() == training_calls()
    assert all(p.grad is not None and p.grad.device.type == "cuda" for p in model.parameters())


@every_model
def test_checkpointing_stays_on_the_device(gpu: FakeTensorMode, name: str) -> None:
    model = build(gpu, name)
    with gpu:
        model.set_grad_checkpointing()
        with described.recorded() as recorder:
            step_of(model, torch.bfloat16)()
    assert recorder.hidden() == []
    assert recorder.fused() == training_calls(recomputed=DEPTH)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("precision", DTYPES)
@every_model
def test_inference_stays_on_the_device(
    gpu: FakeTensorMode, name: str, precision: str, context: Callable
) -> None:
    model = build(gpu, name).eval()
    with gpu:
        images, _ = batch()
        with described.recorded() as recorder, context(), autocast(DTYPES[precision]):
            logits = model(images)
    assert recorder.hidden() == []
    assert recorder.fused() == forward_calls()
    assert logits.dtype is (DTYPES[precision] or torch.float32)


def test_accelerated_timm_models_stay_on_the_device(gpu: FakeTensorMode) -> None:
    model = timm.create_model("tnt_s_patch16_224", depth=DEPTH, img_size=32, drop_path_rate=0.2)
    model = described.move(tnt.accelerate(model).train(), gpu)
    with gpu:
        step = step_of(model, torch.bfloat16)
        step()
        with described.recorded() as recorder:
            step()
    assert recorder.hidden() == []
    expected = training_calls()
    for name in ("pixel_to_patch", "pixel_to_patch_backward"):
        expected[f"tnt_kernels.{name}"] -= 1  # the stem's is timm's own
    assert recorder.fused() == expected


def test_without_a_compiled_backward_training_takes_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = described.describe_gpu(monkeypatch, "inner_block_backward")
    monkeypatch.setattr(triton, "device_problem", lambda device: None)
    model = build(gpu, "tnt_s")
    with gpu, described.recorded() as recorder:
        step_of(model, torch.bfloat16)()
    assert recorder.hidden() == []
    found, expected = recorder.fused(), training_calls()
    for name in ("inner_block", "inner_block_backward"):
        assert found.pop(f"tnt_kernels_triton.{name}") == expected.pop(f"tnt_kernels.{name}")
    assert found == expected


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_and_loss_are_one_graph(gpu: FakeTensorMode, checkpointing: bool) -> None:
    model = build(gpu, "tnt_s")
    model.set_grad_checkpointing(checkpointing)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(model(images), labels)

    graphs = []

    def keep(graph: GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with gpu:
        loss = torch.compile(loss_of, backend=keep, fullgraph=True)(*batch())
    assert loss.device.type == "cuda" and loss.requires_grad
    (graph,) = graphs
    parts = [part.graph for part in graph.modules() if isinstance(part, GraphModule)]
    names = Counter(str(node.target).removesuffix(".default") for g in parts for node in g.nodes)
    assert {name: names[name] for name in forward_calls()} == forward_calls()


WAITS = {
    "item": (lambda x: x.sum().item(), "its result depends on values"),
    "a branch on values": (lambda x: bool(x.any()), "its result depends on values"),
    "equal": (lambda x: torch.equal(x, x), "its result depends on values"),
    "nonzero": (lambda x: x.nonzero(), "its result depends on values"),
    "masked selection": (lambda x: x[x > 0], "its result depends on values"),
    "masked assignment": (
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
        "a mask is turned into indices",
    ),
    "to the host": (lambda x: x.cpu(), "it makes a tensor of the host"),
    "a list of numbers": (
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
        "it takes a tensor of the host",
    ),
    "made on the host": (lambda x: torch.ones(3).to("cuda"), "it takes a tensor of the host"),
    "work on the host": (lambda x: torch.arange(3), "it makes a tensor of the host"),
    "copied over": (lambda x: x.copy_(torch.ones(4)), "it takes a tensor of the host"),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_is_found(gpu: FakeTensorMode, what: str) -> None:
    call, reason = WAITS[what]
    with gpu, described.recorded() as recorder:
        x = torch.ones(4, device="cuda")
        assert recorder.hidden() == []
        with suppress(DataDependentOutputException, DynamicOutputShapeException):
            call(x)
    assert reason in {run.waits for run in recorder.hidden()}


def test_a_model_that_draws_on_the_host_is_found(
    gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(drop_path: nn.Module, count: int, like: Tensor) -> Tensor:
        return torch.ones(count).to(like.device)

    monkeypatch.setattr(flow, "drop_path_factors", drawn)
    model = build(gpu, "tnt_s")
    with gpu, described.recorded() as recorder:
        model(batch()[0])
    waits = {run.waits for run in recorder.hidden()}
    assert waits == {"it makes a tensor of the host", "it takes a tensor of the host"}


def test_backward_node_by_node_is_that_of_the_engine() -> None:
    model = randomize(tnt.TNT(**SMALL)).train()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    model.set_grad_checkpointing()
    F.cross_entropy(model(images), labels).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    described.backward(F.cross_entropy(model(images), labels))
    assert_same({name: p.grad for name, p in model.named_parameters()}, expected)
