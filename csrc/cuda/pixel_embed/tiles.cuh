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

// Copies the units of a patch whose first pixel is (y, x), at `source`, into `tile`; `units` is the
// packed table. kBatch loads are under way before the first is stored. kInside: all units are
// inside the image.
template <class Dtype, int kBatch, bool kInside>
TNT_DEVICE void team_copy_units(const PixelEmbedPlan& plan, const uint32_t* source, int y, int x,
                                const uint32_t* units, uint32_t* tile, const Team& team) {
  constexpr int kWords = 2 * Dtype::kPairWords;
  for (int begin = team.index; begin < plan.units; begin += kBatch * team.count) {
    Words<kWords> pixel[kBatch];
    uint32_t target[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = begin + i * team.count;
      if (unit >= plan.units) continue;
      const uint32_t* entry = units + 4 * unit;
      if constexpr (kInside) {
        const Words<2> words = load_words<2>(entry);
        target[i] = words.w[0];
        pixel[i] = load_words<kWords>(source + static_cast<int32_t>(words.w[1]));
      } else {
        const Words<4> words = load_words<4>(entry);
        const uint32_t row = y + words.w[2], column = x + words.w[3];  // of the image; wraps
        const bool exists =
            row < static_cast<uint32_t>(plan.height) && column < static_cast<uint32_t>(plan.width);
        target[i] = words.w[0];
        pixel[i] = {};
        if (exists) pixel[i] = load_words<kWords>(source + static_cast<int32_t>(words.w[1]));
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i * team.count < plan.units) store_words(tile + target[i], pixel[i]);
    }
  }
}

// Copies patch `patch` into `tile`.
template <class Dtype, int kBatch>
TNT_DEVICE void team_copy_patch(const PixelEmbedPlan& plan, const void* images, int64_t patch,
                                const uint32_t* units, uint32_t* tile, const Team& team) {
  const uint32_t index = static_cast<uint32_t>(patch);
  const uint32_t image = plan.per_image.divide(index);
  const uint32_t in_image = index - image * plan.per_image.value;
  const uint32_t grid_row = plan.per_row.divide(in_image);
  const int y = static_cast<int>(grid_row) * plan.patch_h;
  const int x = static_cast<int>(in_image - grid_row * plan.per_row.value) * plan.patch_w;
  const int64_t pixels = int64_t{plan.in_chans} * plan.height * plan.width;
  const int64_t first = image * pixels + int64_t{y} * plan.width + x;
  const uint32_t* source = static_cast<const uint32_t*>(images) + first / 2 * Dtype::kPairWords;
  if (plan.unfold_first) {
    team_copy_units<Dtype, kBatch, true>(plan, source, y, x, units, tile, team);
  } else {
    team_copy_units<Dtype, kBatch, false>(plan, source, y, x, units, tile, team);
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
