#pragma once
// Gradients of Y0 = Conv(patch) + E_pixel (Eqs. 4, 5, 13).
//
// dweight: dW[pair][lane] += pair(x)[lane] * dy[lane] over all tokens, in the lanes of the forward
// kernel (channel, column parity); a block of Q tap pairs x NV vectors stays in registers for all
// tokens of a group of patches, then is added to this thread's partial sum. The two levels keep
// the sums' error small, and a fixed division of the patches keeps them reproducible.
// dimages: dcol = dy W per token, lanes are taps, then each window is added to the patch's pixels.

#include "cpu/kernels/pixel_embed_fwd.h"

namespace tnt_kernels::cpu::TNT_ISA {

// Q tap pairs x NV vectors, over the tokens in rows [row0, row1) of `patches` tiles.
template <int NV, int Q>
TNT_INLINE void pixel_embed_dw_block(const PixelEmbedShape& shape, const int32_t* pair_offsets,
                                     int64_t row0, int64_t row1, const float* tiles,
                                     const float* dy, int64_t dy_lanes, int64_t patches,
                                     float* sums, int count) {
  Vec acc[Q][NV];
  int64_t offset[Q];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    offset[q] = pair_offsets[q < count ? q : count - 1];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[q][v] = zero();
  }
  for (int64_t patch = 0; patch < patches; ++patch) {
    for (int64_t row = row0; row < row1; ++row) {
      const float* x = tiles + patch * shape.tile_size + row * shape.stride * shape.tile_stride;
      const float* g = dy + (patch * shape.tokens() + row * shape.cols) * dy_lanes;
      for (int64_t col = 0; col < shape.cols; ++col, x += shape.stride, g += dy_lanes) {
        Vec gv[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) gv[v] = load(g + v * kLanes);
#pragma GCC unroll 8
        for (int q = 0; q < Q; ++q) {
          const Vec xv = splat_pair(x + offset[q]);
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) acc[q][v] = fma(xv, gv[v], acc[q][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    if (q >= count) break;
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* sum = sums + q * dy_lanes + v * kLanes;
      store(sum, load(sum) + acc[q][v]);
    }
  }
}

// The token rows whose windows meet any of `count` tap pairs inside the patch.
inline void pixel_embed_dw_rows(const PixelEmbedShape& shape, const int32_t* pair_ky, int count,
                                int64_t* row0, int64_t* row1) {
  *row0 = 0;
  *row1 = shape.rows;
  if (!shape.unfold_first) return;
  auto hits = [&](int64_t row) {
    for (int q = 0; q < count; ++q) {
      const int64_t y = row * shape.stride - shape.padding + pair_ky[q];
      if (y >= 0 && y < shape.patch_h) return true;
    }
    return false;
  };
  while (*row0 < *row1 && !hits(*row0)) ++*row0;
  while (*row0 < *row1 && !hits(*row1 - 1)) --*row1;
}

// dy of one group, each value in two neighbouring lanes, and its sum over patches into dpos.
template <class T>
inline void pixel_embed_stage_dy(const PixelEmbedWeightGrad& p, int64_t first, int64_t patches,
                                 float* staged, float* dpos_group, float* dpos) {
  const PixelEmbedShape& shape = p.shape;
  const int64_t tokens = shape.tokens(), dpos_stride = p.lanes / 2;
  const T* dy = static_cast<const T*>(p.dy) + first * tokens * shape.dim;
  for (int64_t i = 0; i < tokens * dpos_stride; ++i) dpos_group[i] = 0;
  for (int64_t token = 0; token < patches * tokens; ++token) {
    const T* from = dy + token * shape.dim;
    float* to = staged + token * p.lanes;
    float* sum = dpos_group + token % tokens * dpos_stride;
    for (int64_t i = 0; i < shape.dim; i += kLanes) {
      const int64_t left = shape.dim - i;
      const int n = left < kLanes ? int(left) : kLanes;
      const Vec g = n == kLanes ? load(from + i) : load_n(from + i, n);
      Vec low, high;
      repeat_pairs(g, low, high);
      // lanes and dpos_stride are padded to whole vectors of the staged form only
      store(to + 2 * i, low);
      if (2 * i + kLanes < p.lanes) store(to + 2 * i + kLanes, high);
      if (n == kLanes) {
        store(sum + i, load(sum + i) + g);
      } else {
        store_n(sum + i, load_n(sum + i, n) + g, n);
      }
    }
  }
  for (int64_t i = 0; i < tokens * dpos_stride; ++i) dpos[i] += dpos_group[i];
}

// Adds patches [first, last) to dw (num_pairs, lanes) and dpos (S, lanes / 2).
template <class T>
void pixel_embed_dw_kernel(const PixelEmbedWeightGrad& p, int64_t first, int64_t last, float* dw,
                           float* dpos, float* scratch) {
  const PixelEmbedShape& shape = p.shape;
  float* tiles = scratch;
  float* dy = tiles + shape.group * shape.tile_size;
  float* dpos_group = dy + shape.group * shape.tokens() * p.lanes;
  for (int64_t i = 0; i < shape.group * shape.tile_size; ++i) tiles[i] = 0;
  for (int64_t patch = first; patch < last; patch += shape.group) {
    const int64_t patches = last - patch < shape.group ? last - patch : shape.group;
    for (int64_t i = 0; i < patches; ++i) {
      pixel_load_tile(shape, static_cast<const T*>(p.images), patch + i,
                      tiles + i * shape.tile_size);
    }
    pixel_embed_stage_dy<T>(p, patch, patches, dy, dpos_group, dpos);
    int64_t lane = 0;
    for (int64_t b = 0; b < p.num_blocks; ++b) {
      auto run = [&](auto nv) {
        constexpr int NV = decltype(nv)::value;
        constexpr int Q = pixel_block_tokens<NV>();
        for (int64_t pair = 0; pair < p.num_pairs; pair += Q) {
          const int count = p.num_pairs - pair < Q ? int(p.num_pairs - pair) : Q;
          int64_t row0, row1;
          pixel_embed_dw_rows(shape, p.pair_ky + pair, count, &row0, &row1);
          pixel_embed_dw_block<NV, Q>(shape, p.pair_offsets + pair, row0, row1, tiles, dy + lane,
                                      p.lanes, patches, dw + pair * p.lanes + lane, count);
        }
      };
      visit_vectors(p.blocks[b], run);
      lane += p.blocks[b] * kLanes;
    }
  }
}

// dcol[q][...] = dy[q] W for Q tokens and NV vectors of taps.
template <int NV, int Q>
TNT_INLINE void pixel_embed_dcol(const float* dy, int64_t dim, const float* weights, int64_t stride,
                                 float* dcol) {
  Vec acc[Q][NV];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[q][v] = zero();
  }
  for (int64_t c = 0; c < dim; ++c) {
    Vec w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = load(weights + c * stride + v * kLanes);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const Vec g = splat(dy[q * dim + c]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[q][v] = fma(g, w[v], acc[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(dcol + q * stride + v * kLanes, acc[q][v]);
  }
}

// The rows and columns of tokens whose windows meet a patch, along one axis: its own, and when the
// image is convolved as a whole its neighbours' too.
inline void pixel_embed_token_range(const PixelEmbedShape& s, int64_t cell, int64_t cells,
                                    int64_t per_patch, int64_t patch_size, int64_t* first,
                                    int64_t* last) {
  *first = cell * per_patch;
  *last = *first + per_patch;
  if (s.unfold_first) return;
  const int64_t origin = cell * patch_size;
  while (*first > 0 && (*first - 1) * s.stride - s.padding + s.kernel > origin) --*first;
  while (*last < cells * per_patch && *last * s.stride - s.padding < origin + patch_size) ++*last;
}

// dimages of patches [first, last). Each patch gathers from all windows that meet it, so that
// threads share no pixel; a margin as wide as the kernel takes what falls outside of it.
template <class T>
void pixel_embed_dx_kernel(const PixelEmbedImageGrad& p, int64_t first, int64_t last,
                           float* scratch) {
  constexpr int Q = kDcolTokens, NV = 2;
  const PixelEmbedShape& s = p.shape;
  const int64_t frame_h = s.patch_h + 2 * s.kernel, frame_w = s.patch_w + 2 * s.kernel;
  const int64_t frame_size = s.in_chans * frame_h * frame_w;
  float* pixels = scratch;
  float* dcol = pixels + frame_size;
  float* dy = dcol + Q * p.taps_stride;
  for (int64_t patch = first; patch < last; ++patch) {
    const int64_t image = patch / (s.grid_h * s.grid_w);
    const int64_t cell_y = patch / s.grid_w % s.grid_h, cell_x = patch % s.grid_w;
    const int64_t y0 = cell_y * s.patch_h, x0 = cell_x * s.patch_w;
    for (int64_t i = 0; i < frame_size; ++i) pixels[i] = 0;
    int64_t row0, row1, col0, col1;
    pixel_embed_token_range(s, cell_y, s.grid_h, s.rows, s.patch_h, &row0, &row1);
    pixel_embed_token_range(s, cell_x, s.grid_w, s.cols, s.patch_w, &col0, &col1);
    const int64_t cols = col1 - col0, total = (row1 - row0) * cols;
    for (int64_t done = 0; done < total; done += Q) {
      const int count = total - done < Q ? int(total - done) : Q;
      int64_t corners[Q];
      for (int q = 0; q < Q; ++q) {
        const int64_t token = done + (q < count ? q : 0);
        const int64_t row = row0 + token / cols, col = col0 + token % cols;
        const int64_t owner = (image * s.grid_h + row / s.rows) * s.grid_w + col / s.cols;
        const int64_t index = owner * s.tokens() + row % s.rows * s.cols + col % s.cols;
        const T* from = static_cast<const T*>(p.dy) + index * s.dim;
        to_floats(from, dy + q * s.dim, s.dim);
        corners[q] = (row * s.stride - s.padding - y0 + s.kernel) * frame_w + col * s.stride -
                     s.padding - x0 + s.kernel;
      }
      for (int64_t tap = 0; tap < p.taps_stride; tap += NV * kLanes) {
        pixel_embed_dcol<NV, Q>(dy, s.dim, p.weights + tap, p.taps_stride, dcol + tap);
      }
      for (int q = 0; q < count; ++q) {
        const float* from = dcol + q * p.taps_stride;
        for (int64_t channel = 0; channel < s.in_chans; ++channel) {
          float* to = pixels + channel * frame_h * frame_w + corners[q];
          for (int64_t ky = 0; ky < s.kernel; ++ky, from += s.kernel, to += frame_w) {
            for (int64_t kx = 0; kx < s.kernel; ++kx) to[kx] += from[kx];
          }
        }
      }
    }
    for (int64_t channel = 0; channel < s.in_chans; ++channel) {
      T* plane = static_cast<T*>(p.dimages) + (image * s.in_chans + channel) * s.height * s.width;
      for (int64_t y = 0; y < s.patch_h; ++y) {
        const float* from = pixels + (channel * frame_h + y + s.kernel) * frame_w + s.kernel;
        from_floats(from, plane + (y0 + y) * s.width + x0, s.patch_w);
      }
    }
  }
}

template <class T>
inline void add_pixel_embed_kernels(PixelEmbedKernels& table, DType dtype) {
  const int i = static_cast<int>(dtype);
  table.fwd[i] = pixel_embed_fwd_kernel<T>;
  table.dw[i] = pixel_embed_dw_kernel<T>;
  table.dx[i] = pixel_embed_dx_kernel<T>;
}

inline PixelEmbedKernels pixel_embed_kernels() {
  PixelEmbedKernels table = {};
  table.lanes = kLanes;
  table.wide = kRegisters == 32;
  add_pixel_embed_kernels<float>(table, DType::kFloat32);
  add_pixel_embed_kernels<BFloat16>(table, DType::kBFloat16);
  add_pixel_embed_kernels<Float16>(table, DType::kFloat16);
  return table;
}

}  // namespace tnt_kernels::cpu::TNT_ISA
