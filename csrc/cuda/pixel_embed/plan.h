// How pixel_embed is laid out on the machine: plain data, for host and device.
//
// The convolution is a product: rows are tokens, columns channels, and the summed dimension runs
// over chunks of 8 columns of an image row, one chunk per (image channel, ky). A chunk begins
// `lead` pixels left of the token, which is a multiple of 4, so that pixels keep the alignment they
// have in memory; the columns before `first_tap` and behind the kernel's last have zero weights.
//
// A patch with what its windows reach beyond it is a tile in shared memory. A group is as many
// whole patches as are worked on together; its tokens fill tiles of 16 rows, the last one's rest
// repeating the first token.
#pragma once

#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

// Division of numbers below 2^31 by one that is known before the launch: a product and a shift.
struct Divisor {
  uint32_t value, factor;
  int shift;

  // x / value
  template <class Unsigned>
  constexpr Unsigned divide(Unsigned x) const {
    return static_cast<Unsigned>(uint64_t{x} * factor >> shift);
  }

  static constexpr Divisor of(uint32_t value) {
    int bits = 0;
    while ((uint64_t{1} << bits) < value) ++bits;
    const uint64_t power = uint64_t{1} << (31 + bits);
    return {value, static_cast<uint32_t>((power + value - 1) / value), 31 + bits};
  }
};

// How the backward's warps share the sums: warps along the taps and along the tokens, and tiles of
// 16 taps that a warp holds.
constexpr int kTapWarps = 4, kTokenWarps = 2, kTapTiles = 3;

struct PixelEmbedPlan {
  // the call
  int in_chans, height, width, dim, kernel, patch_h, patch_w, stride;
  bool unfold_first;
  bool bytes;  // images are uint8, normalised where they are copied to a tile
  int64_t num_patches;
  int grid_h, grid_w;
  Divisor per_image, per_row;  // patches of an image, and of a row of them

  int rows, cols, tokens;          // of a patch
  int lead, top, first_tap;        // pixels left of and above a token that its window begins at
  int tile_h, tile_w, tile_words;  // tile_w counts elements and includes what spreads rows on banks
  int chunks;
  int group_patches, row_tiles;
  int groups, passes;  // groups of 8 channels that a warp sums at once, and how often

  // Units of pixels that are copied to a tile: where they begin relative to the patch. If
  // `all_inside`, they have wide_unit() pixels and the image has them all; else they have
  // kUnitPixels, and each is looked for.
  bool all_inside;
  int unit_pixels, unit_top, unit_left, unit_rows, unit_cols, units;

  // Sections of the packed words, and all of them.
  int first_place, first_row, first_chunk, first_weight, first_start, packed_words;

  constexpr int pairs() const { return (chunks + 1) / 2; }
  constexpr int taps() const { return in_chans * kernel * kernel; }
  constexpr int image_pixels() const { return in_chans * height * width; }
  constexpr int entry_words() const { return bytes ? 4 : 2; }  // of a unit
  constexpr int group_words() const { return group_patches * tile_words; }
  constexpr int64_t num_groups() const { return (num_patches + group_patches - 1) / group_patches; }
  // Of the backward: slices of taps and channels, and words of shared memory.
  constexpr int slices() const {
    return passes * ((chunks + 2 * kTapTiles * kTapWarps - 1) / (2 * kTapTiles * kTapWarps));
  }
  constexpr int position_words() const { return (tokens * dim + 3) / 4 * 4; }
  // dy of a group, and as many channels behind it as a warp may read beyond the last.
  constexpr int gradient_words(int element_bytes) const {
    return ((16 * row_tiles * dim + 8 * groups * passes - dim) * element_bytes / 4 + 3) / 4 * 4;
  }
  // The flat gradient: [weight (C, Cin, k, k) | bias C | pixel_pos (C, S)].
  constexpr int flat() const { return dim * (taps() + 1 + tokens); }
};

// Pixels of the units that need no look at the image's borders: 16 bytes, and 8 of uint8 pixels.
constexpr int wide_unit(int element_bytes, bool bytes) {
  return element_bytes == 4 && !bytes ? 4 : 8;
}

constexpr int kUnitPixels = 4, kChunkColumns = 8, kLargestKernel = 7;

// How many of the 32 lanes that read one operand register meet in the busiest bank.
inline int bank_conflicts(const PixelEmbedPlan& p, int tile_w, int element_bytes) {
  int used[32] = {}, seen[32][8], most = 0;
  for (int token = 0; token < 8 && token < p.tokens; ++token) {
    const int at = token / p.cols * p.stride * tile_w + token % p.cols * p.stride;
    for (int column = 0; column < kChunkColumns; column += 2) {
      const int word = (at + column) * element_bytes / 4, bank = word % 32;
      bool is_new = true;
      for (int i = 0; i < used[bank]; ++i) is_new &= seen[bank][i] != word;
      if (is_new) seen[bank][used[bank]++] = word;
      most = used[bank] > most ? used[bank] : most;
    }
  }
  return most;
}

