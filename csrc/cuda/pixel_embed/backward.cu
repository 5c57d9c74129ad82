// The kernels of pixel_embed's backward and their launch.
#include <algorithm>

#include "cuda/pixel_embed/backward_body.cuh"
#include "cuda/pixel_embed/image_grad_body.cuh"
#include "cuda/pixel_embed/instances.cuh"
#include "cuda/pixel_embed/kernels.h"

namespace tnt_kernels::cuda {
namespace {

constexpr int kThreads = 256, kBackwardThreads = 32 * kTapWarps * kTokenWarps;

template <class Dtype, int kGroups, bool kBytes>
__global__ void __launch_bounds__(kBackwardThreads, kGroups == 5 && Dtype::kPairWords == 2 ? 1 : 2)
    pixel_embed_bwd_dw_kernel(const __grid_constant__ PixelEmbedBackward params) {
  pixel_embed_bwd_dw_body<Dtype, kGroups, kBytes>(params);
}

__global__ void __launch_bounds__(kThreads)
    pixel_embed_bwd_pack_kernel(const __grid_constant__ PixelEmbedImageGrad params) {
  pixel_embed_bwd_pack_body(params);
}

template <class Dtype>
__global__ void __launch_bounds__(kThreads)
    pixel_embed_bwd_dimages_kernel(const __grid_constant__ PixelEmbedImageGrad params) {
  pixel_embed_bwd_dimages_body<Dtype>(params);
}

template <class Dtype>
void launch_image_gradient(const PixelEmbedImageGrad& params, cudaStream_t stream) {
  const PixelEmbedPlan& plan = params.plan;
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t pairs = plan.num_patches * plan.patch_h * plan.patch_w * plan.in_chans / 2;
  const int64_t blocks = std::min((pairs + kThreads - 1) / kThreads, kMostBlocks);
  pixel_embed_bwd_dimages_kernel<Dtype><<<static_cast<int>(blocks), kThreads, 0, stream>>>(params);
}

}  // namespace

int pixel_embed_parts(const PixelEmbedPlan& plan, int multiprocessors) {
  const int64_t parts = std::max(1, multiprocessors * kPartsPerMultiprocessor / plan.slices());
  return static_cast<int>(std::min(parts, plan.num_groups()));
}

cudaError_t launch_pixel_embed_weight_grad(DType dtype, const PixelEmbedBackward& params, int parts,
                                           cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  visit_pixel_embed(dtype, params.plan, [&](auto element, auto groups, auto bytes) {
    using Dtype = decltype(element);
    const auto kernel =
        pixel_embed_bwd_dw_kernel<Dtype, decltype(groups)::value, decltype(bytes)::value>;
    const int shared = static_cast<int>(backward_shared_bytes(params.plan, 2 * Dtype::kPairWords));
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return;
    kernel<<<parts * params.plan.slices(), kBackwardThreads, shared, stream>>>(params);
    error = cudaGetLastError();
  });
  return error;
}

cudaError_t launch_pixel_embed_image_grad(DType dtype, const PixelEmbedImageGrad& params,
                                          cudaStream_t stream) {
  const int taps = params.plan.taps() * params.plan.dim;
  pixel_embed_bwd_pack_kernel<<<(taps + kThreads - 1) / kThreads, kThreads, 0, stream>>>(params);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  if (dtype == DType::kBFloat16) launch_image_gradient<BFloat16>(params, stream);
  if (dtype == DType::kFloat16) launch_image_gradient<Float16>(params, stream);
  if (dtype == DType::kFloat32) launch_image_gradient<Float32>(params, stream);
  return cudaGetLastError();
}

}  // namespace tnt_kernels::cuda
