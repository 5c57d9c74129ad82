// y = W x + b for tiles of tokens, and the order in which the packed W and b are read.
#pragma once

#include "cuda/tile/fragment.cuh"

namespace tnt_kernels::cuda {

// Output features go in groups of 8, two at a time while there are two. For kCount of them and
// kInputs groups of input features the stream holds
//   [feature group][input groups, an odd last one left out]  pairs of registers, as mma wants them
//   [feature group][bias, bias]                              if there is one: an accumulator's
//   start [feature group][the odd last input group], filled up to two units
template <int kInputs, bool kHasBias>
struct LinearBlock {
  static constexpr int kEven = kInputs / 2 * 2;
  static constexpr bool kOdd = kInputs % 2 == 1;

  static constexpr int units(int count) {
    return count * kEven + (kHasBias ? 2 * count : 0) + (kOdd ? 2 : 0);
  }

  // What a unit of the stream is: feature group `group`, input group `input` or kBias; kFill:
  // nothing.
  struct Place {
    int group, input;
  };
  static constexpr int kBias = -1, kFill = -2;

  static constexpr Place place(int unit, int count) {
    constexpr int kRow = kEven > 0 ? kEven : 1;
    if (unit < count * kEven) return {unit / kRow, unit % kRow};
    unit -= count * kEven;
    if (kHasBias && unit < 2 * count) return {unit / 2, kBias};
    unit -= kHasBias ? 2 * count : 0;
    return {unit, unit < count ? kInputs - 1 : kFill};
  }
};

// The blocks of kGroups feature groups, one after the other.
template <int kGroups, int kInputs, bool kHasBias>
struct LinearLayout {
  using Block = LinearBlock<kInputs, kHasBias>;
  static constexpr int kUnits = kGroups / 2 * Block::units(2) + kGroups % 2 * Block::units(1);

  static constexpr typename Block::Place place(int unit) {
    const int first = unit / Block::units(2) * 2;
    typename Block::Place y =
        Block::place(unit % Block::units(2), kGroups - first < 2 ? kGroups - first : 2);
    y.group += first;
    return y;
  }
};

// Calls use(tile, feature group, accumulator) for each product.
template <class Math, int kGroups, bool kHasBias, int kTiles, int kInputs, class Use>
TNT_DEVICE void warp_linear(WeightStream<Math>& weights,
                            const typename Math::Tile (&x)[kTiles][kInputs], const Use& use) {
  using Block = LinearBlock<kInputs, kHasBias>;
#pragma unroll
  for (int first = 0; first < kGroups; first += 2) {
    const int count = kGroups - first < 2 ? 1 : 2;
    typename Math::Unit w[2][kInputs], bias[2][2] = {}, fill;
#pragma unroll
    for (int n = 0; n < count; ++n) {
#pragma unroll
      for (int k = 0; k < Block::kEven; ++k) w[n][k] = weights.unit();
    }
    if constexpr (kHasBias) {
#pragma unroll
      for (int n = 0; n < 2 * count; ++n) bias[n / 2][n % 2] = weights.unit();
    }
    if constexpr (Block::kOdd) {
#pragma unroll
      for (int n = 0; n < 2; ++n) (n < count ? w[n][kInputs - 1] : fill) = weights.unit();
    }
#pragma unroll
    for (int n = 0; n < count; ++n) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        typename Math::Acc acc = Math::start(bias[n][0], bias[n][1]);
        multiply_add<Math>(acc, x[i], w[n]);
        use(i, first + n, acc);
      }
    }
  }
}

}  // namespace tnt_kernels::cuda
