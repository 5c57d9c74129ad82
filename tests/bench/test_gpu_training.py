"""The checks of training that `make gpu` runs, here on the CPU with a small model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import tnt

BENCH = Path(__file__).resolve().parents[2] / "bench"
SMALL = {"img_size": 64, "num_classes": 10, "embed_dim": 64, "num_heads_outer": 2}


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script for the CPU, where captured steps are called and nothing is waited for."""
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("gpu_training")
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(module, "FULL", {**SMALL, "depth": 4, "drop_path_rate": 0.2})
    monkeypatch.setattr(module, "SHALLOW", {**SMALL, "depth": 1})
    # what Inductor makes of models is tested in tests/models; here it would take minutes
    compile_ = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(
        module.torch, "compile", lambda call, fullgraph, mode=None: compile_(call, fullgraph=True)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model would spend its time on waking them
    yield module
    torch.set_num_threads(threads)


def test_every_check_passes(training: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    status = training.main(report, [])
    found = json.loads(report.read_text())
    assert {name: row.get("error") for name, row in found.items()} == dict.fromkeys(training.CHECKS)
    assert status == 0 and all(row["passed"] and row["seconds"] >= 0 for row in found.values())


def test_one_that_fails_does_not_stop_the_next(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks() -> dict:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(training, "CHECKS", {"breaks": breaks, "works": lambda: {"figure": 1.5}})
    report = tmp_path / "report.json"
    assert training.main(report, []) == 1
    found = json.loads(report.read_text())
    assert not found["breaks"]["passed"]
    assert found["breaks"]["error"] == "RuntimeError: no kernel image"
    assert found["works"]["passed"] and found["works"]["figure"] == 1.5
    assert training.main(report, ["works"]) == 0
    assert list(json.loads(report.read_text())) == ["works"]


def test_a_graph_that_learns_nothing_is_found(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frozen(call: Callable) -> Callable:
        value = call()
        return lambda: value

    monkeypatch.setattr(training, "captured", frozen)
    with pytest.raises(AssertionError, match="losses"):
        training.captured_step()


def test_a_graph_that_misses_changed_weights_is_found(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(call: Callable) -> Callable:
        values = []

        def replay() -> torch.Tensor:
            if len(values) <= training.STEPS:
                values.append(call())
            return values[-1]

        call()
        return replay

    monkeypatch.setattr(training, "captured", stale)
    with pytest.raises(AssertionError, match="changed between replays"):
        training.captured_step()


def test_overflow_is_found(training: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "USUAL_SCALE", 2.0**30)
    with pytest.raises(AssertionError, match="the scale fell"):
        training.scaled_fp16()


def test_checkpointing_that_saves_nothing_is_found(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tnt.TNT, "set_grad_checkpointing", lambda self: None)
    with pytest.raises(AssertionError, match="peak memory"):
        training.checkpointing()


def _changed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.norm.weight.mul_(1.1)
    return model


@pytest.mark.parametrize("name", ["fsdp", "ddp"])
def test_other_gradients_are_found(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wrapper = {"fsdp": "shard", "ddp": "DistributedDataParallel"}[name]
    monkeypatch.setattr(training, wrapper, lambda model, **_: _changed(model))
    with pytest.raises(AssertionError, match="gradients"):
        training.CHECKS[name]()


@pytest.mark.parametrize("name", ["compiled_step", "compiled_inference"])
def test_another_function_is_found(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def doubled(call: Callable, **_: Any) -> Callable:
        return lambda *args: 2 * call(*args)

    monkeypatch.setattr(training.torch, "compile", doubled)
    with pytest.raises(AssertionError, match=r"gradients|logits"):
        training.CHECKS[name]()


def test_gradients_that_vary_are_found(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.torch, "manual_seed", lambda seed: None)  # paths drop at random
    with pytest.raises(AssertionError, match=r"gradients of .* differ"):
        training.determinism()


def test_waiting_is_an_error_on_a_gpu_only_inside(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(training, "DEVICE", "cuda")
    monkeypatch.setattr(training.torch.cuda, "set_sync_debug_mode", modes.append)

    def waits() -> None:
        with training.waiting_is_an_error():
            assert modes == ["error"]
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        waits()
    assert modes == ["error", "default"]
