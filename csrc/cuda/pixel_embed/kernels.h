// Host side of pixel_embed's kernels. No torch header, no kernel. Launches only: no allocation, no
// synchronisation.
#pragma once

#include <cuda_runtime.h>

#include "cuda/pixel_embed/plan.h"

namespace tnt_kernels::cuda {

cudaError_t launch_pixel_embed_pack(DType dtype, const PixelEmbedPack& params, cudaStream_t stream);

// With as many warps as `most_shared` bytes let a block have; at least one must fit.
cudaError_t launch_pixel_embed_forward(DType dtype, const PixelEmbedForward& params,
                                       int64_t most_shared, int multiprocessors,
                                       cudaStream_t stream);

}  // namespace tnt_kernels::cuda
