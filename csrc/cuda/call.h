// A call of an op on CUDA tensors: checks, what the kernels may read, stream and device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "common/checks.h"
#include "cuda/device.h"
#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool has_dtype(const Tensor& t) { return is_kernel_dtype(t); }

inline DType dtype_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::BFloat16) return DType::kBFloat16;
  return t.scalar_type() == ScalarType::Half ? DType::kFloat16 : DType::kFloat32;
}

// Makes the device of `x` current while it lives, and keeps what was made for the call.
class Call {
 public:
  Call(const char* op, const Tensor& x) : op_(op), like_(x), device_(x) {}

  const char* op() const { return op_; }

  int attribute(cudaDeviceAttr name) const { return device_.attribute(name); }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }

  cudaStream_t stream() const { return device_.stream(); }

  void check_capability() const {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor);
    STD_TORCH_CHECK(major >= 8, op_, ": the CUDA kernels need compute capability 8.0 or later, ",
                    "this GPU has ", major, ".", attribute(cudaDevAttrComputeCapabilityMinor),
                    "; use backend='reference'");
  }

  void check_device(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(device_.has(t), op_, ": ", name, " must be on cuda:", device_.index(),
                    ", the device of the activations");
  }

  Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type) const {
    return torch::stable::new_empty(like_, {sizes.begin(), sizes.size()}, type);
  }

  // Contiguous and aligned for 16-byte accesses, which a view into a tensor need not be.
  const void* activation(const Tensor& t) {
    kept_.push_back(torch::stable::contiguous(t));
    if (reinterpret_cast<uintptr_t>(kept_.back().const_data_ptr()) % 16 != 0) {
      kept_.push_back(torch::stable::clone(kept_.back()));
    }
    return kept_.back().const_data_ptr();
  }

  // A weight (rows, columns), or (rows) if `columns` is 0.
  WeightView weight(const char* name, const Tensor& t, int64_t rows, int64_t columns = 0) {
    check_weight(op_, name, t, rows, columns);
    check_device(name, t);
    kept_.push_back(t);
    return {t.const_data_ptr(), {t.stride(0), columns == 0 ? 0 : t.stride(1)}, dtype_of(t)};
  }

  WeightView weight(const char* name, const OptionalTensor& t, int64_t rows) {
    return t.has_value() ? weight(name, *t, rows) : WeightView{};
  }

  // A weight of rows * columns elements and any number of axes, read as (rows, columns).
  WeightView matrix(const char* name, const Tensor& t, int64_t columns) {
    check_dtype(op_, name, t);
    check_device(name, t);
    kept_.push_back(torch::stable::contiguous(t));
    const Tensor& held = kept_.back();
    return {held.const_data_ptr(), {columns, 1}, dtype_of(held)};
  }

  // Contiguous float32, or null.
  const float* floats(const OptionalTensor& t) {
    if (!t.has_value()) return nullptr;
    const bool is_float = t->scalar_type() == ScalarType::Float;
    kept_.push_back(
        torch::stable::contiguous(is_float ? *t : torch::stable::to(*t, ScalarType::Float)));
    return static_cast<const float*>(kept_.back().const_data_ptr());
  }

 private:
  const char* op_;
  const Tensor& like_;
  Device device_;
  std::vector<Tensor> kept_;
};

}  // namespace tnt_kernels::cuda
