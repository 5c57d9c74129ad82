#pragma once
// Copies what lies under the windows of one patch into a float tile with its zero padding, so that
// the kernels read pixels of any dtype, in both orders of unfolding, without a bounds check.

#include "cpu/kernels/pixel_embed.h"
#include "cpu/simd/pairs.h"

namespace tnt_kernels::cpu::TNT_ISA {

// `rows` rows of n values of any dtype to floats.
template <class T>
TNT_INLINE void pixel_copy_rows(const T* from, int64_t from_stride, float* to, int64_t to_stride,
                                int64_t rows, int64_t n) {
  if (n == kLanes) {
    for (int64_t r = 0; r < rows; ++r) store(to + r * to_stride, load(from + r * from_stride));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) to_floats(from + r * from_stride, to + r * to_stride, n);
}

// tile[ci][r][c] = pixel (y0 - padding + r, x0 - padding + c) of the patch, or of the image when it
// is convolved as a whole. With unfold_first the border is zero in every patch: the caller cleared
// the tile once and only the inside is written.
template <class T>
inline void pixel_load_tile(const PixelEmbedShape& shape, const T* images, int64_t patch,
                            float* tile) {
  const int64_t image = patch / (shape.grid_h * shape.grid_w);
  const int64_t y0 = patch / shape.grid_w % shape.grid_h * shape.patch_h;
  const int64_t x0 = patch % shape.grid_w * shape.patch_w;
  const int64_t tile_w = (shape.cols - 1) * shape.stride + shape.kernel;
  // First and last row and column of the tile that exist in the patch or image.
  auto clip = [&](int64_t origin, int64_t patch_size, int64_t image_size, int64_t tile_size,
                  int64_t* first, int64_t* last) {
    const int64_t low = shape.unfold_first ? origin : 0;
    const int64_t high = shape.unfold_first ? origin + patch_size : image_size;
    *first = shape.padding - (origin - low);
    if (*first < 0) *first = 0;
    *last = high - origin + shape.padding;
    if (*last > tile_size) *last = tile_size;
  };
  int64_t row0, row1, col0, col1;
  clip(y0, shape.patch_h, shape.height, shape.tile_h, &row0, &row1);
  clip(x0, shape.patch_w, shape.width, tile_w, &col0, &col1);
  if (!shape.unfold_first && (row0 > 0 || row1 < shape.tile_h || col0 > 0 || col1 < tile_w)) {
    for (int64_t i = 0; i < shape.tile_size; ++i) tile[i] = 0;
  }
  for (int64_t channel = 0; channel < shape.in_chans; ++channel) {
    const T* plane = images + (image * shape.in_chans + channel) * shape.height * shape.width;
    const T* from = plane + (y0 - shape.padding + row0) * shape.width + x0 - shape.padding + col0;
    float* to = tile + (channel * shape.tile_h + row0) * shape.tile_stride + col0;
    pixel_copy_rows(from, shape.width, to, shape.tile_stride, row1 - row0, col1 - col0);
  }
}

// The patch's first pixel in the images.
TNT_INLINE int64_t pixel_patch_offset(const PixelEmbedShape& s, int64_t patch) {
  const int64_t image = patch / (s.grid_h * s.grid_w);
  const int64_t y = patch / s.grid_w % s.grid_h * s.patch_h, x = patch % s.grid_w * s.patch_w;
  return (image * s.in_chans * s.height + y) * s.width + x;
}

// Asks for the pixels of the next group of patches, a few rows at each step of the work on this
// one: a patch is one short piece of many image rows, a pattern that no hardware prefetcher
// follows.
template <class T>
class PixelPrefetch {
 public:
  PixelPrefetch(const PixelEmbedShape& s, const T* images, int64_t first, int64_t last)
      : shape_(s),
        patches_(last - first < s.group ? static_cast<int>(last - first)
                                        : static_cast<int>(s.group)) {
    for (int i = 0; i < patches_; ++i) corners_[i] = images + pixel_patch_offset(s, first + i);
  }

  TNT_INLINE void step() {
    for (int rows = 0; rows < kRowsPerStep && channel_ < shape_.in_chans; ++rows) {
      const int64_t offset = (channel_ * shape_.height + row_) * shape_.width;
      for (int i = 0; i < patches_; ++i) {
        const char* p = reinterpret_cast<const char*>(corners_[i] + offset);
        const char* end = reinterpret_cast<const char*>(corners_[i] + offset + shape_.patch_w);
        for (; p < end; p += kCacheLine) __builtin_prefetch(p, 0, 2);
      }
      if (++row_ == shape_.patch_h) row_ = 0, ++channel_;
    }
  }

 private:
  static constexpr int kRowsPerStep = 4;  // 14 steps cover the 48 rows of a 16x16 RGB patch
  static constexpr int64_t kCacheLine = 64;

  const PixelEmbedShape& shape_;
  int patches_;
  const T* corners_[kMaxPixelGroup];
  int64_t channel_ = 0, row_ = 0;
};

}  // namespace tnt_kernels::cpu::TNT_ISA
