// What the pixel ops share on the side of torch: tensors as the kernels want them, and threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/checks.h"
#include "cpu/types.h"

namespace tnt_kernels::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool has_dtype(const Tensor& t) { return is_kernel_dtype(t); }

inline DType dtype_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::BFloat16) return DType::kBFloat16;
  return t.scalar_type() == ScalarType::Half ? DType::kFloat16 : DType::kFloat32;
}

inline Tensor cast(const Tensor& t, ScalarType type) {
  return torch::stable::contiguous(t.scalar_type() == type ? t : torch::stable::to(t, type));
}
inline Tensor cast_to_float(const Tensor& t) { return cast(t, ScalarType::Float); }

inline const float* float_data(const Tensor& t) {
  return static_cast<const float*>(t.const_data_ptr());
}
inline float* mutable_float_data(const Tensor& t) {
  return static_cast<float*>(t.mutable_data_ptr());
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType type) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, type);
}

// An output that was not asked for.
inline Tensor no_tensor(const Tensor& like) { return new_tensor(like, {0}, like.scalar_type()); }

// Floats for one thread's scratch, padded so that threads share no cache line.
inline int64_t padded_floats(int64_t n) { return (n + 31) / 16 * 16; }

// Divides [0, total) into one range per thread, the same ones at every call, and calls
// f(chunk, first, last) for each, in parallel. Ranges begin at multiples of `unit`.
inline int64_t num_chunks(int64_t total, int64_t unit) {
  const int64_t units = (total + unit - 1) / unit;
  return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(units, 1));
}
template <class F>
void for_chunks(int64_t total, int64_t unit, const F& f) {
  const int64_t units = (total + unit - 1) / unit, chunks = num_chunks(total, unit);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = units * chunk / chunks * unit;
      const int64_t last = std::min(units * (chunk + 1) / chunks * unit, total);
      if (first < last) f(chunk, first, last);
    }
  });
}

}  // namespace tnt_kernels::cpu
