// The twin of csrc/cuda/device.h: the emulated device, whose memory is the CPU's.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "../device.h"

#define TNT_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(tnt_kernels_emulated, CPU, m)

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) \
  STD_TORCH_CHECK((call) == cudaSuccess, "the emulated device refuses: " #call)

namespace tnt_kernels::cuda {

class Device {
 public:
  explicit Device(const torch::stable::Tensor&) {}

  int32_t index() const { return 0; }
  bool has(const torch::stable::Tensor& t) const { return !t.is_cuda(); }

  int attribute(cudaDeviceAttr name) const {
    switch (name) {
      case cudaDevAttrMultiProcessorCount:
        return emulation::device().multiprocessors;
      case cudaDevAttrComputeCapabilityMajor:
        return emulation::kCapabilityMajor;
      case cudaDevAttrComputeCapabilityMinor:
        return emulation::kCapabilityMinor;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return emulation::kMostSharedBytes;
    }
    return 0;
  }

  cudaStream_t stream() const { return nullptr; }
};

}  // namespace tnt_kernels::cuda
