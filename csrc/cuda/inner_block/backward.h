// Host side of the inner block's backward kernels. No torch header, no kernel.
#pragma once

#include <cuda_runtime.h>

#include "cuda/inner_block/backward_params.h"

namespace tnt_kernels::cuda {

// One half of the block for one configuration. Launches only: no allocation, no synchronisation.
struct InnerBackward {
  int64_t packed_words;  // of the buffer that PackParams names
  int64_t num_sums;      // of a worker, in floats
  // Workers to give a launch on a device of so many multiprocessors, at least 1.
  int (*workers)(int64_t num_rows, int multiprocessors);
  // Packs the weights and runs over all rows, for dx, for partials, or for both.
  cudaError_t (*launch)(const PackParams&, const BackwardParams&, int multiprocessors,
                        cudaStream_t stream);
};

// Null where there is no kernel for the sizes; each half and element type is a file of its own.
const InnerBackward* find_attention_backward_bf16(int tokens, int dim, int heads);
const InnerBackward* find_attention_backward_fp16(int tokens, int dim, int heads);
const InnerBackward* find_attention_backward_fp32(int tokens, int dim, int heads);
const InnerBackward* find_mlp_backward_bf16(int tokens, int dim);
const InnerBackward* find_mlp_backward_fp16(int tokens, int dim);
const InnerBackward* find_mlp_backward_fp32(int tokens, int dim);

inline const InnerBackward* find_attention_backward(DType dtype, int tokens, int dim, int heads) {
  const auto find = dtype == DType::kBFloat16  ? find_attention_backward_bf16
                    : dtype == DType::kFloat16 ? find_attention_backward_fp16
                                               : find_attention_backward_fp32;
  return find(tokens, dim, heads);
}

inline const InnerBackward* find_mlp_backward(DType dtype, int tokens, int dim) {
  const auto find = dtype == DType::kBFloat16  ? find_mlp_backward_bf16
                    : dtype == DType::kFloat16 ? find_mlp_backward_fp16
                                               : find_mlp_backward_fp32;
  return find(tokens, dim);
}

// The last step of either half, once sums holds the sums over all workers.
cudaError_t launch_inner_backward_finish(const FinishParams& params, cudaStream_t stream);

}  // namespace tnt_kernels::cuda
