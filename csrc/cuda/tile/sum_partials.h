// Parameters of sum_partials.cuh: plain data, for host and device.
#pragma once

#include <cstdint>

namespace tnt_kernels::cuda {

struct SumPartials {
  const float* partials;  // (count, width) with rows `stride` floats apart
  float* out;             // (width)
  int64_t width, stride;
  int count;
};

constexpr int kSumWarps = 16;

}  // namespace tnt_kernels::cuda
