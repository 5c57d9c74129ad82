"""A real nvcc, where there is one, builds _C_cuda beside _C; no GPU is needed for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

KERNEL = """
template <class T>
__global__ void twice_fwd_kernel(const T* x_ptr, T* y_ptr, int64_t n) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) y_ptr[i] = 2 * x_ptr[i];
}
"""
OP = """
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/twice/body.cuh"
static torch::stable::Tensor twice(const torch::stable::Tensor& x) {
  auto y = torch::stable::empty_like(x);
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream);
  twice_fwd_kernel<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const float*>(x.data_ptr()), static_cast<float*>(y.data_ptr()), x.numel());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}
STABLE_TORCH_LIBRARY_IMPL(tnt_packaging_test, CUDA, m) { m.impl("twice", TORCH_BOX(&twice)); }
"""
HOST = """
#include <cuda_runtime.h>
int count_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
"""


@pytest.fixture
def build(project: Path, run_setup: Callable[..., str]) -> Callable[[], str]:
    folder = project / "csrc/cuda/twice"
    folder.mkdir(parents=True)
    (folder / "body.cuh").write_text(KERNEL)
    (folder / "forward.cu").write_text(OP)
    (folder / "op.cpp").write_text(HOST)
    options = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0+PTX"}
    return lambda: run_setup("build_ext", "--inplace", **options)


def test_cuda_library_is_built(project: Path, build: Callable[[], str]) -> None:
    build()
    library = project / "tnt_kernels/_C_cuda.abi3.so"
    dynamic = subprocess.run(
        ["readelf", "-d", library], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", dynamic)
    assert "libtorch.so" in needed
    assert not [name for name in needed if "cudart" in name]  # linked in: no toolkit to run it
    for folder in (project, Path(torch.__file__).parent.parent):
        assert str(folder).encode() not in library.read_bytes()
    if torch.version.cuda:
        script = (
            "import torch\n"
            "for name in ('_C', '_C_cuda'):\n"
            "    torch.ops.load_library(f'tnt_kernels/{name}.abi3.so')\n"
            "print(torch._C._dispatch_has_kernel_for_dispatch_key("
            "'tnt_packaging_test::twice', 'CUDA'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "True"

    (project / "csrc/cuda/twice/body.cuh").touch()
    assert re.findall(r"CXX \S+/(\S+)\.o", build()) == ["forward.cu"]  # headers are followed
