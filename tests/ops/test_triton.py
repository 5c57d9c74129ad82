"""What is particular to the Triton backend: its operators, refusals, precision, recomputation."""

from __future__ import annotations

import pytest
import torch
from ops.helpers import as_leaves, output_and_gradients, run_backend
from tolerance import assert_error_rule

import tnt_kernels
from tnt_kernels import dispatch
from tnt_kernels.backends import triton as backend_module
from tnt_kernels.dispatch import Call
from tnt_kernels.library import operator
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

OPS = [SPECS[name] for name in backend_module.OPS]
ALL_OPS = pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
WHERE_TRITON_RUNS = pytest.mark.parametrize("backend", ["triton"])


def _operators(spec: OpSpec) -> tuple:
    names = (spec.name, f"{spec.name}_backward")
    return tuple(operator(name, backend_module.NAMESPACE) for name in names)


def _call(dims: dict, dtype: torch.dtype = torch.float32, device: str = "cuda") -> Call:
    return Call("inner_block", device, dtype, {"S": 16, "C": 24, "heads": 4, **dims})


def test_triton_refuses_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "_is_installed", lambda: True)
    refusal = backend_module.refusal
    assert "not a power of two up to 64" in refusal(_call({"S": 9}))
    assert "not a power of two up to 64" in refusal(_call({"S": 128}))
    assert "C=129 channels are more than 128" in refusal(_call({"C": 129}))
    assert "float64 is not one of" in refusal(_call({}, torch.float64))
    assert "do not run on device mps" in refusal(_call({}, device="mps"))
    assert refusal(_call({})) is None


def test_triton_says_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "_is_installed", lambda: False)
    assert "triton is not installed" in backend_module.refusal(_call({}))


@WHERE_TRITON_RUNS
@ALL_OPS
def test_operators_pass_opcheck(backend: str, spec: OpSpec, device: str) -> None:
    forward, backward = _operators(spec)
    args = spec.make_args(spec.cases[1], torch.float32, device)
    flag = (True,) if spec.flag else ()
    torch.library.opcheck(forward, (*as_leaves(spec, args).values(), *flag))
    out = forward(*args.values(), *flag)
    out, second = out if spec.flag else (out, None)
    values = (torch.randn_like(out), *spec.backward_values(args, second), True, True)
    torch.library.opcheck(backward, values)


@WHERE_TRITON_RUNS
@ALL_OPS
def test_compiles_to_one_graph(backend: str, spec: OpSpec, device: str) -> None:
    args = as_leaves(spec, spec.make_args(spec.cases[1], torch.float32, device))
    torch._dynamo.reset()
    with tnt_kernels.use_backend(backend):
        compiled = torch.compile(lambda a: dispatch.run(spec.name, a), fullgraph=True)
        assert torch.equal(compiled(args), run_backend(backend, spec, args))


@WHERE_TRITON_RUNS
@pytest.mark.parametrize("name", ["inner_block", "pixel_to_patch"])
def test_backward_computes_again_what_forward_did_not_keep(
    backend: str, name: str, device: str
) -> None:
    spec = SPECS[name]
    args = spec.make_args(spec.cases[1], torch.float32, device)
    forward, backward = _operators(spec)
    out, kept = forward(*args.values(), True)
    dy = torch.randn_like(out)
    expected = backward(dy, *spec.backward_values(args, kept), True, True)
    nothing = kept.new_empty(0)
    found = backward(dy, *spec.backward_values(args, nothing), True, True)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


@WHERE_TRITON_RUNS
def test_operators_check_what_they_are_given(backend: str, device: str) -> None:
    spec = SPECS["inner_mlp"]
    args = spec.make_args(spec.cases[1], torch.float32, device)
    forward, _ = _operators(spec)
    with pytest.raises(ValueError, match=r"inner_mlp: fc1_bias must be \(96,\), got \(3,\)"):
        forward(*{**args, "fc1_bias": args["fc1_bias"][:3]}.values())
    with pytest.raises(TypeError, match="inner_mlp: x must be"):
        forward(*{**args, "x": args["x"].double()}.values())


@WHERE_TRITON_RUNS
@pytest.mark.parametrize("tokens", [1, 2, 8, 32])
def test_every_power_of_two_of_tokens(backend: str, tokens: int, device: str) -> None:
    spec = SPECS["inner_attention"]
    case = {"P": 21, "S": tokens, "C": 12, "heads": 3, "bias": True, "drop_path": 0.3}
    args = spec.make_args(case, torch.float32, device)
    exact = output_and_gradients("reference", spec, as_leaves(spec, args, torch.float64))
    pytorch = output_and_gradients("reference", spec, as_leaves(spec, args))
    for name, value in output_and_gradients(backend, spec, as_leaves(spec, args)).items():
        if tokens > 1 or "qk" not in name:  # one token attends to itself: no gradient for q, k
            assert_error_rule(value, pytorch[name], exact[name], name)


@WHERE_TRITON_RUNS
def test_longest_width_of_a_row_is_no_limit(backend: str, device: str) -> None:
    """Outer widths beyond what one program holds take a second kernel."""
    spec = SPECS["pixel_to_patch"]
    case = {"B": 1, "N": 3, "S": 4, "C": 8, "D": 700, "dialect": "published"}
    args = spec.make_args(case, torch.float16, device)
    exact = run_backend("reference", spec, as_leaves(spec, args, torch.float64))
    pytorch = run_backend("reference", spec, args)
    assert_error_rule(run_backend(backend, spec, args), pytorch, exact.detach(), spec.name)


@WHERE_TRITON_RUNS
def test_precision_follows_pytorch(backend: str) -> None:
    from tnt_kernels.backends.triton.launch import precision

    if torch.version.hip:
        pytest.skip("AMD's matrix cores take float32")
    x = torch.zeros(1)
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [place.fp32_precision for place in settings]
    try:
        for setting, expected in (("ieee", "tf32x3"), ("tf32", "tf32")):
            for place in settings:
                place.fp32_precision = setting
            assert precision(x) == precision(x, convolution=True) == expected
    finally:
        for place, setting in zip(settings, before):
            place.fp32_precision = setting
