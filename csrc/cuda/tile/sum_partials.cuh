// Sums of what blocks left, in a fixed order: out[i] = sum over p of partials[p][i].
#pragma once

#include "cuda/tile/sum_partials.h"
#include "cuda/warp.cuh"

namespace tnt_kernels::cuda {

// A block takes 32 columns, each warp every so manyth partial of them; shared memory: 128 bytes per
// warp.
TNT_DEVICE void sum_partials_body(const SumPartials& params) {
  uint32_t* sums = dynamic_shared();
  const int warps = block_threads() / 32, warp = warp_id();
  for (int64_t first = int64_t{block_id()} * 32; first < params.width;
       first += int64_t{num_blocks()} * 32) {
    const int64_t column = first + lane_id();
    float sum = 0;
    if (column < params.width) {
#pragma unroll 4
      for (int p = warp; p < params.count; p += warps) {
        sum += load_float(params.partials + p * params.stride + column);
      }
    }
    store_words(sums + thread_id(), Words<1>{{as_word(sum)}});
    block_sync();
    if (warp == 0 && column < params.width) {
      float total = 0;
      for (int w = 0; w < warps; ++w) total += load_float(sums + 32 * w + lane_id());
      store_words(params.out + column, Words<1>{{as_word(total)}});
    }
    block_sync();
  }
}

}  // namespace tnt_kernels::cuda
