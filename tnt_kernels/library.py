"""Registers every op with torch.library: schema, fakes, autograd, autocast, FLOP formulas.

Forward and backward are both operators, so that torch.compile, torch.export, CUDA graphs, FSDP
and FlopCounterMode see ordinary ops. Kernels are registered elsewhere: `_C` for CPU tensors and
`_C_cuda` for CUDA tensors implement `tnt_kernels::<op>` and `tnt_kernels::<op>_backward`. A
backend whose kernels serve the same device beside those registers a namespace of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .checks import autocast_dtype
from .precision import allows_tf32
from .reference import SPECS
from .spec import Args, OpSpec

NAMESPACE = "tnt_kernels"
AUTOCAST_DEVICES = ("cpu", "cuda")


class _SizesOnly:
    """Stands for a tensor in FLOP formulas, which are given shapes."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def operator(name: str, namespace: str = NAMESPACE) -> Any:
    """The default overload of `<namespace>::<name>`."""
    return getattr(getattr(torch.ops, namespace), name).default


def will_differentiate(args: Args) -> bool:
    """Whether a gradient of what is computed from these arguments can be asked for."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in args.values()
    )


def call(op: str, args: Args, namespace: str = NAMESPACE) -> Tensor:
    """Run `<namespace>::<op>`; asks for what backward needs when a gradient will be wanted."""
    if SPECS[op].flag is None:
        return operator(op, namespace)(*args.values())
    return operator(op, namespace)(*args.values(), will_differentiate(args))[0]


def _named(spec: OpSpec, values: Sequence[Any]) -> dict:
    names = spec.argument_names + ((spec.flag,) if spec.flag else ())
    return dict(zip(names, values))


def _total(shapes: Sequence[tuple]) -> int:
    return sum(_SizesOnly(shape).numel() for shape in shapes)


def _backward_names(spec: OpSpec) -> tuple:
    arguments = spec.backward_schema[1 : spec.backward_schema.index(")")]
    return tuple(part.split()[-1] for part in arguments.split(","))


def _register_fakes(spec: OpSpec, namespace: str) -> None:
    def forward(*values: Any) -> Any:
        return spec.fake(_named(spec, values))

    def backward(*values: Any) -> tuple:
        args = dict(zip(_backward_names(spec), values))
        activation, wanted = args[spec.activation], args[f"need_d{spec.activation}"]
        dx = activation.new_empty(activation.shape if wanted else (0,))
        num_weights = _total(spec.weight_shapes(args)) if args["need_dw"] else 0
        return dx, activation.new_empty((num_weights,), dtype=torch.float32)

    torch.library.register_fake(f"{namespace}::{spec.name}", forward)
    torch.library.register_fake(f"{namespace}::{spec.name}_backward", backward)


def _register_autograd(spec: OpSpec, namespace: str) -> None:
    names = spec.argument_names

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        args = _named(spec, inputs)
        second = output[1] if spec.flag else None
        if second is not None:
            ctx.mark_non_differentiable(second)
        ctx.set_materialize_grads(False)
        # Tensors go through save_for_backward, which checks versions and serves saved-tensor hooks.
        ctx.tensor_names = tuple(n for n in names if isinstance(args[n], Tensor))
        ctx.other = {n: args[n] for n in names if n not in ctx.tensor_names}
        saved = tuple(args[n] for n in ctx.tensor_names)
        ctx.save_for_backward(*saved, *((second,) if second is not None else ()))

    def backward(ctx: Any, dy: Optional[Tensor], *_: Any) -> tuple:
        saved = ctx.saved_tensors
        found = dict(zip(ctx.tensor_names, saved))
        second = saved[-1] if spec.flag else None
        args = {n: found.get(n, ctx.other.get(n)) for n in names}
        needs = dict(zip(names, ctx.needs_input_grad))
        grads: dict = {}
        need_dx = needs[spec.activation]
        need_dw = any(needs[name] for name in spec.weights)
        if dy is not None and (need_dx or need_dw):
            if spec.passthrough and needs[spec.passthrough]:
                grads[spec.passthrough] = dy
            dx, dw = operator(f"{spec.name}_backward", namespace)(
                dy, *spec.backward_values(args, second), need_dx, need_dw
            )
            if need_dx:
                grads[spec.activation] = dx
            if need_dw:
                grads.update(_split(spec, args, needs, dw))
        elif dy is not None and spec.passthrough:
            grads[spec.passthrough] = dy
        return tuple(grads.get(n) for n in names) + ((None,) if spec.flag else ())

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{spec.name}: double backward is not supported by the fused kernels; "
            f"use {spec.name}(..., backend='reference') where second derivatives are needed"
        )

    torch.library.register_autograd(
        f"{namespace}::{spec.name}", backward, setup_context=setup_context
    )
    torch.library.register_autograd(f"{namespace}::{spec.name}_backward", refuse)


def _split(spec: OpSpec, args: dict, needs: dict, dw: Tensor) -> dict:
    """Cut backward's flat weight gradient into the gradients that are asked for."""
    shapes = spec.weight_shapes(args)
    parts = dw.split([_SizesOnly(shape).numel() for shape in shapes])
    grads = {}
    for name, shape, part in zip(spec.weights, shapes, parts):
        if needs[name]:
            grads[name] = part.view(shape).to(args[name].dtype)
    return grads


