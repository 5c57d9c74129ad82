"""A small project around the real setup.py, so that builds under test take seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from cpp.build import ROOT, import_file

HEADER = "inline __attribute__((always_inline)) float twice(float x) { return 2 * x; }\n"
KERNEL = """
#include "cpu/kernels/twice.h"
namespace tnt::%s {
float run(float x) { return twice(x); }
}
"""
OP = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
namespace tnt::generic {
float run(float x);
}
static torch::stable::Tensor twice(const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 1, "x must have one axis");
  auto y = torch::stable::empty_like(x);
  for (int64_t i = 0; i < x.numel(); ++i) {
    static_cast<float*>(y.data_ptr())[i] =
        tnt::generic::run(static_cast<const float*>(x.data_ptr())[i]);
  }
  return y;
}
STABLE_TORCH_LIBRARY_FRAGMENT(tnt_packaging_test, m) { m.def("twice(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(tnt_packaging_test, CPU, m) { m.impl("twice", TORCH_BOX(&twice)); }
"""


@pytest.fixture(scope="session")
def setup_py() -> ModuleType:
    """setup.py's helpers; nothing is built, since it is not run as a program."""
    return import_file("tnt_setup_py", ROOT / "setup.py")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The real build files around C++ sources of a few lines."""
    folder = tmp_path / "project"
    (folder / "csrc/cpu/isa").mkdir(parents=True)
    (folder / "csrc/cpu/kernels").mkdir()
    for name in ("setup.py", "build_backend.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "csrc/bindings.cpp", folder / "csrc")
    (folder / "README.md").write_text("A project for tests.\n")
    (folder / "csrc/cpu/kernels/twice.h").write_text(HEADER)
    (folder / "csrc/cpu/op.cpp").write_text(OP)
    for isa in ("generic", "avx2", "avx512", "amx"):
        (folder / f"csrc/cpu/isa/{isa}.cpp").write_text(KERNEL % isa)
    for package in ("tnt", "tnt_kernels"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    return folder


@pytest.fixture
def run_setup(project: Path) -> Callable[..., str]:
    """Runs `python setup.py ...` in the project; its output, or a failure with it."""

    def run(*arguments: str, fails: bool = False, **environment: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("FORCE_CUDA", "CUDA_HOME")}
        done = subprocess.run(
            [sys.executable, "setup.py", *arguments],
            cwd=project,
            env={**clean, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    return run


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a toolkit whose nvcc only answers questions, as a wrapper in another folder."""

    def write(version: str) -> Path:
        root = tmp_path / f"cuda-{version}"
        archs = "80 90" if version < "13" else "80 90 100 120"
        wrapper = tmp_path / f"wrapper-{version}" / "bin" / "nvcc"
        (root / "bin").mkdir(parents=True)
        wrapper.parent.mkdir(parents=True)
        wrapper.write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            f"  *--dryrun*) echo '#$ TOP={root}/bin/..' >&2 ;;\n"
            f"  *--version*) echo 'Cuda compilation tools, release {version}, V{version}.1' ;;\n"
            f"  *--list-gpu-arch*) printf 'compute_%s\\n' {archs} ;;\n"
            "esac\n"
        )
        wrapper.chmod(0o755)
        return wrapper.parent.parent

    return write