// Completes a plan whose first block is set. A group gets whole patches up to `most_tokens`.
inline void complete(PixelEmbedPlan& p, int element_bytes, int most_tokens) {
  const auto round_up_4 = [](int n) { return (n + 3) / 4 * 4; };
  const int padding = p.kernel / 2;
  p.grid_h = p.height / p.patch_h;
  p.grid_w = p.width / p.patch_w;
  p.per_image = Divisor::of(static_cast<uint32_t>(p.grid_h * p.grid_w));
  p.per_row = Divisor::of(static_cast<uint32_t>(p.grid_w));
  p.rows = p.patch_h / p.stride;
  p.cols = p.patch_w / p.stride;
  p.tokens = p.rows * p.cols;
  p.lead = round_up_4(padding);
  p.top = padding;
  p.first_tap = p.lead - padding;
  p.tile_h = (p.rows - 1) * p.stride + p.kernel;
  const int reach = round_up_4((p.cols - 1) * p.stride + kChunkColumns);
  p.tile_w = reach;
  for (int wider = reach + 4; wider <= reach + 12; wider += 4) {
    if (bank_conflicts(p, wider, element_bytes) < bank_conflicts(p, p.tile_w, element_bytes)) {
      p.tile_w = wider;
    }
  }
  p.tile_words = p.in_chans * p.tile_h * p.tile_w * element_bytes / 4;
  p.tile_words = round_up_4(p.tile_words);
  p.chunks = p.in_chans * p.kernel;
  p.group_patches = p.tokens < most_tokens ? most_tokens / p.tokens : 1;
  p.row_tiles = (p.group_patches * p.tokens + 15) / 16;
  const int channel_groups = (p.dim + 7) / 8;
  p.groups = channel_groups % 5 == 0 ? 5 : 3;
  p.passes = (channel_groups + p.groups - 1) / p.groups;

  // Beyond the patch everything is zero if it was cut out first, else whatever the image has there.
  const int bottom = p.tile_h - p.top, right = reach - p.lead;
  p.unit_top = p.unfold_first ? 0 : -p.top;
  p.unit_left = p.unfold_first ? 0 : -p.lead;
  p.unit_rows = (p.unfold_first && bottom > p.patch_h ? p.patch_h : bottom) - p.unit_top;
  const int columns = (p.unfold_first && right > p.patch_w ? p.patch_w : right) - p.unit_left;
  const int wide = wide_unit(element_bytes, p.bytes);  // patches must begin at multiples of it
  p.all_inside = p.unfold_first && p.patch_w % wide == 0 && columns % wide == 0;
  p.unit_pixels = p.all_inside ? wide : kUnitPixels;
  p.unit_cols = columns / p.unit_pixels;
  p.units = p.in_chans * p.unit_rows * p.unit_cols;

  const int unit_words = element_bytes / 2;
  p.first_place = round_up_4(p.entry_words() * p.units);
  p.first_row = p.first_place + round_up_4(p.units);
  p.first_chunk = p.first_row + 16 * p.row_tiles;
  p.first_weight = p.first_chunk + round_up_4(2 * p.pairs());
  p.first_start = p.first_weight + p.passes * p.pairs() * p.groups * 32 * 2 * unit_words;
  p.packed_words = p.first_start + p.passes * p.row_tiles * p.groups * 32 * 4;
}

constexpr int kForwardWarps = 8, kForwardTokens = 16;  // of a block; of a warp's group, about

// Bytes of shared memory of a forward block: what all warps read, and each warp's patches.
constexpr int64_t forward_shared_bytes(const PixelEmbedPlan& plan, int warps) {
  return 4 * (int64_t{plan.packed_words} + int64_t{warps} * plan.group_words());
}

// Bytes of shared memory of a backward block: tables and sums of positions, then patches and their
// gradients, whose place the warps' sums take at the end.
constexpr int64_t backward_shared_bytes(const PixelEmbedPlan& plan, int element_bytes) {
  const int64_t inputs = int64_t{plan.group_words()} + plan.gradient_words(element_bytes);
  const int64_t sums = kTapWarps * kTapTiles * plan.groups * 32 * 4;
  return 4 * (plan.first_weight + plan.position_words() + (inputs > sums ? inputs : sums));
}

constexpr int64_t kGroupBytes = 80 * 1024;

// Groups of about 128 tokens, or of fewer where two blocks would not fit a multiprocessor.
inline void complete_backward(PixelEmbedPlan& plan, int element_bytes) {
  for (int tokens = 128; tokens >= 16; tokens /= 2) {
    complete(plan, element_bytes, tokens);
    if (backward_shared_bytes(plan, element_bytes) <= kGroupBytes) return;
  }
}

struct PixelEmbedPack {
  PixelEmbedPlan plan;
  WeightView weight;     // (C, Cin k k)
  WeightView bias;       // (C) or null
  WeightView pixel_pos;  // (C, S) or null
  const float* mean;     // (Cin) of uint8 images, else null
  const float* std;
  uint32_t* packed;  // plan.packed_words
};

struct PixelEmbedForward {
  PixelEmbedPlan plan;
  const void* images;  // (B, Cin, H, W)
  const uint32_t* packed;
  void* out;  // (P, S, C)
};

struct PixelEmbedBackward {
  PixelEmbedPlan plan;
  const void* images;
  const void* dy;          // (P, S, C)
  const uint32_t* packed;  // its tables; weights are not needed
  float* partials;         // (blocks, plan.flat())
};

struct PixelEmbedImageGrad {
  PixelEmbedPlan plan;
  const void* dy;
  WeightView weight;  // (C, Cin k k)
  float* taps;        // (Cin k k, C), from it
  void* dimages;      // (B, Cin, H, W)
};

}  // namespace tnt_kernels::cuda
