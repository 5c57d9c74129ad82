// The kernels of the inner block's forward and their launch; forward_<dtype>.cu instantiate them.
//
// Weights are packed at every call, by a kernel of its own in front: packed once and kept, they
// would go stale under a CUDA graph's replay, and packed in each block's prologue the work, 10 to
// 20 instructions per weight, would be done once per block instead of once (4 to 7 % of the
// forward's instructions at batch 256, against one short launch).
#pragma once

#include <algorithm>

#include "cuda/inner_block/body.cuh"
#include "cuda/inner_block/forward.h"
#include "cuda/inner_block/instances.cuh"
#include "cuda/inner_block/pack.cuh"
#include "cuda/launch.cuh"

namespace tnt_kernels::cuda {

constexpr int kPackThreads = 256;

template <class Config>
__global__ void __launch_bounds__(kPackThreads)
    inner_block_pack_kernel(const __grid_constant__ PackParams params) {
  inner_block_pack_body<Config>(params);
}

template <class Config>
__global__ void __launch_bounds__(32 * Config::kWarps, Config::kBlocksPerSm)
    inner_block_fwd_kernel(const __grid_constant__ ForwardParams params) {
  inner_block_fwd_body<Config>(params);
}

template <class Config>
cudaError_t launch_inner_forward(const PackParams& pack, const ForwardParams& forward,
                                 int multiprocessors, cudaStream_t stream) {
  constexpr int kPackBlocks = (Config::kPackedWords + kPackThreads - 1) / kPackThreads;
  const cudaError_t error =
      launch(inner_block_pack_kernel<Config>, kPackBlocks, kPackThreads, 0, stream, pack);
  if (error != cudaSuccess) return error;
  constexpr int64_t kBlockPatches = WarpRows<Config>::kPatches * Config::kWarps;
  const int64_t blocks = (forward.num_patches + kBlockPatches - 1) / kBlockPatches;
  const int64_t resident = static_cast<int64_t>(multiprocessors) * Config::kBlocksPerSm;
  return launch(inner_block_fwd_kernel<Config>, static_cast<int>(std::min(blocks, resident)),
                32 * Config::kWarps, Config::kSharedBytes, stream, forward);
}

template <class Dtype>
const InnerForward* find_inner_forward_of(int tokens, int dim, int heads) {
  const InnerForward* found = nullptr;
  visit_config(InnerConfigs<Dtype>{}, tokens, dim, heads, [&](auto config) {
    using Config = decltype(config);
    static constexpr InnerForward kForward = {Config::kBufferWords, launch_inner_forward<Config>};
    found = &kForward;
  });
  return found;
}

}  // namespace tnt_kernels::cuda
