"""Properties that hold exactly: independence, determinism, propagation, threads, processes."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from child import run_python
from ops.helpers import (
    ACCELERATED,
    INTERPRETED,
    as_leaves,
    is_slow,
    output_and_gradients,
    run_backend,
)
from tolerance import INTERPRETED_ROWS, REORDERED_FLOAT32_SUM, assert_close

from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

ALL_SPECS = pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
ALL_BACKENDS = pytest.mark.parametrize("backend", ACCELERATED)
INNER = [SPECS[name] for name in ("inner_attention", "inner_mlp", "inner_block")]
INNER_SPECS = pytest.mark.parametrize("spec", INNER, ids=lambda spec: spec.name)
SIZES = pytest.mark.parametrize("size", [(16, 24, 4), (64, 6, 2), (4, 96, 8)], ids=str)
LARGE = {"P": 301, "S": 16, "C": 24, "heads": 4, "bias": True, "drop_path": 0.3}


def _inner_args(spec: OpSpec, patches: int, size: tuple, device: str, drop_path: float = 0.0):
    tokens, dim, heads = size
    case = {"P": patches, "S": tokens, "C": dim, "heads": heads, "drop_path": drop_path}
    return spec.make_args(case, torch.float32, device)


def _drop_path_names(args: dict) -> list:
    return [name for name in args if name.startswith("drop_path")]


@SIZES
@INNER_SPECS
@ALL_BACKENDS
def test_patches_do_not_see_each_other(
    backend: str, spec: OpSpec, size: tuple, device: str
) -> None:
    """Any subset of patches, in any order, gives the same values bit for bit."""
    args = _inner_args(spec, 45, size, device, drop_path=0.3)
    full = run_backend(backend, spec, args)
    order = torch.randperm(45)[:19].to(device)
    some = {**args, "x": args["x"][order], **{n: args[n][order] for n in _drop_path_names(args)}}
    found = run_backend(backend, spec, some)
    if backend == "triton" and INTERPRETED:
        assert_close(found, full[order], INTERPRETED_ROWS, "a subset of patches")
    else:
        assert torch.equal(found, full[order])


@SIZES
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@INNER_SPECS
@ALL_BACKENDS
def test_non_finite_values_stay_in_their_patch(
    backend: str, spec: OpSpec, size: tuple, value: float, device: str
) -> None:
    args = _inner_args(spec, 23, size, device)
    clean = run_backend(backend, spec, args)
    dirty = {**args, "x": args["x"].clone()}
    dirty["x"][11, 1, 2] = value
    out = run_backend(backend, spec, dirty)
    expected = run_backend("reference", spec, dirty)
    others = torch.arange(23) != 11
    assert torch.equal(out[others], clean[others])
    assert torch.equal(out[11].isnan(), expected[11].isnan())
    assert out[11].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ALL_SPECS
@ALL_BACKENDS
def test_nan_in_any_input_reaches_the_output(
    backend: str, spec: OpSpec, dtype: torch.dtype, device: str
) -> None:
    args = spec.make_args(spec.cases[1], dtype, device)
    for name, value in args.items():
        if isinstance(value, torch.Tensor):
            poisoned = value.clone()
            poisoned.view(-1)[value.numel() // 2] = float("nan")
            assert run_backend(backend, spec, {**args, name: poisoned}).isnan().any(), name


@INNER_SPECS
@ALL_BACKENDS
def test_dropped_paths_return_the_input(backend: str, spec: OpSpec, device: str) -> None:
    args = _inner_args(spec, 9, (16, 24, 4), device, drop_path=0.3)
    args.update({name: torch.zeros(9, device=device) for name in _drop_path_names(args)})
    assert torch.equal(run_backend(backend, spec, args), args["x"])


@INNER_SPECS
@ALL_BACKENDS
def test_unit_drop_path_factors_change_nothing(backend: str, spec: OpSpec, device: str) -> None:
    args = _inner_args(spec, 9, (16, 24, 4), device, drop_path=0.3)
    ones = {**args, **{n: torch.ones(9, device=device) for n in _drop_path_names(args)}}
    none = {**args, **dict.fromkeys(_drop_path_names(args))}
    assert torch.equal(run_backend(backend, spec, ones), run_backend(backend, spec, none))


def _large_args(spec: OpSpec, device: str) -> dict:
    if spec.name == "pixel_embed":
        case = {"B": 5, "Cin": 3, "H": 64, "W": 80, "C": 24, "patch": 16, "stride": 4}
    elif spec.name == "pixel_to_patch":
        case = {"B": 5, "N": 31, "S": 16, "C": 24, "D": 384, "dialect": "published"}
    elif spec.name == "outer_attention":
        case = {"B": 5, "N": 99, "heads": 3, "head_dim": 32}
    else:
        case = LARGE
    return spec.make_args(case, torch.float32, device)


@ALL_SPECS
@ALL_BACKENDS
def test_results_repeat_bit_for_bit(backend: str, spec: OpSpec, device: str) -> None:
    args = _large_args(spec, device)
    first = output_and_gradients(backend, spec, as_leaves(spec, args))
    for _ in range(3):
        again = output_and_gradients(backend, spec, as_leaves(spec, args))
        for name, value in first.items():
            assert torch.equal(value, again[name]), name


@INNER_SPECS
@ALL_BACKENDS
def test_number_of_threads_does_not_change_outputs(backend: str, spec: OpSpec, device: str) -> None:
    args = _large_args(spec, device)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(output_and_gradients(backend, spec, as_leaves(spec, args)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(other["output"], results[0]["output"])
        assert torch.equal(other["gradient of x"], results[0]["gradient of x"])
        for name, value in results[0].items():
            assert_close(other[name], value, REORDERED_FLOAT32_SUM, name)


@ALL_SPECS
@ALL_BACKENDS
def test_concurrent_calls_do_not_disturb_each_other(
    backend: str, spec: OpSpec, device: str
) -> None:
    args = _large_args(spec, device)
    expected = output_and_gradients(backend, spec, as_leaves(spec, args))
    mismatches = []
    # interpreted kernels wait for each other: two calls show that, more take minutes
    num_threads, num_calls = (2, 1) if is_slow(backend) else (4, 3)

    def work() -> None:
        for _ in range(num_calls):
            found = output_and_gradients(backend, spec, as_leaves(spec, args))
            mismatches.extend(n for n in expected if not torch.equal(found[n], expected[n]))

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mismatches


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_works_after_fork() -> None:
    """A data-loader worker may call the ops although its parent already has."""
    code = """
