// Checks that an operator makes on every device, for callers who skip the public function: whatever
// a kernel would read out of bounds or misread. One set of messages for CPU and CUDA.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

namespace tnt_kernels {

inline bool is_kernel_dtype(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline void check_dtype(const char* op, const char* name, const torch::stable::Tensor& t) {
  STD_TORCH_CHECK(is_kernel_dtype(t), op, ": ", name, " must be float32, bfloat16 or float16");
}

// mean and std of a pixel embedding: (Cin,) float32 beside uint8 images, absent beside others.
inline void check_normalisation(const char* op, const torch::stable::Tensor& images,
                                const char* name,
                                const std::optional<torch::stable::Tensor>& values) {
  using torch::headeronly::ScalarType;
  const bool wanted = images.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(values.has_value() == wanted, op, ": ", name, " must be ",
                  wanted ? "given with uint8 images" : "None for floating images",
                  wanted ? "; pass one float32 value per channel" : "; pass uint8 images");
  if (!wanted) return;
  STD_TORCH_CHECK(values->dim() == 1 && values->size(0) == images.size(1) &&
                      values->scalar_type() == ScalarType::Float,
                  op, ": ", name, " must be (Cin,) float32, one value per channel");
}

// Keeps products of two widths well inside an int.
constexpr int64_t kMaxWidth = 1 << 14;

// x of the inner block and its halves.
inline void check_inner_x(const char* op, const torch::stable::Tensor& x) {
  check_dtype(op, "x", x);
  STD_TORCH_CHECK(x.dim() == 3, op, ": x must be (P, S, C), got ", x.dim(), " axes");
  STD_TORCH_CHECK(
      x.size(1) > 0 && x.size(1) <= kMaxWidth && x.size(2) > 0 && x.size(2) <= kMaxWidth, op,
      ": x must be (P, S, C) with S and C in 1 .. ", kMaxWidth);
}

inline void check_heads(const char* op, int64_t num_heads, int64_t dim) {
  STD_TORCH_CHECK(num_heads > 0 && dim % num_heads == 0, op, ": num_heads must divide the ", dim,
                  " channels of x, got ", num_heads);
}

// A weight (rows, columns), or (rows) if `columns` is 0.
inline void check_weight(const char* op, const char* name, const torch::stable::Tensor& t,
                         int64_t rows, int64_t columns = 0) {
  const bool fits = columns == 0 ? t.dim() == 1 && t.size(0) == rows
                                 : t.dim() == 2 && t.size(0) == rows && t.size(1) == columns;
  STD_TORCH_CHECK(fits, op, ": ", name, " must be (", rows, columns == 0 ? "" : ", ",
                  columns == 0 ? "" : std::to_string(columns), ")");
  check_dtype(op, name, t);
}

}  // namespace tnt_kernels
