// Gradients of pixel_embed's weights, bias and position: dW = windows^T dy.
//
// A block copies a group of patches and their gradients dy into shared memory; its warps share the
// product. Its rows are taps, two chunks of 8 columns to a tile, its columns channels, and the
// summed dimension is the tokens: kTapWarps warps take the taps, kTokenWarps the row tiles in turn.
// Sums stay in registers over all groups of a block, which leaves one partial gradient; they are
// added in a fixed order by sum_partials. Taps and channels beyond what a block's registers hold go
// to further blocks (slices), which copy the same groups.
#pragma once

#include "cuda/pixel_embed/tiles.cuh"
#include "cuda/tile/weights.cuh"

namespace tnt_kernels::cuda {

// What a thread's sums belong to.
struct GradSlice {
  int pass, first_chunk, token_warp;
};

template <class Dtype, int kGroups>
struct WeightGrad {
  using Own = cuda::Own<Dtype>;
  using Math = typename Own::Math;
  using Unit = typename Math::Unit;
  static constexpr bool kTransposes = Math::kUnitWords == 1;
  static constexpr int kElementBytes = 2 * Dtype::kPairWords;

  const PixelEmbedPlan& plan;
  const GradSlice slice;
  // what this lane reads of the first row tile's windows and gradients dy (rows, C)
  const uint32_t* places;
  const uint32_t* window;
  const uint32_t* gradient;
  Words<2> chunks[kTapTiles];
  float sum[kTapTiles][kGroups][4] = {};

  // Both operands run along the tokens. 16-bit ones are read along the channels, two at a time as
  // the forward reads them, and transposed in registers; fp32 ones are read one by one.
  TNT_DEVICE WeightGrad(const PixelEmbedPlan& p, const GradSlice& s, const uint32_t* tables,
                        const uint32_t* tiles, const uint32_t* dy)
      : plan(p), slice(s) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int row = kTransposes ? g : 2 * t, column = kTransposes ? 2 * t : g;
    places = tables + plan.first_row + row;
    window = behind(tiles, column * kElementBytes);
    gradient = behind(dy, (row * plan.dim + slice.pass * kGroups * 8 + column) * kElementBytes);
#pragma unroll
    for (int m = 0; m < kTapTiles; ++m) {
      // in place of chunks beyond the last, whose sums are never stored, the last two
      const int chunk = slice.first_chunk + 2 * m, last = 2 * plan.pairs() - 2;
      chunks[m] = load_words<2>(tables + plan.first_chunk + (chunk < last ? chunk : last));
    }
  }

