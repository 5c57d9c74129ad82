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

// Partial gradients that the backward leaves: the same at every call on one kind of GPU.
constexpr int kPartsPerMultiprocessor = 2;
int pixel_embed_parts(const PixelEmbedPlan& plan, int multiprocessors);

cudaError_t launch_pixel_embed_weight_grad(DType dtype, const PixelEmbedBackward& params, int parts,
                                           cudaStream_t stream);

cudaError_t launch_pixel_embed_image_grad(DType dtype, const PixelEmbedImageGrad& params,
                                          cudaStream_t stream);

}  // namespace tnt_kernels::cuda
