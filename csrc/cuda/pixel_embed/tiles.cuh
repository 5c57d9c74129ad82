// Patches in shared memory, and the product's left operand read from them.
#pragma once

#include "cuda/pixel_embed/plan.h"
#include "cuda/tile/own_math.cuh"

namespace tnt_kernels::cuda {

// Threads that copy together: `count` of them, this one being number `index`.
struct Team {
  int index, count;
};

// Zeros where no unit will ever be copied to.
TNT_DEVICE void team_clear(uint32_t* words, int count, const Team& team) {
  for (int i = 4 * team.index; i < count; i += 4 * team.count) {
    store_words(words + i, Words<4>{{0, 0, 0, 0}});
  }
}

// Copies patch `patch` into `tile`; `units` is the packed table of units. Several loads are under
// way at once before the first is stored.
template <class Dtype>
TNT_DEVICE void team_copy_patch(const PixelEmbedPlan& plan, const void* images, int64_t patch,
                                const uint32_t* units, uint32_t* tile, const Team& team) {
  constexpr int kWords = 2 * Dtype::kPairWords, kBatch = 6;
  const uint32_t index = static_cast<uint32_t>(patch);
  const uint32_t per_image = static_cast<uint32_t>(plan.grid_h * plan.grid_w);
  const uint32_t image = index / per_image, in_image = index % per_image;
  const int y = static_cast<int>(in_image / plan.grid_w) * plan.patch_h;
  const int x = static_cast<int>(in_image % plan.grid_w) * plan.patch_w;
  const int64_t pixels = int64_t{plan.in_chans} * plan.height * plan.width;
  const int64_t first = image * pixels + int64_t{y} * plan.width + x;
  const uint32_t* source = static_cast<const uint32_t*>(images) + first / 2 * Dtype::kPairWords;
  for (int begin = 0; begin < plan.units; begin += kBatch * team.count) {
    Words<kWords> pixel[kBatch];
    int target[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = begin + i * team.count + team.index;
      pixel[i] = {};
      target[i] = -1;
      if (unit < plan.units) {
        const Words<4> entry = load_words<4>(units + 4 * unit);
        target[i] = static_cast<int>(entry.w[0]);
        const uint32_t row = y + entry.w[2], column = x + entry.w[3];  // of the image; wraps
        if (row < static_cast<uint32_t>(plan.height) &&
            column < static_cast<uint32_t>(plan.width)) {
          pixel[i] = load_words<kWords>(source + static_cast<int32_t>(entry.w[1]));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (target[i] >= 0) store_words(tile + target[i], pixel[i]);
    }
  }
}

// Which of a lane's two columns of a chunk are the kernel's: what else the pixels there are, were
// it infinity, counts for nothing.
template <class Dtype>
struct ColumnMask {
  uint32_t w[Dtype::kPairWords];

  TNT_DEVICE explicit ColumnMask(const PixelEmbedPlan& plan) {
    const int column = lane_id() % 4 * 2 - plan.first_tap;
    const bool lo = column >= 0 && column < plan.kernel;
    const bool hi = column + 1 >= 0 && column + 1 < plan.kernel;
    if constexpr (Dtype::kPairWords == 1) {
      w[0] = (lo ? 0x0000ffffu : 0u) | (hi ? 0xffff0000u : 0u);
    } else {
      w[0] = lo ? 0xffffffffu : 0u;
      w[1] = hi ? 0xffffffffu : 0u;
    }
  }

  TNT_DEVICE Words<Dtype::kPairWords> load(const uint32_t* address) const {
    Words<Dtype::kPairWords> y = load_words<Dtype::kPairWords>(address);
#pragma unroll
    for (int i = 0; i < Dtype::kPairWords; ++i) y.w[i] &= w[i];
    return y;
  }
};

}  // namespace tnt_kernels::cuda