  // Adds the tokens of one row tile.
  TNT_DEVICE void add(int tile) {
    Unit b[2][kGroups];
    const uint32_t* rows[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t* place = places + 16 * tile + 8 * half;
      rows[half][0] = behind(window, load_words<1>(place).w[0]);
      if constexpr (!kTransposes) rows[half][1] = behind(window, load_words<1>(place + 1).w[0]);
      const uint32_t* dy = behind(gradient, (16 * tile + 8 * half) * plan.dim * kElementBytes);
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        // channels beyond the last are the next row's; their sums are never stored
        const uint32_t* at = dy + 4 * n * Dtype::kPairWords;
        if constexpr (kTransposes) {
          b[half][n].w[0] = warp_transpose_b16(load_words<1>(at).w[0]);
        } else {
          b[half][n].w[0] = load_words<1>(at).w[0];
          b[half][n].w[1] = load_words<1>(at + plan.dim).w[0];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTapTiles; ++m) {
      typename Math::Tile a[2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int half = j / 2, i = j % 2;
        Unit& unit = a[half].rows[i];
        unit.w[0] = load_words<1>(behind(rows[half][0], chunks[m].w[i])).w[0];
        if constexpr (kTransposes) {
          unit.w[0] = warp_transpose_b16(unit.w[0]);
        } else {
          unit.w[1] = load_words<1>(behind(rows[half][1], chunks[m].w[i])).w[0];
        }
      }
#pragma unroll
      for (int n = 0; n < kGroups; ++n) Math::mma(sum[m][n], a[0], a[1], b[0][n], b[1][n]);
    }
  }

  // Hands the sums of the other token warps, through `words`, to the first, in their order.
  TNT_DEVICE void combine(uint32_t* words) {
    constexpr int kSums = kTapTiles * kGroups;
    for (int from = 1; from < kTokenWarps; ++from) {
      block_sync();
      uint32_t* own = words + (warp_id() % kTapWarps * kSums * 32 + lane_id()) * 4;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        float (&s)[4] = sum[i / kGroups][i % kGroups];
        uint32_t* place = own + i * 32 * 4;
        if (slice.token_warp == from) {
          store_words(place,
                      Words<4>{{as_word(s[0]), as_word(s[1]), as_word(s[2]), as_word(s[3])}});
        }
      }
      block_sync();
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        if (slice.token_warp != 0) continue;
        const Words<4> other = load_words<4>(own + i * 32 * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i / kGroups][i % kGroups][e] += as_float(other.w[e]);
      }
    }
  }

  TNT_DEVICE void store(float* dweight) const {
    const int kx = lane_id() / 4 - plan.first_tap;
    if (slice.token_warp != 0 || kx < 0 || kx >= plan.kernel) return;
#pragma unroll
    for (int i = 0; i < kTapTiles * kGroups * 4; ++i) {
      const int m = i / 4 / kGroups, n = i / 4 % kGroups, e = i % 4;
      const int chunk = slice.first_chunk + 2 * m + e / 2;
      const int channel = (slice.pass * kGroups + n) * 8 + lane_id() % 4 * 2 + e % 2;
      if (chunk < plan.chunks && channel < plan.dim) {
        store_words(dweight + channel * plan.taps() + chunk * plan.kernel + kx,
                    Words<1>{{as_word(sum[m][n][e])}});
      }
    }
  }
};

// dy of a group: its patches' rows, zero in place of patches that do not exist. kCount words at a
// time, which must divide a patch's.
template <class Dtype, int kCount>
TNT_DEVICE void team_copy_gradients(const PixelEmbedPlan& plan, const void* dy, int64_t first,
                                    int patches, uint32_t* rows, const Team& team) {
  const int words = plan.tokens * plan.dim / 2 * Dtype::kPairWords;
  const uint32_t* source = static_cast<const uint32_t*>(dy) + first * words;
#pragma unroll 2
  for (int i = kCount * team.index; i < plan.group_patches * words; i += kCount * team.count) {
    Words<kCount> part = {};
    if (i < patches * words) part = load_words<kCount>(source + i);
    store_words(behind(rows, 4u * i), part);
  }
}

// positions (S, C) += the sum over a group's patches, kPairs pairs of channels at a time, which
// must divide a patch's.
template <class Dtype, int kPairs>
TNT_DEVICE void team_add_positions(const PixelEmbedPlan& plan, const uint32_t* dy,
                                   uint32_t* positions, const Team& team) {
  constexpr int kWords = kPairs * Dtype::kPairWords;
  const int pairs = plan.tokens * plan.dim / 2;
  for (int i = kPairs * team.index; i < pairs; i += kPairs * team.count) {
    Words<2 * kPairs> sums = load_words<2 * kPairs>(positions + 2 * i);
#pragma unroll 4
    for (int patch = 0; patch < plan.group_patches; ++patch) {
      const auto words = load_words<kWords>(dy + (patch * pairs + i) * Dtype::kPairWords);
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const FloatPair value = Dtype::unpack(words.w + pair * Dtype::kPairWords);
        sums.w[2 * pair] = as_word(as_float(sums.w[2 * pair]) + value.lo);
        sums.w[2 * pair + 1] = as_word(as_float(sums.w[2 * pair + 1]) + value.hi);
      }
    }
    store_words(positions + 2 * i, sums);
  }
}

