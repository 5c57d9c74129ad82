// The weight gradients of a block whose warps share them.
//
// Each warp takes a tile of 16 tokens and leaves in shared memory what the products over tokens
// need of it; after a barrier each warp adds, for all of these tiles, the bands that are its own
// (16 rows of a weight's gradient), so that no sum is held twice.
#pragma once

#include "cuda/inner_block/backward_rows.cuh"

namespace tnt_kernels::cuda {

// Writes units, filled up to whole 16 bytes, as WeightStream reads them from word `first` on.
template <class Math, int kCount>
TNT_DEVICE void store_units(uint32_t* words, int first, const typename Math::Unit (&x)[kCount]) {
  uint32_t* next = words + first * kLanes + lane_id() * 4;
  constexpr int kWords = kCount * Math::kUnitWords;
#pragma unroll
  for (int i = 0; i < kWords; i += 4) {
    Words<4> four;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = i + j;
      four.w[j] = at < kWords ? x[at / Math::kUnitWords].w[at % Math::kUnitWords] : 0;
    }
    store_words(next + i * kLanes, four);
  }
}

template <class Config>
class BandSums {
  using Math = typename Config::Math;
  using Staged = typename Config::Staged;
  static constexpr int kInputs = Config::kInputs;
  static constexpr int kWarpsOfKind = Config::kWarps / Config::kKinds;
  static constexpr int kRounds = (Config::kBands + Config::kRoundBands - 1) / Config::kRoundBands;
  static constexpr int kMostBands = Config::kRoundBands / kWarpsOfKind;  // of a warp in a round
  static_assert(Config::kWarps % Config::kKinds == 0 && Config::kBands % kWarpsOfKind == 0 &&
                    Config::kRoundBands % kWarpsOfKind == 0,
                "every warp has as many bands");

 public:
  // A tile's words in shared memory.
  static TNT_DEVICE uint32_t* tile(int index) {
    constexpr int kFirst = Config::kWeightsInShared ? Config::kPackedWords : 0;
    return dynamic_shared() + kFirst + index * Staged::kWords;
  }

  // Leaves band `index` of a kind and a round: rows are those of the weight, columns tokens.
  static TNT_DEVICE void write_band(uint32_t* tile, int kind, int index,
                                    const typename Math::Tile (&x)[2]) {
    const typename Math::Unit units[4] = {x[0].rows[0], x[0].rows[1], x[1].rows[0], x[1].rows[1]};
    store_units<Math>(tile, band_word(kind, index), units);
  }

  static TNT_DEVICE void write_columns(uint32_t* tile, const TokenOperands<Config>& x,
                                       const TokenOperands<Config>& dz) {
    typename Math::Unit columns[2][2 * kInputs];
#pragma unroll
    for (int i = 0; i < 2 * kInputs; ++i) {
      columns[0][i] = warp_transpose(x.rows[i / 2].rows[i % 2]);
      columns[1][i] = warp_transpose(dz.rows[i / 2].rows[i % 2]);
    }
    store_units<Math>(tile, 0, columns[0]);
    store_units<Math>(tile, Staged::kColumnWords, columns[1]);
  }

  // Adds the first `count` tiles' part of the bands of a round, a constant where loops are
  // unrolled.
  TNT_DEVICE void add(int round, int count) {
    const int kind = this->kind(), first = this->first();
    const typename Math::Unit one = Math::unit(1.0f, 1.0f);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      WeightStream<Math> columns(tile(i), kind + 1 == Config::kKinds ? Staged::kColumnWords : 0);
      typename Math::Unit tokens[kInputs][2];
#pragma unroll
      for (int n = 0; n < 2 * kInputs; ++n) tokens[n / 2][n % 2] = columns.unit();
#pragma unroll
      for (int m = 0; m < kMostBands; ++m) {
        if (band(round, m, 0) >= Config::kBands) break;
        WeightStream<Math> stream(tile(i), band_word(kind, m * kWarpsOfKind + first));
        typename Math::Tile a[2];
#pragma unroll
        for (int e = 0; e < 4; ++e) a[e / 2].rows[e % 2] = stream.unit();
#pragma unroll
        for (int n = 0; n < kInputs; ++n) {
          Math::mma(sums_[round][m][n], a[0], a[1], tokens[n][0], tokens[n][1]);
        }
        if (kind == 0) Math::mma(row_sums_[round][m], a[0], a[1], one, one);
      }
    }
  }

  // Writes the sums of this warp's kind, and of kind 0 those of rows, which are a bias's gradient.
  // row_of(band, index) is the row of the weight, kRows or more for a pad.
  template <int kRows, class RowOf>
  TNT_DEVICE void write(float* matrix, float* row_sums, const RowOf& row_of) const {
    const int lane_row = lane_id() / 4, column = lane_id() % 4 * 2;
    const int kind = this->kind(), first = this->first();  // collectives: all lanes are here
#pragma unroll
    for (int i = 0; i < kRounds * kMostBands * 2; ++i) {
      const int round = i / 2 / kMostBands, m = i / 2 % kMostBands, half = i % 2;
      if (band(round, m, 0) >= Config::kBands) continue;
      const int row = row_of(band(round, m, first), 8 * half + lane_row);
      if (row >= kRows) continue;
#pragma unroll
      for (int n = 0; n < 2 * kInputs; ++n) {
        const int channel = Config::Row::channel(n / 2, column + n % 2);
        if (channel >= Config::kDim) continue;
        store_float(matrix + row * Config::kDim + channel,
                    sums_[round][m][n / 2][2 * half + n % 2]);
      }
      if (kind == 0 && column == 0) store_float(row_sums + row, row_sums_[round][m][2 * half]);
    }
  }

  static TNT_DEVICE int kind() { return warp_id() / kWarpsOfKind; }

 private:
  static TNT_DEVICE int band_word(int kind, int index) {
    return Staged::kFirstBand + (kind * Config::kRoundBands + index) * Staged::kBandWords;
  }
  static TNT_DEVICE int first() { return warp_id() % kWarpsOfKind; }
  static constexpr int band(int round, int m, int first) {
    return round * Config::kRoundBands + m * kWarpsOfKind + first;
  }

  float sums_[kRounds][kMostBands][kInputs][4] = {};
  float row_sums_[kRounds][kMostBands][4] = {};  // in every column
};

}  // namespace tnt_kernels::cuda
