"""pixel_embed of uint8 images: what the lists of cases do not ask."""

from __future__ import annotations

import pytest
import torch
from ops.helpers import accelerated, as_leaves, output_and_gradients
from torch.utils.flop_counter import FlopCounterMode

import tnt_kernels
from tnt_kernels import dispatch
from tnt_kernels.backends import native
from tnt_kernels.library import operator
from tnt_kernels.reference import PIXEL_EMBED as SPEC
from tnt_kernels.reference.pixel_embed import normalise

CASE = {"B": 2, "Cin": 3, "H": 32, "W": 48, "C": 24, "patch": 16, "stride": 4, "uint8": True}
PUBLIC = ("images", "weight", "bias", "pixel_pos", "mean", "std")


@pytest.fixture(autouse=True)
def kernels_are_loaded(device: str) -> None:
    """The operators themselves do not load the extension for a GPU; backends do."""
    native.extension_problem("pixel_embed", device)


def _args(device: str, dtype: torch.dtype = torch.float32) -> dict:
    return SPEC.make_args(CASE, dtype, device)


@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_images_normalised_before(dtype: torch.dtype, backend: str, device: str) -> None:
    """Output and gradients, bit for bit: one rounding of each pixel, padding after it."""
    if backend not in (*accelerated(device), "reference"):
        pytest.skip("does not run here")
    args = _args(device, dtype)
    found = output_and_gradients(backend, SPEC, as_leaves(SPEC, args))
    images = normalise(args["images"], args["mean"], args["std"], dtype)
    floating = as_leaves(SPEC, {**args, "images": images, "mean": None, "std": None})
    expected = output_and_gradients(backend, SPEC, floating)
    assert set(expected) - set(found) == {"gradient of images"}
    for name, value in found.items():
        assert value.dtype is dtype
        if device == "cpu" and backend != "triton":  # a GPU divides by a product
            assert torch.equal(value, expected[name]), name


def test_normalises_as_torchvision_does(device: str) -> None:
    args = _args(device)
    shape = (1, 3, 1, 1)
    expected = args["images"].float().div(255).sub_(args["mean"].view(shape))
    expected = expected.div_(args["std"].view(shape))
    found = normalise(args["images"], args["mean"], args["std"], torch.float32)
    assert torch.equal(found, expected)


def test_opcheck(device: str) -> None:
    args = as_leaves(SPEC, _args(device))
    torch.library.opcheck(operator(SPEC.name), tuple(args.values()))
    dy = torch.randn(12, 16, 24, device=device)
    values = (dy, *SPEC.backward_values(_args(device), None), False, True)
    torch.library.opcheck(operator(f"{SPEC.name}_backward"), values)


def test_compiles_and_exports_to_one_graph(device: str) -> None:
    class Stem(torch.nn.Module):
        def __init__(self, args: dict) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(args["weight"])
            self.register_buffer("mean", args["mean"])
            self.register_buffer("std", args["std"])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return tnt_kernels.pixel_embed(images, self.weight, mean=self.mean, std=self.std)

    args = _args(device)
    stem = Stem(args)
    expected = stem(args["images"])
    torch._dynamo.reset()
    compiled = torch.compile(stem, fullgraph=True)(args["images"])
    assert torch.equal(compiled, expected)
    gradients = [torch.autograd.grad(y.square().sum(), stem.weight) for y in (compiled, expected)]
    torch.testing.assert_close(*gradients)
    program = torch.export.export(stem, (args["images"],))
    assert torch.equal(program.module()(args["images"]), expected)


def test_autocast_decides_the_dtype(device: str) -> None:
    """As for float32 images: 16-bit out, float32 weight gradients."""
    args = as_leaves(SPEC, _args(device))
    given = {name: args[name] for name in PUBLIC}
    with torch.autocast(device, dtype=torch.bfloat16):
        out = tnt_kernels.pixel_embed(**given)
        raw = operator(SPEC.name)(*args.values())
        found = tnt_kernels.explain("pixel_embed", **given)
    cast = {**args, "weight": args["weight"].detach().to(torch.bfloat16)}
    assert found.call.dtype is torch.bfloat16
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, operator(SPEC.name)(*cast.values())) and torch.equal(raw, out)
    out.float().square().mean().backward()
    for name in SPEC.weights:
        assert args[name].grad.dtype is torch.float32


def test_explanation_is_of_the_dtype_of_the_weight(device: str) -> None:
    for dtype, taken in ((torch.bfloat16, True), (torch.float64, False)):
        args = _args(device, dtype)
        given = {name: args[name] for name in PUBLIC}
        found = tnt_kernels.explain("pixel_embed", **given)
        assert found.call.dtype is dtype
        assert (found.backend != "reference") is taken
        assert tnt_kernels.pixel_embed(**given).dtype is dtype


def test_flops_and_bytes(device: str) -> None:
    args = _args(device, torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        dispatch.run("pixel_embed", args)
    assert counter.get_total_flops() == 2 * SPEC.macs(args)
    assert SPEC.bytes_moved(args) == 2 * 3 * 32 * 48 + 2 * (12 * 16 * 24)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_operators_want_what_the_images_need(name: str, device: str) -> None:
    """torch.ops skips the Python checks."""
    args = _args(device)
    forward, backward = operator(SPEC.name), operator(f"{SPEC.name}_backward")
    dy = torch.zeros(12, 16, 24, device=device)
    for bad in (None, args[name].double(), args[name][:2], args[name].view(3, 1)):
        changed = {**args, name: bad}
        with pytest.raises(RuntimeError, match=rf"pixel_embed: {name} must be"):
            forward(*changed.values())
        with pytest.raises(RuntimeError, match=rf"pixel_embed_backward: {name} must be"):
            backward(dy, *SPEC.backward_values(changed, None), False, True)
    floating = {**args, "images": args["images"].float(), "std": None, "mean": None}
    with pytest.raises(RuntimeError, match=f"pixel_embed: {name} must be None for floating images"):
        forward(*{**floating, name: args[name]}.values())
    with pytest.raises(RuntimeError, match=r"uint8 images have no gradient"):
        backward(dy, *SPEC.backward_values(args, None), True, True)
