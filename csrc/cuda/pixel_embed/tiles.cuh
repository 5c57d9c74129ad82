// Patches in shared memory, and the product's left operand read from them.
#pragma once

#include <type_traits>

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

// The word `bytes` behind another.
template <class Word>
TNT_DEVICE Word* behind(Word* base, uint32_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<Word>, const char, char>;
  return reinterpret_cast<Word*>(reinterpret_cast<Byte*>(base) + bytes);
}

// kPixels pixels as the images hold them, to be stored as elements of a tile.
template <class Dtype, bool kBytes, int kPixels>
struct PixelUnit;

template <class Dtype, int kPixels>
struct PixelUnit<Dtype, false, kPixels> {
  static constexpr int kWords = kPixels / 2 * Dtype::kPairWords, kEntryWords = 2;
  Words<kWords> pixels = {};

  TNT_DEVICE void load(const char* source) { pixels = load_words<kWords>(source); }

  TNT_DEVICE void store(uint32_t* target, const Words<2>&) const {
    // a tile's rows are aligned to 4 elements
    constexpr int kStored = kUnitPixels / 2 * Dtype::kPairWords;
#pragma unroll
    for (int i = 0; i < kWords; i += kStored) {
      Words<kStored> part;
#pragma unroll
      for (int j = 0; j < kStored; ++j) part.w[j] = pixels.w[i + j];
      store_words(target + i, part);
    }
  }
};

// uint8 pixels, which are stored as pixel * scale + shift.
template <class Dtype, int kPixels>
struct PixelUnit<Dtype, true, kPixels> {
  static constexpr int kWords = kPixels / 4, kEntryWords = 4;
  Words<kWords> pixels = {};

  TNT_DEVICE void load(const char* source) { pixels = load_words<kWords>(source); }

  TNT_DEVICE void store(uint32_t* target, const Words<2>& scale_shift) const {
    const float scale = as_float(scale_shift.w[0]), shift = as_float(scale_shift.w[1]);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      Words<2 * Dtype::kPairWords> y;
      const uint32_t word = pixels.w[i];
      Dtype::pack(fma_f32(byte_f32<0>(word), scale, shift),
                  fma_f32(byte_f32<1>(word), scale, shift), y.w);
      Dtype::pack(fma_f32(byte_f32<2>(word), scale, shift),
                  fma_f32(byte_f32<3>(word), scale, shift), y.w + Dtype::kPairWords);
      store_words(target + i * 2 * Dtype::kPairWords, y);
    }
  }
};

// Copies the units of a patch whose first pixel is (y, x), at `source`, into `tile`; `packed` has
// their tables. kBatch loads are under way before the first is stored. kInside: plan.all_inside.
template <class Dtype, bool kBytes, int kBatch, bool kInside>
TNT_DEVICE void team_copy_units(const PixelEmbedPlan& plan, const char* source, int y, int x,
                                const uint32_t* packed, uint32_t* tile, const Team& team) {
  constexpr int kElementBytes = 2 * Dtype::kPairWords, kPixelBytes = kBytes ? 1 : kElementBytes;
  constexpr int kPixels = kInside ? wide_unit(kElementBytes, kBytes) : kUnitPixels;
  using Unit = PixelUnit<Dtype, kBytes, kPixels>;
  constexpr int kEntryWords = Unit::kEntryWords;
  for (int begin = team.index; begin < plan.units; begin += kBatch * team.count) {
    Unit units[kBatch];
    Words<kEntryWords> entries[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = begin + i * team.count;
      if (unit >= plan.units) continue;
      entries[i] = load_words<kEntryWords>(packed + kEntryWords * unit);
      bool exists = true;
      if constexpr (!kInside) {
        const uint32_t place = load_words<1>(packed + plan.first_place + unit).w[0];
        const int row = y + (static_cast<int32_t>(place) >> 16);
        const int column = x + (static_cast<int32_t>(place << 16) >> 16);
        exists = row >= 0 && row < plan.height && column >= 0 && column < plan.width;
      }
      const int64_t quad = static_cast<int32_t>(entries[i].w[1]);
      if (exists) units[i].load(source + quad * (kUnitPixels * kPixelBytes));
      if constexpr (kBytes && !kInside) {  // beyond the image is zero, not a black pixel
        if (!exists) entries[i].w[2] = entries[i].w[3] = 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i * team.count >= plan.units) continue;
      Words<2> scale_shift = {};
      if constexpr (kBytes) scale_shift = {{entries[i].w[2], entries[i].w[3]}};
      units[i].store(behind(tile, entries[i].w[0]), scale_shift);
    }
  }
}

// Copies patch `patch` into `tile`.
template <class Dtype, bool kBytes, int kBatch>
TNT_DEVICE void team_copy_patch(const PixelEmbedPlan& plan, const void* images, int64_t patch,
                                const uint32_t* packed, uint32_t* tile, const Team& team) {
  constexpr int kPixelBytes = kBytes ? 1 : 2 * Dtype::kPairWords;
  const uint32_t index = static_cast<uint32_t>(patch);
  const uint32_t image = plan.per_image.divide(index);
  const uint32_t in_image = index - image * plan.per_image.value;
  const uint32_t grid_row = plan.per_row.divide(in_image);
  const int y = static_cast<int>(grid_row) * plan.patch_h;
  const int x = static_cast<int>(in_image - grid_row * plan.per_row.value) * plan.patch_w;
  const uint64_t pixels = static_cast<uint32_t>(plan.image_pixels());
  const uint64_t first = image * pixels + static_cast<uint32_t>(y * plan.width + x);
  const char* source = static_cast<const char*>(images) + first * kPixelBytes;
  if (plan.all_inside) {
    team_copy_units<Dtype, kBytes, kBatch, true>(plan, source, y, x, packed, tile, team);
  } else {
    team_copy_units<Dtype, kBytes, kBatch, false>(plan, source, y, x, packed, tile, team);
  }
}

// Which of a lane's two columns of a chunk are the kernel's: what else the pixels there are, were
// it infinity, counts for nothing. Normalised uint8 pixels are finite (but for a std so small that
// the type overflows): weights of zero suffice to leave them out.
template <class Dtype, bool kBytes>
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
    for (int i = 0; i < Dtype::kPairWords && !kBytes; ++i) y.w[i] &= w[i];
    return y;
  }
};

}  // namespace tnt_kernels::cuda
