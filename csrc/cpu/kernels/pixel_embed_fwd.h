#pragma once
// Y0 = Conv(patch) + E_pixel (Eqs. 4, 5, 13), token-major (P, S, C).
//
// y[token][lane] += pair(x)[lane] * W[lane]: lanes are (channel, column parity) and a pair of
// neighbouring pixels is broadcast to all of them, so there is no im2col, no transpose and, with
// C = 24 or 40, no idle lane. Q tokens x NV vectors are accumulated in registers over all taps; a
// window's odd last column is paired with that of the next row. Even and odd lanes are added last.
// One thread computes a range of patches, a group of them at a time: 8 of them fill every block of
// tokens in the models' geometry.

#include "cpu/kernels/pixel_embed_tile.h"

namespace tnt_kernels::cpu::TNT_ISA {

// Tokens per block for NV accumulator vectors per token: accumulators fill the register file.
template <int NV>
constexpr int pixel_block_tokens() {
  if constexpr (kRegisters == 32) return NV == 5 ? 5 : 8;
  return 6;
}

// Calls f with the number of vectors of a channel block as a compile-time constant.
template <int n>
struct VectorCount {
  static constexpr int value = n;
};
template <class F>
TNT_INLINE void visit_vectors(int64_t vectors, const F& f) {
  if (vectors == 1) return f(VectorCount<1>{});
  if (vectors == 2) return f(VectorCount<2>{});
  if constexpr (kRegisters == 32) {
    if (vectors == 3) return f(VectorCount<3>{});
    if (vectors == 5) return f(VectorCount<5>{});
  }
}

// Accumulates Q windows over one tap pair.
template <int NV, int Q, class Pair>
TNT_INLINE void pixel_embed_step(Vec (&acc)[Q][NV], const float*& weights, Pair pair) {
  Vec w[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) w[v] = load(weights + v * kLanes);
  weights += NV * kLanes;
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    const Vec x = pair(q);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[q][v] = fma(x, w[v], acc[q][v]);
  }
}

// sums[q][...] = the channels of Q tokens, NV * kLanes / 2 each, rounded up to whole vectors. PAIRS
// is c.num_pairs, or -1 where that is not known to the compiler.
template <int NV, int Q, int PAIRS>
__attribute__((noinline)) void pixel_embed_windows(const PixelEmbedClass& c, const float* weights,
                                                   const float* const* windows, float* sums) {
  const int64_t num_pairs = PAIRS >= 0 ? PAIRS : c.num_pairs;
  Vec acc[Q][NV];
  const float* x[Q];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    x[q] = windows[q];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[q][v] = zero();
  }
  auto row_pairs = [&](int64_t first) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int64_t t = 0; t < num_pairs; ++t) {
      pixel_embed_step<NV, Q>(acc, weights,
                              [&](int q) { return splat_pair(x[q] + first + 2 * t); });
    }
  };
  const int64_t last = 2 * num_pairs;
  const int32_t* row = c.row_offsets;
  const int32_t* const rows_end = row + c.num_rows;
  for (; row + 2 <= rows_end; row += 2) {
    const int64_t upper = row[0], lower = row[1];
    row_pairs(upper);
    row_pairs(lower);
    if (c.odd) {
      pixel_embed_step<NV, Q>(acc, weights, [&](int q) {
        return splat_pair(x[q] + upper + last, x[q] + lower + last);
      });
    }
  }
  if (row < rows_end) {
    const int64_t first = row[0];
    row_pairs(first);
    // The odd lanes are zero: what lies right of the window may not be finite.
    if (c.odd) {
      pixel_embed_step<NV, Q>(acc, weights, [&](int q) { return splat_even(x[q] + first + last); });
    }
  }
  constexpr int kSums = (NV + 1) / 2;
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < kSums; ++v) {
      const Vec odd = 2 * v + 1 < NV ? acc[q][2 * v + 1 < NV ? 2 * v + 1 : 0] : zero();
      store(sums + (q * kSums + v) * kLanes, sum_pairs(acc[q][2 * v], odd));
    }
  }
}

