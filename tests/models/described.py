"""Whole models on a GPU that is only described: fake CUDA tensors, and what runs on them.

Fake tensors have a device, a dtype and a shape, and no memory. So everything that Python decides
for a GPU is seen without one: which operators run, on which devices their tensors are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tnt_kernels.backends import native
from tnt_kernels.reference import SPECS

SYNCHRONISING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""PyTorch's marks of operators whose result, or its shape, the host has to wait for."""


class Run(NamedTuple):
    """An operator that ran: its name, why it makes the host wait (or nothing)."""

    name: str
    waits: str


class Recorder(TorchDispatchMode):
    """Writes down every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "prim":  # questions such as which device a tensor is on
            return func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        waits = _why_it_waits(func, given)
        self.runs.append(Run(str(func), waits))  # before it runs: fake tensors may refuse
        result = func(*args, **(kwargs or {}))
        if not waits and any(x.device.type != "cuda" for x in _tensors(result)):
            self.runs[-1] = Run(str(func), "it makes a tensor of the host")
        return result

    def hidden(self) -> list[Run]:
        """What waits for the device, or works or copies on the host."""
        return [run for run in self.runs if run.waits]

    def fused(self) -> dict[str, int]:
        """How often each operator of ours ran, of whichever backend."""
        names = [run.name.removesuffix(".default") for run in self.runs]
        return dict(Counter(name for name in names if name.startswith("tnt_kernels")))


def _tensors(values: Any) -> list[Tensor]:
    """Those that hold something: checkpointing in PyTorch 2.11 makes empty ones on the host."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.numel() > 0]


def _why_it_waits(func: Any, given: list[Tensor]) -> str:
    if SYNCHRONISING & set(func.tags):
        return "its result depends on values"
    if func.name().startswith("aten::index_put") and any(x.dtype is torch.bool for x in given):
        return "a mask is turned into indices"
    if any(x.device.type != "cuda" for x in given):
        return "it takes a tensor of the host"
    return ""


def describe_gpu(monkeypatch: pytest.MonkeyPatch, *missing: str) -> FakeTensorMode:
    """A GPU of capability 9.0 with autocast and every compiled kernel but those in `missing`.

    Returns: the mode in which tensors of device "cuda" can be made.
    """

    def problem(op: str, device: str) -> Any:
        return f"extension _C_cuda has no {op} kernel" if op in missing else None

    monkeypatch.setattr(native, "extension_problem", problem)
    monkeypatch.setattr(native, "cuda_capability", lambda: (9, 0))
    # PyTorch turns autocast and GradScaler off where it finds no GPU
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    # where it finds one, it makes constants there without telling any mode
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return FakeTensorMode(allow_non_fake_inputs=True)


def move(model: nn.Module, gpu: FakeTensorMode) -> nn.Module:
    """`model` with fake CUDA parameters in place of its own."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with gpu:
                    fake = torch.empty_like(parameter, device="cuda")
                module._parameters[name] = nn.Parameter(fake)
    return model


@contextmanager
def recorded() -> Iterator[Recorder]:
    """The operators that run inside."""
    recorder = Recorder()
    with recorder:
        yield recorder


def backward(loss: Tensor) -> None:
    """`loss.backward()` node by node: the engine itself does not start without a GPU's driver."""
    arrived = {loss.grad_fn: {loss.output_nr: torch.ones_like(loss)}}
    # what is checkpointed is recomputed once in every run of the engine, of which this is one
    one_run = mock.patch.object(torch._C, "_current_graph_task_id", return_value=1)
    with torch.no_grad(), one_run:
        for node in _in_order(loss.grad_fn):
            grads = arrived.pop(node, {})
            if type(node).__name__ == "AccumulateGrad":
                leaf = node.variable
                leaf.grad = grads[0].detach() if leaf.grad is None else leaf.grad + grads[0]
                continue
            found = _call(node, [grads.get(i) for i in range(len(node._input_metadata))])
            for (next_node, slot), grad in zip(node.next_functions, found, strict=True):
                if next_node is not None and grad is not None:
                    _add(arrived.setdefault(next_node, {}), slot, grad, next_node)


def _in_order(root: Any) -> list:
    """Nodes of the graph, each before those that it passes gradients to."""
    finished, entered, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            finished.append(node)
        elif node not in entered:
            entered.add(node)
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None]
    return finished[::-1]


def _call(node: Any, grads: list) -> tuple:
    """Gradients of the inputs that are tensors."""
    if not hasattr(node, "apply"):  # a node of C++
        found = node(*grads)
        return found if isinstance(found, tuple) else (found,)
    spec = next(s for s in SPECS.values() if f"_{s.name}_default" in type(node).__name__)
    found = zip(spec.argument_names, node.apply(*grads))
    return tuple(grad for name, grad in found if name in node.tensor_names)


def _add(slots: dict, slot: int, grad: Tensor, node: Any) -> None:
    """Add a gradient to what `node` is given, in the shape and dtype of its output."""
    expected = node._input_metadata[slot]
    grad = grad.sum_to_size(expected.shape) if grad.shape != expected.shape else grad
    grad = grad.to(expected.dtype)
    slots[slot] = slots[slot] + grad if slot in slots else grad
