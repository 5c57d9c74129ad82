"""Static budgets of the CUDA kernels: targets, comparison, and a run of the script."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from emulation.calls import SIZES

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "cuda_budget.py"
TARGETS = {
    ("sm_90 inner_block_fwd BFloat16-S16-C24-heads4",): 760,
    ("sm_90 inner_block_fwd BFloat16-S16-C40-heads4",): 1210,
    (
        "sm_90 inner_attention_bwd BFloat16-S16-C24-heads4",
        "sm_90 inner_mlp_bwd BFloat16-S16-C24",
    ): 2120,
    (
        "sm_90 inner_attention_bwd BFloat16-S16-C40-heads4",
        "sm_90 inner_mlp_bwd BFloat16-S16-C40",
    ): 3950,
}
"""Instructions per sequence, of kernels that run one after the other."""


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_budget", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_budget"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def baseline(budget: ModuleType) -> dict:
    return json.loads(budget.BASELINE.read_text())


def test_baseline_meets_the_targets(baseline: dict) -> None:
    for keys, most in TARGETS.items():
        assert sum(baseline[key]["instructions_per_sequence"] for key in keys) <= most
        assert all(baseline[key]["stack_bytes"] == 0 for key in keys)


def test_baseline_covers_every_kernel_and_architecture(budget: ModuleType, baseline: dict) -> None:
    kernels: dict = {}
    for key in baseline:
        arch, name = key.removeprefix("sm_").split(maxsplit=1)
        kernels.setdefault(arch, set()).add(name)
    assert set(kernels) == set(budget.ARCHS)
    assert all(names == kernels["90"] for names in kernels.values())
    assert set(budget.MAIN_LOOPS) <= kernels["90"]
    for dtype in ("BFloat16", "Float16", "Float32", "TensorFloat32"):
        for tokens, dim, heads in SIZES:
            sizes = f"{dtype}-S{tokens}-C{dim}"
            assert f"inner_block_fwd {sizes}-heads{heads}" in kernels["90"]
            if dtype != "TensorFloat32":  # backward is at full accuracy whatever PyTorch allows
                heads_of = f"-heads{heads}" if tokens == 16 else ""
                assert f"inner_attention_bwd {sizes}{heads_of}" in kernels["90"]
                assert f"inner_mlp_bwd {sizes}" in kernels["90"]


def test_forward_kernels_of_the_papers_models_do_not_spill(baseline: dict) -> None:
    figures = [f for key, f in baseline.items() if "inner_block_fwd" in key and "-S16-" in key]
    assert figures and all(f["stack_bytes"] == 0 for f in figures)


def test_names_leave_out_tuning(budget: ModuleType) -> None:
    space = "tnt_kernels::cuda::"
    sizes = "(int)16, (int)24, (int)4, (int)2, (int)8, (int)2"
    config = f"{space}InnerConfig<{space}BFloat16, {sizes}>"
    for suffix in (" >", ">"):
        text = f"void {space}inner_block_fwd_kernel<{config}{suffix}({space}ForwardParams)"
        assert budget.kernel_name(text) == "inner_block_fwd BFloat16-S16-C24-heads4"
        assert budget.configuration(text)[:2] == ("BFloat16", [16, 24, 4, 2, 8, 2])
    for config, expected in (
        (
            "AttentionBackward<{0}BFloat16, (int)16, (int)24, (int)4>",
            "attention_bwd BFloat16-S16-C24-heads4",
        ),
        ("PlainAttentionBackward<{0}Float16, (int)4, (int)96>", "attention_bwd Float16-S4-C96"),
        ("MlpBackward<{0}Float32, (int)64, (int)6>", "mlp_bwd Float32-S64-C6"),
    ):
        text = (
            f"void {space}inner_bwd_kernel<{space}{config.format(space)} >({space}BackwardParams)"
        )
        assert budget.kernel_name(text) == f"inner_{expected}"
    other = f"void {space}(anonymous namespace)::sum_kernel<{space}Float16, (int)3>(float*, int)"
    assert budget.kernel_name(other) == "sum<Float16,3>"
    assert budget.kernel_name(f"{space}sum_kernel(float const*)") == "sum"


def test_only_what_got_worse_is_a_problem(budget: ModuleType, baseline: dict) -> None:
    (key,) = next(iter(TARGETS))
    assert budget.problems({key: baseline[key]}, baseline) == []
    count = baseline[key]["instructions_per_sequence"]
    for factor, worse in ((0.5, False), (1.02, False), (1.04, True)):
        found = {key: {**baseline[key], "instructions_per_sequence": count * factor}}
        assert bool(budget.problems(found, baseline)) is worse
    assert budget.problems({key: {**baseline[key], "stack_bytes": 8}}, baseline)
    assert "not in the baseline" in budget.problems({"sm_70": baseline[key]}, baseline)[0]


def test_loops_count_as_often_as_they_run(budget: ModuleType) -> None:
    lines = ["HMMA R0, R1, R2, R0", "@P0 FADD R1, R1, R2", "MUFU.EX2 R1, R1", "@P1 BRA 0x10"]
    lines += ["STG R1", "@!UP0 BRA.U 0x0", "EXIT"]
    code = [
        (16 * i, line.split(maxsplit=1)[-1] if line[0] == "@" else line)
        for i, line in enumerate(lines)
    ]
    counts = budget.main_loop(code, (3,), "kernel")
    assert counts == {"HMMA": 1, "FADD": 3, "MUFU": 3, "BRA": 4, "STG": 1}
    behind = [*code, (112, "BRA 0x0")]  # code moved out of the loop, jumping back into it
    assert budget.main_loop(behind, (3,), "kernel") == counts


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_kernels_stay_within_the_baseline(budget: ModuleType) -> None:
    pytest.importorskip("triton")  # for its cuobjdump
    command = [sys.executable, str(SCRIPT), "--archs", "90", "--sources", "forward_bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda_budget: within the baseline" in done.stdout