// The models' 7x7 windows have 3 pairs and an odd column, or 2 pairs at the left border.
template <int NV, int Q>
TNT_INLINE void pixel_embed_windows(const PixelEmbedClass& c, const float* weights,
                                    const float* const* windows, float* sums) {
  if (c.num_pairs == 3) return pixel_embed_windows<NV, Q, 3>(c, weights, windows, sums);
  if (c.num_pairs == 2) return pixel_embed_windows<NV, Q, 2>(c, weights, windows, sums);
  return pixel_embed_windows<NV, Q, -1>(c, weights, windows, sums);
}

// The windows of one class in `patches` tiles, for one block of channels.
template <class T, int NV>
TNT_INLINE void pixel_embed_class(const PixelEmbedForward& p, const PixelEmbedClass& c,
                                  const float* weights, int64_t first_channel,
                                  const float* const* corners, int64_t first_patch, int64_t patches,
                                  PixelPrefetch<T>& prefetch) {
  constexpr int Q = pixel_block_tokens<NV>();
  constexpr int kSums = (NV + 1) / 2;
  const PixelEmbedShape& shape = p.shape;
  const int64_t block_channels = NV * kLanes / 2;
  const int64_t left = shape.dim - first_channel;
  const int64_t channels = left < block_channels ? left : block_channels;
  const int64_t windows_total = c.num_tokens * patches;
  T* out = static_cast<T*>(p.out) + first_patch * shape.tokens() * shape.dim + first_channel;
  int64_t patch = 0, token = 0;  // of the next window
  for (int64_t done = 0; done < windows_total; done += Q) {
    const int count = windows_total - done < Q ? int(windows_total - done) : Q;
    const float* windows[Q];
    T* rows[Q];
    const float* offsets[Q];
    for (int q = 0; q < count; ++q) {
      windows[q] = corners[patch] + c.token_offsets[token];
      rows[q] = out + (patch * shape.tokens() + c.tokens[token]) * shape.dim;
      offsets[q] = p.offsets + c.tokens[token] * p.offsets_stride + first_channel;
      if (++token == c.num_tokens) token = 0, ++patch;
    }
    // A short block repeats its first window; the copies are not stored.
    for (int q = count; q < Q; ++q) windows[q] = windows[0];
    prefetch.step();
    alignas(64) float sums[Q * kSums * kLanes];
    pixel_embed_windows<NV, Q>(c, weights, windows, sums);
    for (int q = 0; q < count; ++q) {
      for (int64_t i = 0; i < channels; i += kLanes) {
        const Vec y = load(sums + q * kSums * kLanes + i) + load(offsets[q] + i);
        if (channels - i >= kLanes) {
          store(rows[q] + i, y);
        } else {
          store_n(rows[q] + i, y, int(channels - i));
        }
      }
    }
  }
}

template <class T>
void pixel_embed_fwd_kernel(const PixelEmbedForward& p, int64_t first, int64_t last, float* tiles) {
  const PixelEmbedShape& shape = p.shape;
  const T* images = static_cast<const T*>(p.images);
  const float* corners[kMaxPixelGroup];
  if (!shape.in_place) {
    for (int64_t i = 0; i < shape.group * shape.tile_size; ++i) tiles[i] = 0;
  }
  for (int64_t patch = first; patch < last; patch += shape.group) {
    const int64_t patches = last - patch < shape.group ? last - patch : shape.group;
    for (int64_t i = 0; i < patches; ++i) {
      if (shape.in_place) {
        const float* pixels = static_cast<const float*>(p.images);
        corners[i] = pixels + pixel_patch_offset(shape, patch + i);
      } else {
        float* tile = tiles + i * shape.tile_size;
        pixel_load_tile(shape, images, patch + i, tile);
        corners[i] = tile + shape.padding * (shape.row_stride + 1);
      }
    }
    PixelPrefetch<T> prefetch(shape, images, patch + patches, last);
    for (int64_t i = 0; i < p.num_classes; ++i) {
      const PixelEmbedClass& c = p.classes[i];
      const int64_t steps = c.num_rows * c.num_pairs + (c.odd ? (c.num_rows + 1) / 2 : 0);
      const float* weights = c.weights;
      int64_t channel = 0;
      for (int64_t b = 0; b < p.num_blocks; ++b) {
        auto run = [&](auto nv) {
          pixel_embed_class<T, decltype(nv)::value>(p, c, weights, channel, corners, patch, patches,
                                                    prefetch);
        };
        visit_vectors(p.blocks[b], run);
        weights += steps * p.blocks[b] * kLanes;
        channel += p.blocks[b] * kLanes / 2;
      }
    }
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