def cast_for_autocast(x: Tensor) -> Tensor:
    """`x` as autocast on its device wants it: float64 and integers are left alone."""
    dtype = autocast_dtype(x.device.type)
    if dtype is None or x.dtype is torch.float64 or not x.is_floating_point():
        return x
    return x.to(dtype)


def _register_autocast(spec: OpSpec, namespace: str, library: torch.library.Library) -> None:
    # torch.library.register_autocast would cast the weights too, at the cost of a copy and of
    # their precision; the kernels read float32 weights beside 16-bit activations.
    for device in AUTOCAST_DEVICES:
        key = f"Autocast{device.upper()}"
        exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*values: Any, exclude: Any = exclude) -> Any:
            cast = list(values)
            position = spec.argument_names.index(spec.typed_by(_named(spec, values)))
            cast[position] = cast_for_autocast(cast[position])
            with torch._C._ExcludeDispatchKeyGuard(exclude):
                return operator(spec.name, namespace)(*cast)

        library.impl(spec.name, kernel, key)


def _register_flops(spec: OpSpec, namespace: str) -> None:
    def sized(names: Sequence[str], values: Sequence[Any]) -> dict:
        return {
            name: _SizesOnly(value) if isinstance(value, (tuple, list, torch.Size)) else value
            for name, value in zip(names, values)
        }

    def forward(*values: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * spec.macs(sized(spec.argument_names, values))

    def backward(*values: Any, out_shape: Any = None, **_: Any) -> int:
        # Two products per product of forward, the recomputation of forward's values not counted.
        args = sized(_backward_names(spec), values)
        wanted = bool(args[f"need_d{spec.activation}"]) + bool(args["need_dw"])
        # Without weights both factors of every product are made from the activation.
        return 2 * (wanted if spec.weights else 2) * spec.macs(args)

    packets = getattr(torch.ops, namespace)
    register_flop_formula(getattr(packets, spec.name))(forward)
    register_flop_formula(getattr(packets, f"{spec.name}_backward"))(backward)


def register(namespace: str) -> torch.library.Library:
    """Define every op in `namespace`, without kernels; keep the result alive."""
    library = torch.library.Library(namespace, "DEF")
    for spec in SPECS.values():
        tags = (torch.Tag.pt2_compliant_tag,)
        library.define(f"{spec.name}{spec.schema}", tags=tags)
        library.define(f"{spec.name}_backward{spec.backward_schema}", tags=tags)
        _register_fakes(spec, namespace)
        _register_autograd(spec, namespace)
        _register_autocast(spec, namespace, library)
        _register_flops(spec, namespace)
    return library


def _register_settings(library: torch.library.Library) -> None:
    """What kernels ask PyTorch at run time, where a compiled graph runs no Python of ours.

    The stable C++ interface has no such settings, but it can call operators.
    """
    library.define("allows_tf32(bool convolution) -> bool")
    library.impl("allows_tf32", allows_tf32, "CompositeExplicitAutograd")


_LIBRARY = register(NAMESPACE)
_register_settings(_LIBRARY)
