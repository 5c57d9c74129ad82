// Elements of weights of any type and strides.
#pragma once

#include "cuda/warp.cuh"
#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

TNT_DEVICE float weight_at(const WeightView& weight, int row, int column = 0) {
  const int64_t offset = row * weight.stride[0] + column * weight.stride[1];
  if (weight.type == DType::kFloat32) {
    return load_float(static_cast<const float*>(weight.data) + offset);
  }
  const uint32_t bits = load_half_word(static_cast<const uint16_t*>(weight.data) + offset);
  return weight.type == DType::kBFloat16 ? unpack_bf16(bits).lo : unpack_f16(bits).lo;
}

}  // namespace tnt_kernels::cuda
