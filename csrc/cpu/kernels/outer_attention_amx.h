// The forward of outer_attention for bfloat16 on AMX. One thread per head: its K and V are laid out
// once as right operands of tile products, then strips of queries pass through scores, softmax and
// the product with V without leaving the first two levels of cache.
#pragma once

#include "cpu/inner_block_amx_tables.h"
#include "cpu/kernels/amx_tile.h"
#include "cpu/kernels/outer_attention.h"
#include "cpu/simd.h"

namespace tnt_kernels::cpu::amx {

constexpr int kStep = 32;   // channels (scores) or keys (outputs) that a tile product sums
constexpr int kStrip = 32;  // queries at a time: two rows of tiles, which share right operands

// Sums 0-3, left operands 4-5, right operands 6-7.
inline void configure_whole_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = kTileRows;
    config.row_bytes[i] = kRow;
  }
  tile_configure(config);
}

// c (kStrip, 16 columns) = a (kStrip, kStep steps) b, or only its upper row of tiles. `columns`, of
// tiles, is even; column by column, b's tiles lie one after the other. Strides are in bytes.
template <bool two_rows>
inline void multiply_strip(const char* a, int64_t a_row, const char* b, int64_t steps,
                           int64_t columns, char* c, int64_t c_row) {
  const char* a_low = a + kTileRows * a_row;
  char* c_low = c + kTileRows * c_row;
  for (int64_t column = 0; column < columns; column += 2) {
    const char* left = b + column * steps * kTile;
    const char* right = left + steps * kTile;
    tile_zero<0>();
    tile_zero<1>();
    if (two_rows) {
      tile_zero<2>();
      tile_zero<3>();
    }
    for (int64_t step = 0; step < steps; ++step) {
      tile_load<4>(a + step * kRow, a_row);
      tile_load<6>(left + step * kTile);
      tile_multiply_add<0, 4, 6>();
      tile_load<7>(right + step * kTile);
      tile_multiply_add<1, 4, 7>();
      if (two_rows) {
        tile_load<5>(a_low + step * kRow, a_row);
        tile_multiply_add<2, 5, 6>();
        tile_multiply_add<3, 5, 7>();
      }
    }
    tile_store<0>(c + column * kRow, c_row);
    tile_store<1>(c + column * kRow + kRow, c_row);
    if (two_rows) {
      tile_store<2>(c_low + column * kRow, c_row);
      tile_store<3>(c_low + column * kRow + kRow, c_row);
    }
  }
}

// Byte offsets of what one thread holds of a head. Keys are padded to whole steps.
struct OuterScratch {
  int64_t keys, k, v, q, scores, probs, out, bytes;

  explicit OuterScratch(const OuterAttention& call) {
    keys = (call.num_tokens + kStep - 1) / kStep * kStep;
    int64_t end = 0;
    const auto take = [&end](int64_t size) {
      const int64_t start = end;
      end += (size + kRow - 1) / kRow * kRow;
      return start;
    };
    k = take(keys * call.head_dim * 2);
    v = take(keys * call.head_dim * 2);
    q = take(kStrip * call.head_dim * 2);
    scores = take(kStrip * keys * 4);
    probs = take(kStrip * keys * 2);
    out = take(kStrip * call.head_dim * 4);
    bytes = end;
  }
};

inline Vec load_words(const BFloat16* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }

// K^T, tile by tile: row r of a tile holds channels 2r and 2r + 1 of 16 keys, so that a tile is a
// transposed matrix of 32-bit words. Absent keys are zeros.
inline void lay_out_keys(const BFloat16* k, int64_t row, int64_t num_keys, int64_t padded_keys,
                         int64_t dim, char* tiles) {
  float* target = reinterpret_cast<float*>(tiles);
  for (int64_t key = 0; key < padded_keys; key += kLanes) {
    for (int64_t channel = 0; channel < dim; channel += kStep) {
      Vec words[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        words[i] = key + i < num_keys ? load_words(k + (key + i) * row + channel) : zero();
      }
      transpose(words);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(target + i * kLanes, words[i]);
      target += kLanes * kLanes;
    }
  }
}

// V, tile by tile: row r of a tile holds keys 2r and 2r + 1 of 16 channels. Absent keys are zeros.
inline void lay_out_values(const BFloat16* v, int64_t row, int64_t num_keys, int64_t padded_keys,
                           int64_t dim, char* tiles) {
  const auto channels = [&](int64_t key, int64_t channel) {
    if (key >= num_keys) return _mm512_setzero_si512();
    const auto* p = reinterpret_cast<const __m256i*>(v + key * row + channel);
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
  };
  char* target = tiles;
  for (int64_t channel = 0; channel < dim; channel += kLanes) {
    for (int64_t key = 0; key < padded_keys; key += 2) {
      const __m512i odd = _mm512_slli_epi32(channels(key + 1, channel), 16);
      _mm512_storeu_si512(target, _mm512_or_si512(channels(key, channel), odd));
      target += kRow;
    }
  }
}

// 2^x, relative error 1e-4: rounding it to bfloat16 costs 4e-3.
TNT_INLINE Vec exp2_coarse(Vec x) {
  const Vec f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  Vec p = fma(splat(kExp2Polynomial[3]), f, splat(kExp2Polynomial[2]));
  p = fma(p, f, splat(kExp2Polynomial[1]));
  p = fma(p, f, splat(kExp2Polynomial[0]));
  return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}

