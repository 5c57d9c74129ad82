// Work that a block shares out among its threads.
#pragma once

#include "cuda/warp.cuh"

namespace tnt_kernels::cuda {

// use(i) by one thread for each i, and a barrier.
template <class Use>
TNT_DEVICE void block_for_each(int count, const Use& use) {
#pragma unroll 1
  for (int i = thread_id(); i < count; i += block_threads()) use(i);
  block_sync();
}

}  // namespace tnt_kernels::cuda
