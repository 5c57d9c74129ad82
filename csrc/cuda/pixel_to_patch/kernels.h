// Host side of pixel_to_patch's kernels. No torch header, no kernel. Launches only: no allocation,
// no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include "cuda/pixel_to_patch/params.h"

namespace tnt_kernels::cuda {

// `width` is K = D, 384 or 640; `tf32`: products of fp32 tensors may be in TF32.
cudaError_t launch_pixel_to_patch_pack(DType dtype, bool tf32, int width, const PatchPack& params,
                                       cudaStream_t stream);
cudaError_t launch_pixel_to_patch_forward(DType dtype, bool tf32, int width,
                                          const PatchForward& params, cudaStream_t stream);

// Blocks of the row-by-row kernels of the backward: as many partial sums.
constexpr int kPatchBlocksPerMultiprocessor = 4;

cudaError_t launch_patch_normalise(DType dtype, int width, const PatchNormalise& params, int blocks,
                                   cudaStream_t stream);
cudaError_t launch_patch_norm2_backward(DType dtype, int width, const PatchNorm2Backward& params,
                                        int blocks, cudaStream_t stream);
cudaError_t launch_patch_norm1_backward(DType dtype, int width, const PatchNorm1Backward& params,
                                        int blocks, cudaStream_t stream);

}  // namespace tnt_kernels::cuda
