#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/tile/launch_sum.h"
#include "cuda/tile/sum_partials.cuh"

namespace tnt_kernels::cuda {
namespace {

__global__ void __launch_bounds__(32 * kSumWarps)
    sum_partials_kernel(const __grid_constant__ SumPartials params) {
  sum_partials_body(params);
}

}  // namespace

cudaError_t launch_sum_partials(const SumPartials& params, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t blocks = std::min((params.width + 31) / 32, kMostBlocks);
  return launch(sum_partials_kernel, static_cast<int>(blocks), 32 * kSumWarps, 128 * kSumWarps,
                stream, params);
}

}  // namespace tnt_kernels::cuda
