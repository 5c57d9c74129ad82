// Host side of the inner block's forward kernels. No torch header, no kernel.
#pragma once

#include <cuda_runtime.h>

#include "cuda/inner_block/params.h"

namespace tnt_kernels::cuda {

struct InnerForward {
  int64_t packed_words;  // of the buffer that PackParams names
  // Packs the weights and runs the block, on a device of so many multiprocessors. Launches only:
  // no allocation, no synchronisation.
  cudaError_t (*launch)(const PackParams&, const ForwardParams&, int multiprocessors,
                        cudaStream_t stream);
};

// Null where there is no kernel for the sizes; each element type is a file of its own.
const InnerForward* find_inner_forward_bf16(int tokens, int dim, int heads);
const InnerForward* find_inner_forward_fp16(int tokens, int dim, int heads);
const InnerForward* find_inner_forward_fp32(int tokens, int dim, int heads);
const InnerForward* find_inner_forward_tf32(int tokens, int dim, int heads);

// `tf32`: products of fp32 tensors may be in TF32.
inline const InnerForward* find_inner_forward(DType dtype, bool tf32, int tokens, int dim,
                                              int heads) {
  const auto find = dtype == DType::kBFloat16  ? find_inner_forward_bf16
                    : dtype == DType::kFloat16 ? find_inner_forward_fp16
                    : tf32                     ? find_inner_forward_tf32
                                               : find_inner_forward_fp32;
  return find(tokens, dim, heads);
}

}  // namespace tnt_kernels::cuda
