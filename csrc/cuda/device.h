// The device of a call, and where its operators are registered. tests/emulation/cuda has the twin
// for tensors in a CPU's memory.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#define TNT_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CUDA, m)

namespace tnt_kernels::cuda {

// That of `x`, current while this lives.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& x) : index_(x.get_device_index()), guard_(index_) {}

  int32_t index() const { return index_; }
  bool has(const torch::stable::Tensor& t) const {
    return t.is_cuda() && t.get_device_index() == index_;
  }

  int attribute(cudaDeviceAttr name) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index_));
    return value;
  }

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace tnt_kernels::cuda