// dbias (C) and dpixel_pos (C, S) from positions (S, C).
TNT_DEVICE void team_store_positions(const PixelEmbedPlan& plan, const uint32_t* positions,
                                     float* dbias, const Team& team) {
  float* dpixel_pos = dbias + plan.dim;
  for (int channel = team.index; channel < plan.dim; channel += team.count) {
    float sum = 0;
    for (int token = 0; token < plan.tokens; ++token) {
      const Words<1> value = load_words<1>(positions + token * plan.dim + channel);
      store_words(dpixel_pos + channel * plan.tokens + token, value);
      sum += as_float(value.w[0]);
    }
    store_words(dbias + channel, Words<1>{{as_word(sum)}});
  }
}

template <class Dtype, int kGroups, bool kBytes>
TNT_DEVICE void pixel_embed_bwd_dw_body(const PixelEmbedBackward& params) {
  const PixelEmbedPlan& plan = params.plan;
  uint32_t* tables = dynamic_shared();
  uint32_t* positions = tables + plan.first_weight;
  uint32_t* tiles = positions + plan.position_words();
  uint32_t* dy = tiles + plan.group_words();
  const Team team = {thread_id(), block_threads()};
  for (int i = 4 * thread_id(); i < plan.first_weight; i += 4 * block_threads()) {
    store_words(tables + i, load_words<4>(params.packed + i));
  }
  team_clear(positions, plan.position_words(), team);
  team_clear(tiles, plan.group_words(), team);
  team_clear(dy, plan.gradient_words(2 * Dtype::kPairWords), team);
  block_sync();

  // Patches are copied by as many warps each as there are to spare.
  constexpr int kWarps = kTapWarps * kTokenWarps;
  const int team_warps = plan.group_patches < kWarps ? kWarps / plan.group_patches : 1;
  const int teams = kWarps / team_warps, team_number = warp_id() / team_warps;
  const Team patch_team = {warp_id() % team_warps * 32 + lane_id(), 32 * team_warps};

  const int slices = plan.slices(), number = block_id() % slices, part = block_id() / slices;
  const GradSlice slice = {
      number % plan.passes,
      (number / plan.passes * kTapWarps + warp_id() % kTapWarps) * 2 * kTapTiles,
      warp_id() / kTapWarps};
  WeightGrad<Dtype, kGroups> grad(plan, slice, tables, tiles, dy);
  // two pairs of channels at once, 16 bytes of dy, where rows of all patches begin at such
  const bool by_quads = plan.tokens * plan.dim % 4 == 0;
  const bool by_16_bytes = plan.tokens * plan.dim * Dtype::kPairWords % 8 == 0;
  const int64_t groups = plan.num_groups();
  for (int64_t group = part; group < groups; group += num_blocks() / slices) {
    const int64_t first = group * plan.group_patches, left = plan.num_patches - first;
    const int patches = left < plan.group_patches ? static_cast<int>(left) : plan.group_patches;
    for (int i = team_number; i < plan.group_patches; i += teams) {
      // in place of a patch that does not exist any will do: its gradients are zero
      team_copy_patch<Dtype, kBytes, 3>(plan, params.images, first + (i < patches ? i : 0), tables,
                                        tiles + i * plan.tile_words, patch_team);
    }
    if (by_16_bytes) {
      team_copy_gradients<Dtype, 4>(plan, params.dy, first, patches, dy, team);
    } else {
      team_copy_gradients<Dtype, Dtype::kPairWords>(plan, params.dy, first, patches, dy, team);
    }
    block_sync();
#pragma unroll 1
    for (int tile = grad.slice.token_warp; tile < plan.row_tiles; tile += kTokenWarps) {
      grad.add(tile);
    }
    if (number == 0) {
      if (by_quads) {
        team_add_positions<Dtype, 2>(plan, dy, positions, team);
      } else {
        team_add_positions<Dtype, 1>(plan, dy, positions, team);
      }
    }
    block_sync();
  }
  grad.combine(tiles);
  float* partial = params.partials + int64_t{part} * plan.flat();
  grad.store(partial);
  if (number == 0) {
    team_store_positions(plan, positions, partial + plan.dim * plan.taps(), team);
  }
}

}  // namespace tnt_kernels::cuda
