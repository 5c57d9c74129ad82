// The kernels of the inner block's backward and their launch; backward_<half>_<dtype>.cu
// instantiate them.
#pragma once

#include <algorithm>

#include "cuda/inner_block/backward.h"
#include "cuda/inner_block/backward_body.cuh"
#include "cuda/inner_block/backward_instances.cuh"
#include "cuda/inner_block/backward_pack.cuh"
#include "cuda/launch.cuh"

namespace tnt_kernels::cuda {

constexpr int kBackwardPackThreads = 256;

template <class Config>
__global__ void __launch_bounds__(kBackwardPackThreads)
    inner_bwd_pack_kernel(const __grid_constant__ PackParams params) {
  inner_bwd_pack_body<Config>(params);
}

template <class Config>
__global__ void __launch_bounds__(32 * Config::kWarps, 8 / Config::kWarps)
    inner_bwd_kernel(const __grid_constant__ BackwardParams params) {
  inner_bwd_body<Config>(params);
}

// That a block takes at a time.
template <class Config>
constexpr int rows_of_block() {
  if constexpr (Config::kKeep == Keep::kThreads) return Config::kRows;
  return 16 * Config::kWarps;
}

// Blocks that fill the device, and no more than there is work for.
template <class Config>
int backward_blocks(int64_t num_rows, int multiprocessors) {
  constexpr int kRows = rows_of_block<Config>();
  const int64_t resident = static_cast<int64_t>(multiprocessors) * (8 / Config::kWarps);
  return static_cast<int>(std::max<int64_t>(1, std::min((num_rows + kRows - 1) / kRows, resident)));
}

template <class Config>
int backward_workers(int64_t num_rows, int multiprocessors) {
  return std::max(1, backward_blocks<Config>(num_rows, multiprocessors) / Config::kSlices);
}

template <class Config>
cudaError_t launch_inner_backward(const PackParams& pack, const BackwardParams& given,
                                  int multiprocessors, cudaStream_t stream) {
  constexpr int kPackBlocks =
      (Config::kPackedWords + kBackwardPackThreads - 1) / kBackwardPackThreads;
  cudaError_t error =
      launch(inner_bwd_pack_kernel<Config>, kPackBlocks, kBackwardPackThreads, 0, stream, pack);
  for_each_pass<Config>(
      given.dx != nullptr, given.partials != nullptr, [&](bool want_dx, bool want_dw) {
        BackwardParams params = given;
        if (!want_dx) params.dx = nullptr;
        if (!want_dw) {
          params.partials = nullptr;
          params.workers = backward_blocks<Config>(given.num_rows, multiprocessors);
        }
        const int blocks = params.workers * (want_dw ? Config::kSlices : 1);
        if (error != cudaSuccess) return;
        error = launch(inner_bwd_kernel<Config>, blocks, 32 * Config::kWarps, Config::kSharedBytes,
                       stream, params);
      });
  return error;
}

template <class Config>
constexpr InnerBackward kInnerBackward = {Config::kPackedWords, Config::kSums,
                                          backward_workers<Config>, launch_inner_backward<Config>};

template <class Dtype>
const InnerBackward* find_attention_backward_of(int tokens, int dim, int heads) {
  const InnerBackward* found = nullptr;
  visit_config(AttentionBackwardConfigs<Dtype>{}, tokens, dim, heads,
               [&](auto config) { found = &kInnerBackward<AttentionOf<decltype(config)>>; });
  return found;
}

template <class Dtype>
const InnerBackward* find_mlp_backward_of(int tokens, int dim) {
  const InnerBackward* found = nullptr;
  visit_config(AttentionBackwardConfigs<Dtype>{}, tokens, dim, /*heads=*/1,
               [&](auto config) { found = &kInnerBackward<MlpOf<decltype(config)>>; });
  return found;
}

}  // namespace tnt_kernels::cuda
