"""Every shipped Triton kernel compiles for every architecture, within its limits, without a GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from child import run_python

ARCHITECTURES = ("sm80", "sm90", "sm100", "sm120", "hip")
# Bytes of shared memory that a block may have; sm80 stands for 8.6 and 8.9 too, which have less.
SHARED_LIMIT = {
    "sm80": 101376,
    "sm90": 232448,
    "sm100": 232448,
    "sm120": 101376,
    "hip": 65536,
}
BASELINE = json.loads((Path(__file__).parent / "baseline.json").read_text())
MEASURE = """
import json, sys, triton
from offline.table import measure
reports = {{name: report._asdict() for name, report in measure("{architecture}")}}
print(json.dumps({{"triton": triton.__version__, "kernels": reports}}))
"""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shipped_kernels_compile_within_limits(architecture: str) -> None:
    """No new spills, shared memory that fits, wgmma on Hopper, no worse than the baseline."""
    done = run_python(MEASURE.format(architecture=architecture), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kernels"]
    for name, report in found["kernels"].items():
        # Known spills: float32, whose three TF32 products need more registers than there are, and
        # one kernel of the widest C on sm80. Smaller tiles would repeat work, which costs more.
        known = BASELINE["kernels"].get(name, {}).get("stack", 0)
        assert report["stack"] == 0 or known > 0, f"{name} spills: {report}"
        assert report["shared"] <= SHARED_LIMIT[architecture], f"{name}: {report}"
        if architecture == "sm90" and name.endswith("pixel_to_patch_fwd_kernel"):
            assert report["wgmma"] > 0 or "float32" in name, name
    # Another version of Triton makes other code; the limits above hold for all.
    if found["triton"] == BASELINE["triton"]:
        for name, report in found["kernels"].items():
            baseline = BASELINE["kernels"][name]
            for cost in ("registers", "instructions", "stack"):
                assert report[cost] <= 1.1 * baseline[cost], f"{name}: {cost} {report[cost]}"


def test_known_spills_are_few() -> None:
    spilling = {name for name, report in BASELINE["kernels"].items() if report["stack"] > 0}
    sixteen_bit = {name for name in spilling if "float32" not in name}
    assert sixteen_bit == {"sm80 stride 8 bfloat16 inner_attention_bwd_dw_kernel"}
    assert all("_bwd_" in name for name in spilling)
