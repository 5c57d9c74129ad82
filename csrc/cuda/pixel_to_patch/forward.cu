// The kernels of pixel_to_patch's forward and their launch. The weights are packed at every call,
// by a kernel of its own in front: see inner_block/forward.cuh.
#include "cuda/launch.cuh"
#include "cuda/pixel_to_patch/forward_body.cuh"
#include "cuda/pixel_to_patch/instances.cuh"
#include "cuda/pixel_to_patch/kernels.h"

namespace tnt_kernels::cuda {
namespace {

constexpr int kThreads = 32 * kPatchWarps;

template <class Config>
__global__ void __launch_bounds__(kThreads)
    pixel_to_patch_pack_kernel(const __grid_constant__ PatchPack params) {
  pixel_to_patch_pack_body<Config>(params);
}

template <class Config>
__global__ void __launch_bounds__(kThreads, Config::kWidth == 384 ? 2 : 1)
    pixel_to_patch_fwd_kernel(const __grid_constant__ PatchForward params) {
  pixel_to_patch_fwd_body<Config>(params);
}

}  // namespace

cudaError_t launch_pixel_to_patch_pack(DType dtype, bool tf32, int width, const PatchPack& params,
                                       cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  visit_patch_product(dtype, tf32, width, [&](auto element, auto constant) {
    using Config = PatchConfig<decltype(element), decltype(constant)::value>;
    error = launch(pixel_to_patch_pack_kernel<Config>, Config::kWidth / kPatchWarps, kThreads, 0,
                   stream, params);
  });
  return error;
}

cudaError_t launch_pixel_to_patch_forward(DType dtype, bool tf32, int width,
                                          const PatchForward& params, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  visit_patch_product(dtype, tf32, width, [&](auto element, auto constant) {
    using Config = PatchConfig<decltype(element), decltype(constant)::value>;
    const int64_t blocks = (params.num_patches + Config::kRows - 1) / Config::kRows;
    error = launch(pixel_to_patch_fwd_kernel<Config>, static_cast<int>(blocks), kThreads,
                   Config::kSharedBytes, stream, params);
  });
  return error;
}

}  // namespace tnt_kernels::cuda
