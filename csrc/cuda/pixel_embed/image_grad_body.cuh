// Gradient of the images, for those few who ask: each thread gathers, for two neighbouring pixels,
// what the tokens whose windows cover them pass back.
#pragma once

#include "cuda/pixel_embed/plan.h"
#include "cuda/tile/rows.cuh"
#include "cuda/tile/weights.cuh"

namespace tnt_kernels::cuda {

// taps (Cin k k, C) from weight (C, Cin k k)
TNT_DEVICE void pixel_embed_bwd_pack_body(const PixelEmbedImageGrad& params) {
  const PixelEmbedPlan& plan = params.plan;
  for (int i = block_id() * block_threads() + thread_id(); i < plan.taps() * plan.dim;
       i += num_blocks() * block_threads()) {
    const float value = weight_at(params.weight, i % plan.dim, i / plan.dim);
    store_words(params.taps + i, Words<1>{{as_word(value)}});
  }
}

// Tokens along one axis whose windows cover a pixel: [first, last], of all those of an image.
struct Cover {
  int first, last;

  TNT_DEVICE Cover(const PixelEmbedPlan& plan, int pixel, int patch_size, int positions, int grid) {
    const int end = pixel + plan.kernel / 2;  // where the last window that covers it begins
    last = end / plan.stride;
    first = end < plan.kernel ? 0 : (end - plan.kernel) / plan.stride + 1;
    const int patch = pixel / patch_size;
    const int low = plan.unfold_first ? patch * positions : 0;
    const int high = (plan.unfold_first ? patch + 1 : grid) * positions - 1;
    first = first < low ? low : first;
    last = last > high ? high : last;
  }
};

template <class Dtype>
TNT_DEVICE float pixel_gradient(const PixelEmbedImageGrad& params, int64_t image, int channel,
                                int y, int x) {
  const PixelEmbedPlan& plan = params.plan;
  const Cover down(plan, y, plan.patch_h, plan.rows, plan.grid_h);
  const Cover across(plan, x, plan.patch_w, plan.cols, plan.grid_w);
  float sum = 0;
  for (int row = down.first; row <= down.last; ++row) {
    for (int col = across.first; col <= across.last; ++col) {
      const int64_t patch = (image * plan.grid_h + row / plan.rows) * plan.grid_w + col / plan.cols;
      const int64_t token = patch * plan.tokens + row % plan.rows * plan.cols + col % plan.cols;
      const int ky = y + plan.kernel / 2 - row * plan.stride;
      const int kx = x + plan.kernel / 2 - col * plan.stride;
      const float* tap = params.taps + ((channel * plan.kernel + ky) * plan.kernel + kx) * plan.dim;
      const uint32_t* dy =
          static_cast<const uint32_t*>(params.dy) + token * plan.dim / 2 * Dtype::kPairWords;
      for (int pair = 0; pair < plan.dim / 2; ++pair) {
        const auto words = load_words<Dtype::kPairWords>(dy + pair * Dtype::kPairWords);
        const FloatPair d = Dtype::unpack(words.w);
        const Words<2> w = load_words<2>(tap + 2 * pair);
        sum = fma_f32(d.lo, as_float(w.w[0]), sum);
        sum = fma_f32(d.hi, as_float(w.w[1]), sum);
      }
    }
  }
  return sum;
}

template <class Dtype>
TNT_DEVICE void pixel_embed_bwd_dimages_body(const PixelEmbedImageGrad& params) {
  const PixelEmbedPlan& plan = params.plan;
  const int64_t images = plan.num_patches / (plan.grid_h * plan.grid_w);
  const int64_t pairs = images * plan.in_chans * plan.height * plan.width / 2;
  for (int64_t i = int64_t{block_id()} * block_threads() + thread_id(); i < pairs;
       i += int64_t{num_blocks()} * block_threads()) {
    const int x = static_cast<int>(i % (plan.width / 2)) * 2;
    const int64_t row = i / (plan.width / 2);
    const int y = static_cast<int>(row % plan.height);
    const int channel = static_cast<int>(row / plan.height % plan.in_chans);
    const int64_t image = row / plan.height / plan.in_chans;
    Words<Dtype::kPairWords> pair;
    Dtype::pack(pixel_gradient<Dtype>(params, image, channel, y, x),
                pixel_gradient<Dtype>(params, image, channel, y, x + 1), pair.w);
    store_words(static_cast<uint32_t*>(params.dimages) + i * Dtype::kPairWords, pair);
  }
}

}  // namespace tnt_kernels::cuda