import os, sys, torch
from tnt_kernels.backends import native
from tnt_kernels.reference import SPECS
spec = SPECS["inner_block"]
args = spec.make_args({"P": 99, "S": 16, "C": 24, "heads": 4}, torch.float32, "cpu")
expected = native.run("inner_block", args)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(native.run("inner_block", args), expected) else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-2000:]


ISA_PARITY = """
import torch
from ops.helpers import assert_parity
from tnt_kernels.reference import SPECS
for spec in SPECS.values():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for case in spec.cases:
            assert_parity("native", spec, case, dtype, "cpu")
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set_obeys_the_error_rule(capability: str) -> None:
    """ATEN_CPU_CAPABILITY limits the kernels as it limits PyTorch's own."""
    levels = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}
    if levels[capability.upper()] > levels.get(torch.backends.cpu.get_cpu_capability(), 0):
        pytest.skip("PyTorch itself would run instructions that this CPU lacks")
    done = run_python(ISA_PARITY, ATEN_CPU_CAPABILITY=capability)
    assert done.returncode == 0, done.stderr[-2000:]


@ALL_SPECS
def test_denormal_numbers_of_the_caller_stay(spec: OpSpec) -> None:
    """Kernels flush denormal numbers while they run, and only then."""
    run_backend("native", spec, spec.make_args(spec.cases[0], torch.float32, "cpu"))
    assert (torch.full((1 << 20,), 1e-39) * 1.0).count_nonzero() == 1 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_queries_stay_in_their_row(value: float, dtype: torch.dtype) -> None:
    spec = SPECS["outer_attention"]
    args = spec.make_args({"B": 2, "N": 50, "heads": 2, "head_dim": 32}, dtype, "cpu")
    clean = run_backend("native", spec, args)
    dirty = {**args, "qkv": args["qkv"].clone()}
    dirty["qkv"][1, 40, 32:34] = value  # two channels of the second head's query of token 40
    out = run_backend("native", spec, dirty)
    assert out[1, 40, 32:].isnan().all()
    out[1, 40, 32:] = clean[1, 40, 32:]
    assert torch.equal(out, clean)