// Scores of one query to exp(factor (score - largest)) in bfloat16; returns 1 / sum of them.
// Keys from num_keys on get 0.
TNT_INLINE float exponentials(const float* scores, int64_t num_keys, int64_t padded_keys,
                              float factor, char* probs) {
  const Vec scale = splat(factor), nothing = splat(-__builtin_inff());
  const int64_t whole = num_keys / kStep * kStep;
  const int left = static_cast<int>(num_keys - whole);
  const __mmask16 low = first(left < kLanes ? left : kLanes);
  const __mmask16 high = first(left < kLanes ? 0 : left - kLanes);
  Vec top_low = nothing, top_high = nothing;
  for (int64_t i = 0; i < whole; i += kStep) {
    top_low = max(top_low, load(scores + i) * scale);
    top_high = max(top_high, load(scores + i + kLanes) * scale);
  }
  Vec rest_low = nothing, rest_high = nothing;
  if (whole < padded_keys) {
    rest_low = _mm512_mask_mul_ps(nothing, low, load(scores + whole), scale);
    rest_high = _mm512_mask_mul_ps(nothing, high, load(scores + whole + kLanes), scale);
  }
  const Vec top = splat(largest(max(max(top_low, rest_low), max(top_high, rest_high))));
  Vec sum_low = zero(), sum_high = zero();
  const auto write = [&](int64_t i, Vec x_low, Vec x_high) {
    const Vec e_low = exp2_coarse(x_low), e_high = exp2_coarse(x_high);
    sum_low = sum_low + e_low;
    sum_high = sum_high + e_high;
    const __m512bh pair = _mm512_cvtne2ps_pbh(e_high, e_low);
    __builtin_memcpy(probs + 2 * i, &pair, sizeof(pair));
  };
  for (int64_t i = 0; i < whole; i += kStep) {
    write(i, _mm512_fmsub_ps(load(scores + i), scale, top),
          _mm512_fmsub_ps(load(scores + i + kLanes), scale, top));
  }
  if (whole < padded_keys) write(whole, rest_low - top, rest_high - top);
  return 1.0f / sum(sum_low + sum_high);
}

// Queries [begin, end) of one head in strips; q and out point to its first channel.
inline void attend(const OuterAttention& call, const OuterScratch& at, char* scratch, int64_t begin,
                   int64_t end, const BFloat16* q, BFloat16* out) {
  const int64_t dim = call.head_dim, out_row = call.num_heads * dim, q_row = 3 * out_row;
  const auto* scores = reinterpret_cast<const float*>(scratch + at.scores);
  const auto* sums = reinterpret_cast<const float*>(scratch + at.out);
  for (int64_t row = begin; row < end; row += kStrip) {
    const int64_t rows = end - row < kStrip ? end - row : kStrip;
    const char* queries = reinterpret_cast<const char*>(q + row * q_row);
    int64_t queries_row = 2 * q_row;
    if (row + kStrip > call.num_tokens) {  // the tiles would reach beyond the tensor
      for (int64_t i = 0; i < rows; ++i) {
        __builtin_memcpy(scratch + at.q + 2 * i * dim, queries + i * queries_row,
                         static_cast<size_t>(2 * dim));
      }
      queries = scratch + at.q;
      queries_row = 2 * dim;
    }
    const auto multiply = rows > kTileRows ? multiply_strip<true> : multiply_strip<false>;
    multiply(queries, queries_row, scratch + at.k, dim / kStep, at.keys / kLanes,
             scratch + at.scores, 4 * at.keys);
    float inverse[kStrip];
    for (int64_t i = 0; i < rows; ++i) {
      inverse[i] = exponentials(scores + i * at.keys, call.num_tokens, at.keys, call.scale * kLog2E,
                                scratch + at.probs + 2 * i * at.keys);
    }
    multiply(scratch + at.probs, 2 * at.keys, scratch + at.v, at.keys / kStep, dim / kLanes,
             scratch + at.out, 4 * dim);
    for (int64_t i = 0; i < rows; ++i) {
      const Vec factor = splat(inverse[i]);
      for (int64_t j = 0; j < dim; j += kLanes) {
        const __m256bh rounded = _mm512_cvtneps_pbh(load(sums + i * dim + j) * factor);
        __builtin_memcpy(out + (row + i) * out_row + j, &rounded, sizeof(rounded));
      }
    }
  }
}

inline void outer_forward(const OuterAttention& call, int64_t first, int64_t last, float* base) {
  const FlushDenormals flush;
  const OuterScratch at(call);
  char* const scratch = reinterpret_cast<char*>(base);
  const int64_t tokens = call.num_tokens, dim = call.head_dim, width = call.num_heads * dim;
  configure_whole_tiles();
  int64_t laid_out = -1;
  for (int64_t index = first; index < last; ++index) {
    const int64_t head = index / call.parts, part = index % call.parts;
    const int64_t first_token = head / call.num_heads * tokens;
    const int64_t channel = head % call.num_heads * dim;
    const BFloat16* q = static_cast<const BFloat16*>(call.qkv) + 3 * first_token * width + channel;
    if (head != laid_out) {
      lay_out_keys(q + width, 3 * width, tokens, at.keys, dim, scratch + at.k);
      lay_out_values(q + 2 * width, 3 * width, tokens, at.keys, dim, scratch + at.v);
      laid_out = head;
    }
    BFloat16* out = static_cast<BFloat16*>(call.out) + first_token * width + channel;
    const int64_t begin = tokens * part / call.parts, end = tokens * (part + 1) / call.parts;
    attend(call, at, scratch, begin, end, q, out);
  }
  tile_release();
}

}  // namespace tnt_kernels::cpu::amx
