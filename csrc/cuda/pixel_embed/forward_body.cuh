// Y0 = Conv(patches) + E_pixel, Eqs. 4, 5 and 13. A warp copies a group of patches into its tile of
// shared memory and multiplies their windows with all channels; warps share nothing but the packed
// weights.
#pragma once

#include "cuda/pixel_embed/tiles.cuh"

namespace tnt_kernels::cuda {

// The sums of one row tile, of channels 8 kGroups pass and on.
template <class Dtype, int kGroups, bool kBytes>
TNT_DEVICE void warp_convolve(const PixelEmbedPlan& plan, const uint32_t* packed,
                              const uint32_t* tiles, const ColumnMask<Dtype, kBytes>& mask,
                              int pass, int row_tile, float (&acc)[kGroups][4]) {
  using Math = typename Own<Dtype>::Math;
  constexpr int kUnitWords = Math::kUnitWords;
  const int lane = lane_id();
  const uint32_t* start =
      packed + plan.first_start + ((pass * plan.row_tiles + row_tile) * kGroups * 32 + lane) * 4;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const Words<4> words = load_words<4>(start + n * 32 * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[n][i] = as_float(words.w[i]);
  }
  const uint32_t* places = packed + plan.first_row + 16 * row_tile + lane / 4;
  const uint32_t* rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    rows[half] =
        behind(tiles + lane % 4 * Dtype::kPairWords, load_words<1>(places + 8 * half).w[0]);
  }
  const uint32_t* chunks = packed + plan.first_chunk;
  const uint32_t* weights =
      packed + plan.first_weight + (pass * plan.pairs() * kGroups * 32 + lane) * 2 * kUnitWords;
  const int whole = plan.chunks / 2;
#pragma unroll 2
  for (int pair = 0; pair < whole; ++pair) {
    const Words<2> at = load_words<2>(chunks + 2 * pair);
    typename Math::Tile a[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i / 2].rows[i % 2] = mask.load(behind(rows[i % 2], at.w[i / 2]));
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const Words<2 * kUnitWords> w = load_words<2 * kUnitWords>(weights + n * 64 * kUnitWords);
      typename Math::Unit b[2];
#pragma unroll
      for (int i = 0; i < 2 * kUnitWords; ++i) b[i / kUnitWords].w[i % kUnitWords] = w.w[i];
      Math::mma(acc[n], a[0], a[1], b[0], b[1]);
    }
    weights += kGroups * 64 * kUnitWords;
  }
  if (plan.chunks % 2 == 1) {
    const uint32_t at = load_words<1>(chunks + 2 * whole).w[0];
    typename Math::Tile a;
#pragma unroll
    for (int half = 0; half < 2; ++half) a.rows[half] = mask.load(behind(rows[half], at));
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      Math::mma(acc[n], a, load_words<kUnitWords>(weights + n * 64 * kUnitWords));
    }
  }
}

// The first channel of lane t's pair of columns in tile n is first[n] + t step[n].
template <class Layout, int kTiles>
struct ChannelTable {
  int first[kTiles] = {}, step[kTiles] = {};

  constexpr ChannelTable() {
    for (int n = 0; n < kTiles; ++n) {
      first[n] = Layout::channel(n, 0);
      step[n] = Layout::channel(n, 2) - first[n];
    }
  }
};

// Writes row g + 8 kHalf; `row` is where the pass's channels of the token begin, `channels` how
// many of the `dim` are left.
template <class Dtype, int kGroups, int kHalf>
TNT_DEVICE void store_channels(uint32_t* row, int dim, int channels,
                               const float (&acc)[kGroups][4]) {
  using Layout = RowLayout<Dtype, 8 * kGroups>;
  if (channels >= 8 * kGroups && dim % 8 == 0) {  // else rows begin at any even channel
    store_row<Dtype, 8 * kGroups, kHalf>(row, acc);
    return;
  }
  constexpr ChannelTable<Layout, kGroups> kTable;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const int channel = kTable.first[n] + lane_id() % 4 * kTable.step[n];
    Words<Dtype::kPairWords> pair;
    Dtype::pack(acc[n][2 * kHalf], acc[n][2 * kHalf + 1], pair.w);
    if (channel < channels) store_words(row + channel / 2 * Dtype::kPairWords, pair);
  }
}

template <class Dtype, int kGroups, bool kBytes>
TNT_DEVICE void pixel_embed_fwd_body(const PixelEmbedForward& params) {
  // loads under way: of a patch of 16x16 pixels and 3 channels all of a lane's
  constexpr int kBatch = 768 / 32 / wide_unit(2 * Dtype::kPairWords, kBytes);
  const PixelEmbedPlan& plan = params.plan;
  uint32_t* packed = dynamic_shared();
  for (int i = 4 * thread_id(); i < plan.packed_words; i += 4 * block_threads()) {
    store_words(packed + i, load_words<4>(params.packed + i));
  }
  uint32_t* tiles = packed + plan.packed_words + warp_id() * plan.group_words();
  const Team team = {lane_id(), 32};
  team_clear(tiles, plan.group_words(), team);
  block_sync();

  const ColumnMask<Dtype, kBytes> mask(plan);
  const int warps = block_threads() / 32;
  const int64_t groups = plan.num_groups();
  for (int64_t group = int64_t{block_id()} * warps + warp_id(); group < groups;
       group += int64_t{num_blocks()} * warps) {
    const int64_t first = group * plan.group_patches, left = plan.num_patches - first;
    const int patches = left < plan.group_patches ? static_cast<int>(left) : plan.group_patches;
    for (int i = 0; i < plan.group_patches; ++i) {
      // a patch that does not exist is never stored: the first takes its place
      team_copy_patch<Dtype, kBytes, kBatch>(plan, params.images, first + (i < patches ? i : 0),
                                             packed, tiles + i * plan.tile_words, team);
    }
    warp_sync();
    uint32_t* out = static_cast<uint32_t*>(params.out) +
                    first * (plan.tokens * plan.dim / 2 * Dtype::kPairWords);
    for (int pass = 0; pass < plan.passes; ++pass) {
      const int channel = pass * 8 * kGroups;
      for (int tile = 0; tile < plan.row_tiles; ++tile) {
        float acc[kGroups][4];
        warp_convolve<Dtype, kGroups, kBytes>(plan, packed, tiles, mask, pass, tile, acc);
        const int row = 16 * tile + lane_id() / 4;
        uint32_t* target = out + (row * plan.dim + channel) / 2 * Dtype::kPairWords;
        uint32_t* lower = target + 8 * plan.dim / 2 * Dtype::kPairWords;
        if (row < patches * plan.tokens) {
          store_channels<Dtype, kGroups, 0>(target, plan.dim, plan.dim - channel, acc);
        }
        if (row + 8 < patches * plan.tokens) {
          store_channels<Dtype, kGroups, 1>(lower, plan.dim, plan.dim - channel, acc);
        }
      }
    }
    warp_sync();
  }
}

}  // namespace tnt_kernels::cuda
