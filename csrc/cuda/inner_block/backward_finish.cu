#include "cuda/inner_block/backward.h"
#include "cuda/inner_block/backward_finish.cuh"
#include "cuda/launch.cuh"

namespace tnt_kernels::cuda {
namespace {

constexpr int kFinishThreads = 256;

__global__ void __launch_bounds__(kFinishThreads)
    inner_bwd_finish_kernel(const __grid_constant__ FinishParams params) {
  inner_bwd_finish_body(params);
}

}  // namespace

cudaError_t launch_inner_backward_finish(const FinishParams& params, cudaStream_t stream) {
  const int blocks = static_cast<int>((params.num_sums + kFinishThreads - 1) / kFinishThreads);
  return launch(inner_bwd_finish_kernel, blocks, kFinishThreads, 8 * params.dim, stream, params);
}

}  // namespace tnt_kernels::cuda
