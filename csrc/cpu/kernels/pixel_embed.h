#pragma once
// What the glue and the kernels of pixel_embed agree on: plain data only, so that the kernels can
// be compiled once per instruction set without headers of torch or of the C++ library.

#include <stdint.h>

#include "cpu/types.h"

namespace tnt_kernels::cpu {

// Patches of a group, at most.
constexpr int64_t kMaxPixelGroup = 8;

struct PixelEmbedShape {
  int64_t batch, in_chans, height, width;
  int64_t dim, kernel, padding, stride;
  int64_t patch_h, patch_w, grid_h, grid_w;
  int64_t rows, cols;           // tokens of a patch: rows * cols = S
  int64_t tile_h, tile_stride;  // float tile under all windows of a patch, per channel
  int64_t tile_size;            // floats of a tile, all channels
  int64_t group;                // patches whose tiles are worked on together
  bool unfold_first;
  // Forward reads float images in place when they are unfolded first: no window that it looks at
  // then leaves its patch. The strides are those of what it reads, the images or the tiles.
  bool in_place;
  int64_t row_stride, channel_stride;

  int64_t tokens() const { return rows * cols; }
  int64_t patches() const { return batch * grid_h * grid_w; }
  int64_t taps() const { return in_chans * kernel * kernel; }
};

// Tokens of a patch whose windows overlap it in the same taps. The other taps meet zero padding and
// are left out: with 16x16 patches, stride 4 and k = 7 that saves a fifth of the work.
struct PixelEmbedClass {
  const int32_t*
      row_offsets;  // (num_rows,) first pixel of each window row, from the window's corner
  const int32_t* token_offsets;  // (num_tokens,) corner of each token's window, from the patch's
  const int32_t* tokens;         // (num_tokens,) token index within the patch
  int64_t num_rows, num_pairs, num_tokens;
  bool odd;              // one column is left over after num_pairs pairs
  const float* weights;  // one stream per channel block, in the order of use
};

struct PixelEmbedForward {
  PixelEmbedShape shape;
  const void* images;  // (B, Cin, H, W)
  void* out;           // (P, S, C)
  const PixelEmbedClass* classes;
  int64_t num_classes;
  const int64_t* blocks;  // vectors of each channel block
  int64_t num_blocks;
  const float* offsets;  // (S, padded C) bias + pixel position
  int64_t offsets_stride;
};

// dweight as a sum over tokens of pixel pair x dy. Lanes are again (channel, column parity).
struct PixelEmbedWeightGrad {
  PixelEmbedShape shape;
  const void* images;
  const void* dy;               // (P, S, C)
  const int32_t* pair_offsets;  // (num_pairs,) tile offset of each tap pair's left column
  const int32_t* pair_ky;       // (num_pairs,) window row of each pair
  int64_t num_pairs;
  const int64_t* blocks;
  int64_t num_blocks;
  int64_t lanes;  // 2 C padded to whole vectors: the width of dw, and of dpos twice

  int64_t scratch_floats() const {
    return shape.group * (shape.tile_size + shape.tokens() * lanes) + shape.tokens() * lanes / 2;
  }
};

// Windows that the gradient of images computes at a time.
constexpr int kDcolTokens = 6;

struct PixelEmbedImageGrad {
  PixelEmbedShape shape;
  const void* dy;
  void* dimages;
  const float* weights;  // (C, taps_stride)
  int64_t taps_stride;   // Cin k k padded to pairs of vectors

  int64_t scratch_floats() const {
    const int64_t frame = (shape.patch_h + 2 * shape.kernel) * (shape.patch_w + 2 * shape.kernel);
    return shape.in_chans * frame + kDcolTokens * (taps_stride + shape.dim);
  }
};

// Each computes patches [first, last) and is indexed by the DType of images and dy.
struct PixelEmbedKernels {
  int64_t lanes;  // of a vector
  bool wide;      // 32 vector registers: blocks of 1, 2, 3 or 5 vectors instead of 1 or 2
  void (*fwd[kNumDTypes])(const PixelEmbedForward&, int64_t first, int64_t last, float* scratch);
  void (*dw[kNumDTypes])(const PixelEmbedWeightGrad&, int64_t first, int64_t last, float* dw,
                         float* dpos, float* scratch);
  void (*dx[kNumDTypes])(const PixelEmbedImageGrad&, int64_t first, int64_t last, float* scratch);
};

}  // namespace tnt_kernels::cpu
