"""Choice of backend: automatic, forced, explained; imports that must stay possible."""

from __future__ import annotations

import warnings

import pytest
import torch
from child import run_python

import tnt_kernels
from tnt_kernels import dispatch
from tnt_kernels.backends import native
from tnt_kernels.dispatch import Call, explain_call, select
from tnt_kernels.reference import SPECS


def _inner_block(dtype: torch.dtype = torch.float32, tokens: int = 16) -> tuple:
    case = {"P": 3, "S": tokens, "C": 24, "heads": 4}
    args = SPECS["inner_block"].make_args(case, dtype, "cpu")
    return args["x"], tnt_kernels.InnerBlockWeights(*list(args.values())[1:15])


@pytest.mark.parametrize("tokens", [4, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cpu_tensors_take_the_compiled_kernels(dtype: torch.dtype, tokens: int) -> None:
    x, weights = _inner_block(dtype, tokens)
    found = tnt_kernels.explain("inner_block", x, weights, num_heads=4)
    assert found.backend == "native" and not found.refusals
    assert "takes: native" in str(found)


def test_explanation_names_every_reason() -> None:
    x, weights = _inner_block(torch.float64)
    found = tnt_kernels.explain("inner_block", x, weights, num_heads=4)
    assert found.backend == "reference"
    assert "not native: dtype float64 is not one of" in str(found)
    x, weights = _inner_block(tokens=9)
    found = tnt_kernels.explain("inner_block", x, weights, num_heads=4)
    assert found.backend == "reference" and "S=9 tokens" in found.refusals["native"]


def test_explanation_knows_autocast() -> None:
    x, weights = _inner_block()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tnt_kernels.explain("inner_block", x, weights, num_heads=4)
    assert found.call.dtype is torch.bfloat16


def test_explain_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="explain: op must be one of inner_attention"):
        tnt_kernels.explain("outer_block")
    x, weights = _inner_block()
    with pytest.raises(ValueError, match="inner_block: num_heads must be a divisor"):
        tnt_kernels.explain("inner_block", x, weights, num_heads=5)


def test_forced_backend_never_falls_back() -> None:
    x, weights = _inner_block(torch.float64)
    with pytest.raises(tnt_kernels.BackendUnavailable, match=r"'native' was asked for.*float64"):
        tnt_kernels.inner_block(x, weights, num_heads=4, backend="native")
    with (
        tnt_kernels.use_backend("native"),
        pytest.raises(tnt_kernels.BackendUnavailable, match="ask for no backend"),
    ):
        tnt_kernels.inner_block(x, weights, num_heads=4)


def test_use_backend_nests_and_restores() -> None:
    x, weights = _inner_block()

    def chosen() -> str:
        return tnt_kernels.explain("inner_block", x, weights, num_heads=4).backend

    with tnt_kernels.use_backend("reference"):
        assert chosen() == "reference"
        with tnt_kernels.use_backend(None):
            assert chosen() == "native"
        with pytest.raises(KeyError), tnt_kernels.use_backend("native"):
            raise KeyError
        assert chosen() == "reference"
    assert chosen() == "native"


def test_unknown_backends_are_refused() -> None:
    x, weights = _inner_block()
    with pytest.raises(ValueError, match="backend must be one of native"):
        tnt_kernels.inner_block(x, weights, num_heads=4, backend="cuda")
    with pytest.raises(ValueError, match="backend must be one of native"):
        tnt_kernels.use_backend("fast").__enter__()


def test_environment_variable_forces_a_backend() -> None:
    code = """
import torch
from tnt_kernels.dispatch import Call, select
print(select(Call("inner_mlp", "cpu", torch.float32, {"S": 16, "C": 24})))
"""
    assert run_python(code, TNT_KERNELS_BACKEND="reference").stdout.strip() == "reference"
    assert run_python(code, TNT_KERNELS_BACKEND="native").stdout.strip() == "native"
    wrong = run_python(code, TNT_KERNELS_BACKEND="warp")
    assert wrong.returncode != 0
    assert "TNT_KERNELS_BACKEND: backend must be one of" in wrong.stderr


def test_missing_extension_is_explained_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load_results", {})
    monkeypatch.setattr(native, "_PACKAGE", native._PACKAGE / "nowhere")
    found = explain_call(Call("inner_block", "cpu", torch.float32, {"S": 16, "C": 24}))
    assert found.backend == "reference"
    assert "extension _C was not built" in found.refusals["native"]
    x, weights = _inner_block()
    assert tnt_kernels.inner_block(x, weights, num_heads=4).shape == x.shape


def test_broken_extension_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "_load_results", {})
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    found = explain_call(Call("inner_block", "cpu", torch.float32, {"S": 16, "C": 24}))
    assert "extension _C does not load" in found.refusals["native"]


def test_other_devices_take_the_reference() -> None:
    found = explain_call(Call("inner_block", "mps", torch.float32, {"S": 16, "C": 24}))
    assert found.backend == "reference"
    assert "no compiled kernels for device mps" in found.refusals["native"]


def test_slow_path_on_a_gpu_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", set())
    call = Call("inner_block", "cuda", torch.bfloat16, {"S": 9, "C": 24})
    with pytest.warns(UserWarning, match="inner_block: running plain PyTorch on a GPU"):
        assert select(call) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select(call) == "reference"
        assert select(call._replace(dtype=torch.float64)) == "reference"


def test_import_needs_nothing_but_torch_and_numpy() -> None:
    code = """
import sys
for name in ("timm", "torchvision", "triton", "PIL", "scipy"):
    sys.modules[name] = None
import tnt_kernels
from tnt import tnt_s
print("imported")
"""
    done = run_python(code)
    assert done.stdout.strip() == "imported", done.stderr
