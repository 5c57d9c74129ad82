// The kernels of pixel_embed's backward and their launch.
#include <algorithm>

#include "cuda/launch.cuh"
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
cudaError_t launch_image_gradient(const PixelEmbedImageGrad& params, cudaStream_t stream) {
  const PixelEmbedPlan& plan = params.plan;
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t pairs = plan.num_patches * plan.patch_h * plan.patch_w * plan.in_chans / 2;
  const int64_t blocks = std::min((pairs + kThreads - 1) / kThreads, kMostBlocks);
  return launch(pixel_embed_bwd_dimages_kernel<Dtype>, static_cast<int>(blocks), kThreads, 0,
                stream, params);
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
    const int blocks = parts * params.plan.slices();
    error = launch(kernel, blocks, kBackwardThreads, shared, stream, params);
  });
  return error;
}

cudaError_t launch_pixel_embed_image_grad(DType dtype, const PixelEmbedImageGrad& params,
                                          cudaStream_t stream) {
  const int taps = params.plan.taps() * params.plan.dim;
  const int pack_blocks = (taps + kThreads - 1) / kThreads;
  const cudaError_t error =
      launch(pixel_embed_bwd_pack_kernel, pack_blocks, kThreads, 0, stream, params);
  if (error != cudaSuccess) return error;
  const auto launch_it = dtype == DType::kBFloat16  ? launch_image_gradient<BFloat16>
                         : dtype == DType::kFloat16 ? launch_image_gradient<Float16>
                                                    : launch_image_gradient<Float32>;
  return launch_it(params, stream);
}

}  // namespace tnt_kernels::cuda
