// The kernels of pixel_to_patch's backward and their launch.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/pixel_to_patch/backward_body.cuh"
#include "cuda/pixel_to_patch/instances.cuh"
#include "cuda/pixel_to_patch/kernels.h"

namespace tnt_kernels::cuda {
namespace {

constexpr int kThreads = 32 * kPatchWarps;

template <class Dtype, int kWidth>
__global__ void __launch_bounds__(kThreads)
    patch_normalise_kernel(const __grid_constant__ PatchNormalise params) {
  patch_normalise_body<Dtype, kWidth>(params);
}

template <class Dtype, int kWidth>
__global__ void __launch_bounds__(kThreads)
    patch_norm2_bwd_kernel(const __grid_constant__ PatchNorm2Backward params) {
  patch_norm2_bwd_body<Dtype, kWidth>(params);
}

template <class Dtype, int kWidth>
__global__ void __launch_bounds__(kThreads)
    patch_norm1_bwd_kernel(const __grid_constant__ PatchNorm1Backward params) {
  patch_norm1_bwd_body<Dtype, kWidth>(params);
}

}  // namespace

cudaError_t launch_patch_normalise(DType dtype, int width, const PatchNormalise& params, int blocks,
                                   cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  visit_patch(dtype, width, [&](auto element, auto constant) {
    const auto kernel = patch_normalise_kernel<decltype(element), decltype(constant)::value>;
    error = launch(kernel, blocks, kThreads, 0, stream, params);
  });
  return error;
}

cudaError_t launch_patch_norm2_backward(DType dtype, int width, const PatchNorm2Backward& params,
                                        int blocks, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  visit_patch(dtype, width, [&](auto element, auto constant) {
    constexpr int kWidth = decltype(constant)::value;
    const auto kernel = patch_norm2_bwd_kernel<decltype(element), kWidth>;
    error = launch(kernel, blocks, kThreads, 4 * kWidth, stream, params);
  });
  return error;
}

cudaError_t launch_patch_norm1_backward(DType dtype, int width, const PatchNorm1Backward& params,
                                        int blocks, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  visit_patch(dtype, width, [&](auto element, auto constant) {
    constexpr int kWidth = decltype(constant)::value;
    const auto kernel = patch_norm1_bwd_kernel<decltype(element), kWidth>;
    error = launch(kernel, blocks, kThreads, 4 * kWidth, stream, params);
  });
  return error;
}

}  // namespace tnt_kernels::cuda
