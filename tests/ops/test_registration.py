"""What torch.library promises: opcheck, compile, export, autocast, FLOPs, functional transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.helpers import accelerated, as_leaves, differentiable, output_and_gradients
from tolerance import assert_error_rule
from torch.utils.flop_counter import FlopCounterMode

import tnt_kernels
from tnt_kernels.backends import native
from tnt_kernels.library import operator
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

ALL_SPECS = pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)


@pytest.fixture(autouse=True)
def kernels_are_loaded(device: str) -> None:
    """The operators themselves do not load the extension for a GPU; backends do."""
    native.extension_problem("inner_block", device)


def _small_args(spec: OpSpec, device: str, index: int = 1) -> dict:
    return spec.make_args(spec.cases[index], torch.float32, device)


def _operator_args(spec: OpSpec, args: dict, flag: bool) -> tuple:
    return (*args.values(), *((flag,) if spec.flag else ()))


@pytest.mark.parametrize("saves", [False, True], ids=["inference", "training"])
@ALL_SPECS
def test_opcheck_forward(spec: OpSpec, saves: bool, device: str) -> None:
    args = as_leaves(spec, _small_args(spec, device)) if saves else _small_args(spec, device)
    torch.library.opcheck(operator(spec.name), _operator_args(spec, args, saves))


@ALL_SPECS
def test_opcheck_backward(spec: OpSpec, device: str) -> None:
    args = _small_args(spec, device)
    out = operator(spec.name)(*_operator_args(spec, args, True))
    out, second = out if spec.flag else (out, None)
    for need_dx, need_dw in ((True, True), (True, False), (False, True)):
        values = (torch.randn_like(out), *spec.backward_values(args, second), need_dx, need_dw)
        torch.library.opcheck(operator(f"{spec.name}_backward"), values)


def _call(spec: OpSpec, args: dict) -> Any:
    from tnt_kernels import dispatch

    return dispatch.run(spec.name, args)


@ALL_SPECS
def test_compiles_to_one_graph_with_gradients(spec: OpSpec, device: str) -> None:
    eager_args, compiled_args = (as_leaves(spec, _small_args(spec, device)) for _ in range(2))
    eager = _call(spec, eager_args).square().mean()
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: _call(spec, a).square().mean(), fullgraph=True)
    loss = compiled(compiled_args)
    eager.backward()
    loss.backward()
    torch.testing.assert_close(loss, eager)
    for name in differentiable(spec):
        if eager_args[name] is not None:
            torch.testing.assert_close(compiled_args[name].grad, eager_args[name].grad)


def test_compiled_graph_serves_any_number_of_patches(device: str) -> None:
    """One dynamic graph, no recompilation per batch size."""
    spec = SPECS["inner_block"]
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: _call(spec, a), fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for patches in (3, 8, 21):
            case = {"P": patches, "S": 16, "C": 24, "heads": 4}
            args = spec.make_args(case, torch.float32, device)
            torch.testing.assert_close(compiled(args), _call(spec, args))


def test_compiled_code_follows_use_backend(device: str) -> None:
    """The choice of backend is guarded: forcing another one recompiles."""
    spec = SPECS["inner_mlp"]
    args = spec.make_args(spec.cases[1], torch.float64, device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: _call(spec, a), fullgraph=True, backend="eager")
    compiled(args)
    with (
        tnt_kernels.use_backend("native"),
        pytest.raises(Exception, match=r"float64 is not one of"),
    ):
        compiled(args)


class _Module(torch.nn.Module):
    """An op with its weights as parameters."""

    def __init__(self, spec: OpSpec, args: dict) -> None:
        super().__init__()
        self.spec, self.others = spec, {}
        for name, value in args.items():
            if name in spec.weights and value is not None:
                self.register_parameter(name, torch.nn.Parameter(value))
            elif name != spec.activation:
                self.others[name] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = {**self.others, **dict(self.named_parameters()), self.spec.activation: x}
        args = {name: given.get(name) for name in self.spec.argument_names}
        return _call(self.spec, args)


@ALL_SPECS
def test_exports(spec: OpSpec, device: str) -> None:
    args = _small_args(spec, device)
    module, x = _Module(spec, args), args[spec.activation]
    program = torch.export.export(module, (x,))
    assert any(spec.name in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), module(x))


@ALL_SPECS
def test_functional_call(spec: OpSpec, device: str) -> None:
    args, others = (_small_args(spec, device, index) for index in (1, 1))
    module, x = _Module(spec, args), args[spec.activation]
    doubled = {name: 2 * value.detach() for name, value in module.named_parameters()}
    expected = _call(spec, {**others, **doubled})
    torch.testing.assert_close(torch.func.functional_call(module, doubled, (x,)), expected)


@ALL_SPECS
def test_autocast_casts_the_activation_only(spec: OpSpec, device: str) -> None:
    """Inside autocast: 16-bit activations, weights as they are, float32 weight gradients."""
    args = as_leaves(spec, _small_args(spec, device))
    with torch.autocast(device, dtype=torch.bfloat16):
        out = _call(spec, args)
        raw = operator(spec.name)(*_operator_args(spec, args, False))
    raw = raw[0] if spec.flag else raw
    cast = {**args, spec.activation: args[spec.activation].detach().to(torch.bfloat16)}
    expected = _call(spec, cast)
    assert out.dtype is expected.dtype and torch.equal(out, expected)
    assert torch.equal(raw, expected)
    out.float().square().mean().backward()
    for name in differentiable(spec):
        if args[name] is not None:
            assert args[name].grad.dtype is torch.float32, name


@ALL_SPECS
def test_autocast_leaves_float64_alone(spec: OpSpec, device: str) -> None:
    args = spec.make_args(spec.cases[1], torch.float64, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert _call(spec, args).dtype is torch.float64


@ALL_SPECS
def test_flop_formula_counts_what_pytorch_counts(spec: OpSpec, device: str) -> None:
    """FlopCounterMode sees the same FLOPs in the op as in its definition, both directions."""
    counts = []
    for backend in (*accelerated(device), "reference"):
        args = as_leaves(spec, _small_args(spec, device))
        with FlopCounterMode(display=False) as counter:
            output_and_gradients(backend, spec, args)
        counts.append(counter.get_total_flops())
    assert counts[0] > 0
    assert len(set(counts)) == 1, counts


@ALL_SPECS
def test_double_backward_is_refused(spec: OpSpec, device: str) -> None:
    args = as_leaves(spec, _small_args(spec, device))
    out = _call(spec, args)
    (first,) = torch.autograd.grad(out.square().sum(), args[spec.activation], create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{spec.name}: double backward is not supported"):
        first.square().sum().backward()


@ALL_SPECS
def test_reference_backend_differentiates_twice(spec: OpSpec, device: str) -> None:
    args = as_leaves(spec, _small_args(spec, device))
    with tnt_kernels.use_backend("reference"):
        out = _call(spec, args)
    (first,) = torch.autograd.grad(out.square().sum(), args[spec.activation], create_graph=True)
    first.square().sum().backward()
    assert torch.isfinite(args[spec.activation].grad).all()


@ALL_SPECS
def test_fake_tensors_have_the_shapes_of_real_ones(spec: OpSpec, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for case in spec.cases:
        args = spec.make_args(case, torch.float32, device)
        real = _call(spec, args)
        with FakeTensorMode() as mode:
            fake_args = {
                n: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v
                for n, v in args.items()
            }
            fake = _call(spec, fake_args)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_activation_checkpointing_recomputes_the_same(device: str) -> None:
    from torch.utils.checkpoint import checkpoint

    spec = SPECS["inner_block"]
    plain, checkpointed = (as_leaves(spec, _small_args(spec, device, 3)) for _ in range(2))
    _call(spec, plain).square().sum().backward()
    run = checkpoint(lambda a: _call(spec, a), checkpointed, use_reentrant=False)
    run.square().sum().backward()
    for name in differentiable(spec):
        if plain[name] is not None:
            assert torch.equal(plain[name].grad, checkpointed[name].grad), name


def test_in_place_change_of_a_saved_weight_is_noticed(device: str) -> None:
    spec = SPECS["inner_block"]
    args = as_leaves(spec, _small_args(spec, device))
    loss = _call(spec, args).sum()
    with torch.no_grad():
        args["fc1_weight"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@ALL_SPECS
def test_compiled_result_obeys_the_error_rule(spec: OpSpec, device: str) -> None:
    args = _small_args(spec, device)
    exact = spec.make_args(spec.cases[1], torch.float64, device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: _call(spec, a), fullgraph=True)(args)
    reference = spec.reference
    assert_error_rule(compiled, reference(*args.values()), reference(*exact.values()), spec.name)
