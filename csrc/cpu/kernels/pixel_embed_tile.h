#pragma once
// Copies what lies under the windows of one patch into a float tile with its zero padding, so that
// the kernels read pixels of any dtype, in both orders of unfolding, without a bounds check.

#include "cpu/kernels/pixel_embed.h"
#include "cpu/simd/pairs.h"

namespace tnt_kernels::cpu::TNT_ISA {

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
    for (int64_t row = row0; row < row1; ++row) {
      const T* from = plane + (y0 - shape.padding + row) * shape.width + x0 - shape.padding + col0;
      float* to = tile + (channel * shape.tile_h + row) * shape.tile_stride + col0;
      to_floats(from, to, col1 - col0);
    }
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
