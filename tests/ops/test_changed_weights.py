"""Results never come from weights as they were: every way in which a user can change them.

What a backend keeps of weights (packed, folded, transposed) must follow a change of values under
the same tensor, the same address or the same name. The expected result is always that of a clone,
of which nothing can have been kept.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from ops.helpers import ACCELERATED, is_slow, pair_id, run_backend
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

WITH_WEIGHTS = [spec for spec in SPECS.values() if spec.weights]


class Layer(nn.Module):
    """One op with its weights as parameters."""

    def __init__(self, backend: str, spec: OpSpec, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.backend, self.spec = backend, spec
        args = spec.make_args(spec.cases[1], dtype, device)
        self.names = [name for name in spec.weights if args[name] is not None]
        self.inputs = {name: value for name, value in args.items() if name not in self.names}
        self.order = tuple(args)
        for name in self.names:
            self.register_parameter(name, nn.Parameter(args[name]))

    def forward(self) -> Tensor:
        return self.run({name: getattr(self, name) for name in self.names})

    def run(self, weights: dict) -> Tensor:
        """The op with these weights."""
        args = {name: weights.get(name, self.inputs.get(name)) for name in self.order}
        return run_backend(self.backend, self.spec, args)

    def anew(self) -> Tensor:
        """The op with copies of the weights as they are now."""
        with torch.no_grad():
            return self.run({name: getattr(self, name).detach().clone() for name in self.names})


class _Scaled(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((), 1.25, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


def in_place(layer: Layer) -> None:
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(1.25)


def in_place_in_inference_mode(layer: Layer) -> None:
    with torch.inference_mode():
        for weight in layer.parameters():
            weight.mul_(1.25)


def behind_the_version_counter(layer: Layer) -> None:
    for weight in layer.parameters():
        weight.data.mul_(1.25)


def one_element(layer: Layer) -> None:
    """Through a view of the last weight, whose address is not that of the weight."""
    with torch.no_grad():
        list(layer.parameters())[-1].flatten()[-1:].add_(0.5)


def other_storage_of_the_same_tensor(layer: Layer) -> None:
    for weight in layer.parameters():
        weight.data = weight.data * 1.25


def optimizer_step(layer: Layer) -> None:
    for weight in layer.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def fused_optimizer_step(layer: Layer) -> None:
    for weight in layer.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


def to_another_dtype_and_back(layer: Layer) -> None:
    dtype = next(layer.parameters()).dtype
    in_place(layer.to(torch.float64))
    layer.to(dtype)


def to_another_device_and_back(layer: Layer) -> None:
    """By way of no memory at all: what comes back is at the old addresses, if it likes."""
    device = next(layer.parameters()).device
    values = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    layer.to("meta")
    layer.to_empty(device=device)
    layer.load_state_dict({name: 1.25 * value for name, value in values.items()})


def load_state_dict(layer: Layer) -> None:
    layer.load_state_dict({name: 1.25 * value for name, value in layer.state_dict().items()})


def load_state_dict_by_assignment(layer: Layer) -> None:
    state = {name: 1.25 * value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def read_from_a_file(layer: Layer) -> None:
    file = io.BytesIO()
    torch.save({name: 1.25 * value for name, value in layer.state_dict().items()}, file)
    file.seek(0)
    layer.load_state_dict(torch.load(file, weights_only=True))


def parametrisation(layer: Layer) -> None:
    name = layer.names[0]
    parametrize.register_parametrization(layer, name, _Scaled(getattr(layer, name)))


def original_of_a_parametrisation(layer: Layer) -> None:
    parametrisation(layer)
    layer()
    with torch.no_grad():
        layer.parametrizations[layer.names[0]].original.mul_(1.5)


def new_parameters_at_freed_addresses(layer: Layer) -> None:
    """What an allocator hands out again has the address, not the values, of what was freed."""
    for name in layer.names:
        values = 1.25 * getattr(layer, name).detach()
        delattr(layer, name)
        layer.register_parameter(name, nn.Parameter(values))


CHANGES = (
    in_place,
    in_place_in_inference_mode,
    behind_the_version_counter,
    one_element,
    other_storage_of_the_same_tensor,
    optimizer_step,
    fused_optimizer_step,
    to_another_dtype_and_back,
    to_another_device_and_back,
    load_state_dict,
    load_state_dict_by_assignment,
    read_from_a_file,
    parametrisation,
    original_of_a_parametrisation,
    new_parameters_at_freed_addresses,
)

EVERY_LAYER = pytest.mark.parametrize("spec", WITH_WEIGHTS, ids=lambda spec: spec.name)
EVERY_BACKEND = pytest.mark.parametrize("backend", ACCELERATED)
IN_BOTH_MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=pair_id)
@IN_BOTH_MODES
@EVERY_LAYER
@EVERY_BACKEND
def test_a_change_of_weights_is_seen(
    backend: str, spec: OpSpec, mode: Callable, dtype: torch.dtype, device: str
) -> None:
    for change in CHANGES[:: 5 if is_slow(backend) else 1]:
        layer = Layer(backend, spec, dtype, device)
        with mode():
            before = layer()
            assert torch.equal(layer(), before)
        change(layer)
        with mode():
            after = layer()
        assert not torch.equal(after, before), change.__name__
        assert torch.equal(after, layer.anew()), change.__name__


@EVERY_LAYER
@EVERY_BACKEND
def test_weights_made_in_inference_mode(backend: str, spec: OpSpec, device: str) -> None:
    """They count no versions."""
    with torch.inference_mode():
        layer = Layer(backend, spec, torch.float32, device)
        before = layer()
        in_place(layer)
        after = layer()
        assert not torch.equal(after, before)
        assert torch.equal(after, layer.anew())


@EVERY_LAYER
@EVERY_BACKEND
def test_copies_go_their_own_way(backend: str, spec: OpSpec, device: str) -> None:
    layer = Layer(backend, spec, torch.float32, device)
    with torch.no_grad():
        before = layer()
        other = copy.deepcopy(layer)
        in_place(other)
        assert torch.equal(layer(), before)
        assert torch.equal(other(), other.anew())
        swapped = torch.func.functional_call(layer, dict(other.named_parameters()), ())
        assert torch.equal(swapped, other())
        assert torch.equal(layer(), before)


@EVERY_LAYER
@EVERY_BACKEND
def test_compiled_code_sees_changes(backend: str, spec: OpSpec, device: str) -> None:
    layer = Layer(backend, spec, torch.float32, device)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        before = compiled()
        for change in (in_place, behind_the_version_counter, load_state_dict):
            change(layer)
            after = compiled()
            assert not torch.equal(after, before), change.__name__
            assert torch.equal(after, layer.anew()), change.__name__
            before = after


@EVERY_LAYER
@EVERY_BACKEND
def test_a_change_between_forward_and_backward_is_refused(
    backend: str, spec: OpSpec, device: str
) -> None:
    """Backward reads the weights again: with other values its gradients would be wrong."""
    try:
        out = Layer(backend, spec, torch.float32, device)().sum()
    except AssertionError as refused:
        pytest.skip(str(refused))
    out.backward()
    layer = Layer(backend, spec, torch.float32, device)
    out = layer().sum()
    in_place(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@EVERY_LAYER
@EVERY_BACKEND
def test_a_replayed_graph_sees_changes(backend: str, spec: OpSpec, device: str) -> None:
    """A CUDA graph records launches, not values: replayed, it reads the weights as they are."""
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    layer = Layer(backend, spec, torch.bfloat16, device)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = layer()
        for change in (in_place, behind_the_version_counter, fused_optimizer_step, load_state_dict):
            change(layer)
            graph.replay()
            assert torch.equal(replayed, layer.anew()), change.__name__
