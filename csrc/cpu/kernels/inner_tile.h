// Moves one chunk of tokens between memory, token-major and of any type, and scratch,
// channel-major and float; and normalises it there.
#pragma once

#include "cpu/kernels/gemm.h"

namespace tnt_kernels::cpu::TNT_ISA {

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Rows of a channel-major tile: the transposes work on 4 channels at a time.
TNT_INLINE int tile_rows(int dim) { return round_up(dim, 4); }

// Where the call's tokens of one chunk are.
struct ChunkRange {
  int64_t first;  // index of its first token
  int count;      // 1 .. kChunk; a multiple of S
};

TNT_INLINE ChunkRange chunk_range(const InnerCall& call, int64_t chunk) {
  const int64_t first = chunk * kChunk;
  const int64_t left = call.num_patches * call.num_tokens - first;
  return {first, static_cast<int>(left < kChunk ? left : kChunk)};
}

TNT_INLINE void transpose_in(const float* src, int src_stride, int dim, float* tile) {
  for (int token = 0; token < kChunk; token += kLanes) {
    for (int c = 0; c < dim; c += 4) {
      transpose_4_channels(src + int64_t{token} * src_stride + c, src_stride,
                           tile + c * kChunk + token, kChunk);
    }
  }
}

TNT_INLINE void transpose_out(const float* tile, int dim, float* dst, int dst_stride) {
  for (int token = 0; token < kChunk; token += kLanes) {
    for (int c = 0; c < dim; c += 4) {
      transpose_4_rows(tile + c * kChunk + token, kChunk, dst + int64_t{token} * dst_stride + c,
                       dst_stride);
    }
  }
}

// Reads a chunk into tile[c][token]. Tokens past the end repeat the chunk's first one, which keeps
// them as finite as the data is. staging: kChunk * tile_rows(dim) floats.
template <class T>
TNT_INLINE void load_tile_as(const T* src, int dim, int count, float* staging, float* tile) {
  const int stride = tile_rows(dim);
  if (stride == dim) {
    to_floats(src, staging, int64_t{count} * dim);
  } else {
    for (int t = 0; t < count; ++t) to_floats(src + int64_t{t} * dim, staging + t * stride, dim);
    for (int t = 0; t < count; ++t) {
      for (int c = dim; c < stride; ++c) staging[t * stride + c] = 0.0f;
    }
  }
  for (int t = count; t < kChunk; ++t) {
    __builtin_memcpy(staging + t * stride, staging, stride * sizeof(float));
  }
  transpose_in(staging, stride, stride, tile);
}

inline void load_tile(DType dtype, const void* base, int dim, ChunkRange range, float* staging,
                      float* tile) {
  const int64_t offset = range.first * dim;
  if (dtype == DType::kBFloat16) {
    load_tile_as(static_cast<const BFloat16*>(base) + offset, dim, range.count, staging, tile);
  } else if (dtype == DType::kFloat16) {
    load_tile_as(static_cast<const Float16*>(base) + offset, dim, range.count, staging, tile);
  } else if (range.count == kChunk && dim % 4 == 0) {
    transpose_in(static_cast<const float*>(base) + offset, dim, dim, tile);
  } else {
    load_tile_as(static_cast<const float*>(base) + offset, dim, range.count, staging, tile);
  }
}

template <class T>
TNT_INLINE void store_tile_as(const float* tile, int dim, int count, float* staging, T* dst) {
  const int stride = tile_rows(dim);
  transpose_out(tile, stride, staging, stride);
  if (stride == dim) return from_floats(staging, dst, int64_t{count} * dim);
  for (int t = 0; t < count; ++t) from_floats(staging + t * stride, dst + int64_t{t} * dim, dim);
}

// The reverse of load_tile. Rows of the tile past dim are read, and not used.
inline void store_tile(DType dtype, const float* tile, int dim, ChunkRange range, float* staging,
                       void* base) {
  const int64_t offset = range.first * dim;
  if (dtype == DType::kBFloat16) {
    store_tile_as(tile, dim, range.count, staging, static_cast<BFloat16*>(base) + offset);
  } else if (dtype == DType::kFloat16) {
    store_tile_as(tile, dim, range.count, staging, static_cast<Float16*>(base) + offset);
  } else if (range.count == kChunk && dim % 4 == 0) {
    transpose_out(tile, dim, static_cast<float*>(base) + offset, dim);
  } else {
    store_tile_as(tile, dim, range.count, staging, static_cast<float*>(base) + offset);
  }
}

// The branch's factor of every token, in scale[kChunk]: 1 without drop path. For tokens past the
// end it does not matter.
inline void load_drop_path(const float* drop_path, int num_tokens, ChunkRange range, float* scale) {
  for (int t = 0; t < kChunk; t += kLanes) store(scale + t, splat(1.0f));
  if (drop_path == nullptr) return;
  for (int t = 0; t < range.count; ++t) scale[t] = drop_path[(range.first + t) / num_tokens];
}

// normed = (x - mean) / sqrt(var + eps) per token; the affine part is folded into the weights that
// follow. rstd[kChunk] may be null. Several vectors of tokens at a time, as each sum is a chain.
inline void normalize_tile(const float* x, int dim, float eps, float* normed, float* rstd) {
  constexpr int Q = kTileVecs;
  const Vec inv_dim = splat(1.0f / dim);
  for (int t = 0; t < kChunk; t += Q * kLanes) {
    Vec mean[Q] = {}, var[Q] = {};
    for (int c = 0; c < dim; ++c) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) mean[q] = mean[q] + load(x + c * kChunk + t + q * kLanes);
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) mean[q] = mean[q] * inv_dim;
    for (int c = 0; c < dim; ++c) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const int64_t at = c * kChunk + t + q * kLanes;
        const Vec centred = load(x + at) - mean[q];
        var[q] = fma(centred, centred, var[q]);
        store(normed + at, centred);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      var[q] = splat(1.0f) / sqrt(fma(var[q], inv_dim, splat(eps)));
      if (rstd != nullptr) store(rstd + t + q * kLanes, var[q]);
    }
    for (int c = 0; c < dim; ++c) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        float* at = normed + c * kChunk + t + q * kLanes;
        store(at, load(at) * var[q]);
      }
    }
  }
}

// dx = residual + rstd (dn - mean(dn) - n mean(dn n)), with n = normed and dn its gradient.
inline void normalize_tile_bwd(const float* normed, const float* dnormed, const float* rstd,
                               const float* residual, int dim, float* dx) {
  constexpr int Q = kTileVecs;
  const Vec inv_dim = splat(1.0f / dim);
  for (int t = 0; t < kChunk; t += Q * kLanes) {
    Vec mean_dn[Q] = {}, mean_dn_n[Q] = {};
    for (int c = 0; c < dim; ++c) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const int64_t at = c * kChunk + t + q * kLanes;
        const Vec dn = load(dnormed + at);
        mean_dn[q] = mean_dn[q] + dn;
        mean_dn_n[q] = fma(dn, load(normed + at), mean_dn_n[q]);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      mean_dn[q] = mean_dn[q] * inv_dim;
      mean_dn_n[q] = mean_dn_n[q] * inv_dim;
    }
    for (int c = 0; c < dim; ++c) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const int64_t at = c * kChunk + t + q * kLanes;
        const Vec centred = fnma(load(normed + at), mean_dn_n[q], load(dnormed + at) - mean_dn[q]);
        store(dx + at, fma(centred, load(rstd + t + q * kLanes), load(residual + at)));
      }
    }
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
