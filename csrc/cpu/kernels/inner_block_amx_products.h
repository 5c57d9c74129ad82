// The tile products of inner_block_amx_stages.h.
#pragma once

#include "cpu/kernels/amx_tile.h"

namespace tnt_kernels::cpu::amx {

// Tiles: 0-3 sums, 4 left and 5 right operand; of scores, 6 (keys) and 7 (queries).
TNT_INLINE void configure_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = i == 7 ? 4 : 16;
    config.row_bytes[i] = i == 6 ? 16 : 64;
  }
  tile_configure(config);
}

// multiply.run<s>(i) leaves tile i of the result in the sum s, which is then stored at sums + i.
// Sums are stored two products late, since storing waits for the product to end.
template <class Multiply>
TNT_INLINE void product(int count, char* sums, Multiply multiply) {
#pragma GCC unroll 8
  for (int i = 0; i < count + 2; i += 4) {
    if (i < count) multiply.template run<0>(i);
    if (i >= 2) tile_store<2>(sums + kTile * (i - 2));
    if (i + 1 < count) multiply.template run<1>(i + 1);
    if (i >= 2 && i - 1 < count) tile_store<3>(sums + kTile * (i - 1));
    if (i + 2 < count) multiply.template run<2>(i + 2);
    if (i < count) tile_store<0>(sums + kTile * i);
    if (i + 3 < count) multiply.template run<3>(i + 3);
    if (i + 1 < count) tile_store<1>(sums + kTile * (i + 1));
  }
}

// Weights times activations, both in steps of 32 channels.
struct MultiplyWeights {
  const char* weights;
  const char* activations;
  int steps;

  TNT_INLINE MultiplyWeights(const char* weights, const char* activations, int steps)
      : weights(weights), activations(activations), steps(steps) {
    if (steps == 1) tile_load<5>(activations);
  }
  template <int sum>
  TNT_INLINE void run(int i) const {
    tile_zero<sum>();
    for (int step = 0; step < steps; ++step) {
      if (steps > 1) tile_load<5>(activations + kTile * step);
      tile_load<4>(weights + kTile * (steps * i + step));
      tile_multiply_add<sum, 4, 5>();
    }
  }
};

// Keys times queries of head i.
struct MultiplyKeys {
  const char *keys, *queries;
  int steps;

  template <int sum>
  TNT_INLINE void run(int i) const {
    tile_zero<sum>();
    for (int step = 0; step < steps; ++step) {
      tile_load<6>(keys + 4 * kRow * (steps * i + step), 16);
      tile_load<7>(queries + 4 * kRow * (steps * i + step));
      tile_multiply_add<sum, 6, 7>();
    }
  }
};

// Values times probabilities: tile i % tiles of the pair of heads i / tiles, over all keys.
struct MultiplyValues {
  const char *values, *probs;
  int tiles, head_pairs, key_tiles;

  template <int sum>
  TNT_INLINE void run(int i) const {
    tile_zero<sum>();
    for (int key = 0; key < key_tiles; ++key) {
      tile_load<5>(probs + kTile * (head_pairs * key + i / tiles));
      tile_load<4>(values + kTile * (head_pairs * tiles * key + i));
      tile_multiply_add<sum, 4, 5>();
    }
  }
};

}  // namespace tnt_kernels::cpu::amx
