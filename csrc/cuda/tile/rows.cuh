// Rows of x between memory and accumulator layout.
//
// Which channel stands in which column of a tile is ours to choose, as long as the weights are
// packed in the same order. Channels are dealt so that a lane's share of a row is contiguous over
// up to four tiles, and a row takes as few and as wide accesses as alignment allows: 8 + 4 bytes a
// lane for 24 channels of 16 bits, 16 + 4 for 40.
#pragma once

#include "cuda/tile/fragment.cuh"

namespace tnt_kernels::cuda {

// Element types of x: bytes, arithmetic, and conversion of two neighbouring channels.
struct BFloat16 {
  static constexpr int kPairWords = 1;
  using Math = FastHalf;
  static TNT_DEVICE FloatPair unpack(const uint32_t* words) { return unpack_bf16(words[0]); }
  static TNT_DEVICE void pack(float lo, float hi, uint32_t* words) { words[0] = pack_bf16(lo, hi); }
};

struct Float16 {
  static constexpr int kPairWords = 1;
  using Math = StrictHalf;
  static TNT_DEVICE FloatPair unpack(const uint32_t* words) { return unpack_f16(words[0]); }
  static TNT_DEVICE void pack(float lo, float hi, uint32_t* words) { words[0] = pack_f16(lo, hi); }
};

struct Float32 {
  static constexpr int kPairWords = 2;
  using Math = Single;
  static TNT_DEVICE FloatPair unpack(const uint32_t* words) {
    return {as_float(words[0]), as_float(words[1])};
  }
  static TNT_DEVICE void pack(float lo, float hi, uint32_t* words) {
    words[0] = as_word(lo);
    words[1] = as_word(hi);
  }
};

struct TensorFloat32 : Float32 {
  using Math = Tf32;
};

// Tiles whose channels are interleaved so that one access covers them.
struct TileGroup {
  int first, count;
};

constexpr TileGroup tile_group(int tile, int num_tiles, int pair_words) {
  int first = 0;
  while (true) {
    int count = 4 / pair_words;
    while (count > num_tiles - first) count /= 2;
    if (tile < first + count) return {first, count};
    first += count;
  }
}

// The order of C channels in the columns of ceil(C / 8) tiles.
template <class Dtype, int kDim>
struct RowLayout {
  static_assert(kDim % 8 == 0 || (kDim < 8 && kDim % 2 == 0), "only a lone tile may have a pad");
  static constexpr int kTiles = (kDim + 7) / 8;
  static constexpr bool kHasPad = kDim % 8 != 0;

  // Channel in this column; kDim or more for a pad column.
  static constexpr int channel(int tile, int column) {
    const TileGroup group = tile_group(tile, kTiles, Dtype::kPairWords);
    return 8 * group.first + column / 2 * 2 * group.count + 2 * (tile - group.first) + column % 2;
  }

  // Whether this lane's columns hold channels.
  static TNT_DEVICE bool lane_has_channels() { return !kHasPad || lane_id() % 4 * 2 < kDim; }

  // Word of a lane's first channel in a group, counted from the start of the row.
  static TNT_DEVICE int word_of(const TileGroup& group) {
    return (4 * group.first + lane_id() % 4 * group.count) * Dtype::kPairWords;
  }
};

// Reads one row's share into elements 0, 1 (kHalf = 0) or 2, 3 (kHalf = 1) of the accumulators.
template <class Dtype, int kDim, int kHalf, int kFirst = 0>
TNT_DEVICE void load_row(const uint32_t* row, float (&x)[RowLayout<Dtype, kDim>::kTiles][4]) {
  using Layout = RowLayout<Dtype, kDim>;
  if constexpr (kFirst < Layout::kTiles) {
    constexpr TileGroup kGroup = tile_group(kFirst, Layout::kTiles, Dtype::kPairWords);
    Words<kGroup.count * Dtype::kPairWords> words = {};
    if (Layout::lane_has_channels()) {
      words = load_words<kGroup.count * Dtype::kPairWords>(row + Layout::word_of(kGroup));
    }
#pragma unroll
    for (int i = 0; i < kGroup.count; ++i) {
      const FloatPair pair = Dtype::unpack(words.w + i * Dtype::kPairWords);
      x[kFirst + i][2 * kHalf] = pair.lo;
      x[kFirst + i][2 * kHalf + 1] = pair.hi;
    }
    load_row<Dtype, kDim, kHalf, kFirst + kGroup.count>(row, x);
  }
}

template <class Dtype, int kDim, int kHalf, int kFirst = 0>
TNT_DEVICE void store_row(uint32_t* row, const float (&x)[RowLayout<Dtype, kDim>::kTiles][4]) {
  using Layout = RowLayout<Dtype, kDim>;
  if constexpr (kFirst < Layout::kTiles) {
    constexpr TileGroup kGroup = tile_group(kFirst, Layout::kTiles, Dtype::kPairWords);
    Words<kGroup.count * Dtype::kPairWords> words;
#pragma unroll
    for (int i = 0; i < kGroup.count; ++i) {
      const float (&pair)[4] = x[kFirst + i];
      Dtype::pack(pair[2 * kHalf], pair[2 * kHalf + 1], words.w + i * Dtype::kPairWords);
    }
    if (Layout::lane_has_channels()) store_words(row + Layout::word_of(kGroup), words);
    store_row<Dtype, kDim, kHalf, kFirst + kGroup.count>(row, x);
  }
}

}  // namespace tnt_kernels::cuda
