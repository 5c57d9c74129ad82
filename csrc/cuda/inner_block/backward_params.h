// What the backward kernels of the inner block are given: plain data, for host and device.
#pragma once

#include "cuda/inner_block/params.h"

namespace tnt_kernels::cuda {

// One half of the block: attention (Eq. 6) or MLP (Eq. 7).
struct BackwardParams {
  const void* x;            // (P, S, C): what the half was given
  const void* dy;           // (P, S, C): gradient of its result
  void* dx;                 // (P, S, C), may be dy; null if not wanted
  float* partials;          // (workers, Config::kSums); null if no weight gradient is wanted
  int workers;              // blocks that share the rows; each slice of the sums has as many
  const uint32_t* weights;  // packed
  const float* drop_path;   // (P) or null
  int64_t num_rows;         // P * S, less than 2^35
  int num_heads;            // of attention
  float eps;
};

// Numbers in the gradients of a half's weights.
constexpr int64_t attention_gradients(int64_t dim) { return 2 * dim + 4 * dim * dim + 4 * dim; }
constexpr int64_t mlp_gradients(int64_t dim) {
  return 2 * dim + 2 * kHiddenPerDim * dim * dim + kHiddenPerDim * dim + dim;
}

// Turning the sums of a half into the gradients of its weights.
struct FinishParams {
  PackParams weights;
  float* sums;  // (num_sums)
  float* dw;    // in the order of the operator's schema
  int64_t num_sums;
  int dim, num_heads;
};

}  // namespace tnt_kernels::cuda
