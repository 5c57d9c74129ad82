// The kernels of pixel_embed's forward and their launch. The weights are packed at every call, by a
// kernel of its own in front: see inner_block/forward.cuh.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/pixel_embed/forward_body.cuh"
#include "cuda/pixel_embed/instances.cuh"
#include "cuda/pixel_embed/kernels.h"
#include "cuda/pixel_embed/pack.cuh"

namespace tnt_kernels::cuda {
namespace {

constexpr int kPackThreads = 256;

template <class Dtype, int kGroups>
__global__ void __launch_bounds__(kPackThreads)
    pixel_embed_pack_kernel(const __grid_constant__ PixelEmbedPack params) {
  pixel_embed_pack_body<Dtype, kGroups>(params);
}

template <class Dtype, int kGroups, bool kBytes>
__global__ void __launch_bounds__(32 * kForwardWarps,
                                  kGroups == 3 && Dtype::kPairWords == 1 ? 3 : 2)
    pixel_embed_fwd_kernel(const __grid_constant__ PixelEmbedForward params) {
  pixel_embed_fwd_body<Dtype, kGroups, kBytes>(params);
}

cudaError_t launch_resident(void (*kernel)(PixelEmbedForward), const PixelEmbedForward& params,
                            int64_t most_shared, int multiprocessors, cudaStream_t stream) {
  int warps = kForwardWarps;
  while (warps > 1 && forward_shared_bytes(params.plan, warps) > most_shared) --warps;
  const int shared = static_cast<int>(forward_shared_bytes(params.plan, warps));
  cudaError_t error = allow_shared(kernel, shared);
  if (error != cudaSuccess) return error;
  int resident = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * warps, shared);
  if (error != cudaSuccess) return error;
  const int64_t blocks = (params.plan.num_groups() + warps - 1) / warps;
  const int64_t most = int64_t{multiprocessors} * std::max(resident, 1);
  return launch(kernel, static_cast<int>(std::min(blocks, most)), 32 * warps, shared, stream,
                params);
}

}  // namespace

cudaError_t launch_pixel_embed_pack(DType dtype, const PixelEmbedPack& params,
                                    cudaStream_t stream) {
  const int blocks = (params.plan.packed_words / 2 + kPackThreads - 1) / kPackThreads;
  cudaError_t error = cudaSuccess;
  visit_pixel_embed(dtype, params.plan, [&](auto element, auto groups, auto) {
    const auto kernel = pixel_embed_pack_kernel<decltype(element), decltype(groups)::value>;
    error = launch(kernel, blocks, kPackThreads, 0, stream, params);
  });
  return error;
}

cudaError_t launch_pixel_embed_forward(DType dtype, const PixelEmbedForward& params,
                                       int64_t most_shared, int multiprocessors,
                                       cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  visit_pixel_embed(dtype, params.plan, [&](auto element, auto groups, auto bytes) {
    const auto kernel =
        pixel_embed_fwd_kernel<decltype(element), decltype(groups)::value, decltype(bytes)::value>;
    error = launch_resident(kernel, params, most_shared, multiprocessors, stream);
  });
  return error;
}

}  // namespace tnt_kernels::cuda
