// Vector arithmetic of the AMX inner block: lanes are 16 tokens, a register is a channel.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/inner_block_amx_tables.h"
#include "cpu/kernels/amx_tile.h"
#include "cpu/types.h"

namespace tnt_kernels::cpu::amx {

TNT_INLINE __m512 load(const char* p) { return _mm512_loadu_ps(p); }
TNT_INLINE __m512i load_bits(const char* p) { return _mm512_loadu_si512(p); }
TNT_INLINE void store(char* p, __m512 a) { _mm512_storeu_ps(p, a); }
TNT_INLINE void store(char* p, __m512i a) { _mm512_storeu_si512(p, a); }

// ---- Pairs of bf16: the even channel in the lower half of a lane, the odd one in the upper ----
// A row of them is a row of a product's right operand. fp32 is truncated, see kCentred.

constexpr __mmask32 kEvenWords = 0x55555555, kOddWords = 0xAAAAAAAA;

TNT_INLINE __m512i pair(__m512 even, __m512 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  return _mm512_mask_mov_epi16(low, kOddWords, _mm512_castps_si512(odd));
}
TNT_INLINE __m512i pair_rounded(__m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  return pair(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(even), half)),
              _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(odd), half)));
}
// From memory it is one instruction: a load two bytes further on shifts the even channel down.
TNT_INLINE __m512i load_pair(const char* even, const char* odd) {
  return _mm512_mask_loadu_epi16(load_bits(odd), kEvenWords, even + 2);
}
TNT_INLINE __m512 even_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
TNT_INLINE __m512 odd_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}

// ---- Transposition of 16 tokens ----

// Transposes the 4x4 matrix that each 128-bit group of the four holds.
TNT_INLINE void transpose_groups(__m512i (&r)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi32(r[0], r[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(r[2], r[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm512_unpacklo_epi64(low01, low23);
  r[1] = _mm512_unpackhi_epi64(low01, low23);
  r[2] = _mm512_unpacklo_epi64(high01, high23);
  r[3] = _mm512_unpackhi_epi64(high01, high23);
}

// Reads the pairs of eight channels (or fewer, if the rows end) of 16 tokens.
TNT_INLINE void load_transposed(const BFloat16* x, int dim, int channel, __m512i (&r)[4]) {
  const __mmask8 some = dim - channel < 8 ? (1 << (dim - channel) / 2) - 1 : 15;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const BFloat16* p = x + int64_t{i} * dim + channel;
    __m128i token[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const BFloat16* q = p + int64_t{4} * j * dim;
      token[j] = some == 15 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(q))
                            : _mm_maskz_loadu_epi32(some, q);
    }
    r[i] = _mm512_castsi128_si512(token[0]);
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00F0, token[1]);
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0F00, token[2]);
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xF000, token[3]);
  }
  transpose_groups(r);
}

TNT_INLINE void store_transposed(BFloat16* y, int dim, int channel, __m512i (&r)[4]) {
  const __mmask8 some = dim - channel < 8 ? (1 << (dim - channel) / 2) - 1 : 15;
  transpose_groups(r);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    BFloat16* p = y + int64_t{i} * dim + channel;
    const __m128i token[4] = {_mm512_castsi512_si128(r[i]), _mm512_extracti32x4_epi32(r[i], 1),
                              _mm512_extracti32x4_epi32(r[i], 2),
                              _mm512_extracti32x4_epi32(r[i], 3)};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      BFloat16* q = p + int64_t{4} * j * dim;
      if (some == 15) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q), token[j]);
      } else {
        _mm_mask_storeu_epi32(q, some, token[j]);
      }
    }
  }
}

// ---- LayerNorm, without weight and bias ----

struct Norm {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512 scale, shift;

  TNT_INLINE void add(__m512 even, __m512 odd) {
    sum[0] = _mm512_add_ps(sum[0], even);
    sum[1] = _mm512_add_ps(sum[1], odd);
    squares[0] = _mm512_fmadd_ps(even, even, squares[0]);
    squares[1] = _mm512_fmadd_ps(odd, odd, squares[1]);
  }
  // The variance as E[x^2] - mean^2: its error in fp32 is below that of a bf16 x.
  TNT_INLINE void finish(int dim, float eps) {
    const __m512 inverse = _mm512_set1_ps(1.0f / dim);
    const __m512 mean = _mm512_mul_ps(_mm512_add_ps(sum[0], sum[1]), inverse);
    const __m512 square = _mm512_mul_ps(_mm512_add_ps(squares[0], squares[1]), inverse);
    const __m512 variance = _mm512_fnmadd_ps(mean, mean, square);
    // the second operand's NaN is kept
    const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), variance);
    const __m512 rstd = _mm512_rsqrt14_ps(_mm512_add_ps(positive, _mm512_set1_ps(eps)));
    scale = _mm512_mul_ps(rstd, _mm512_set1_ps(kCentred));
    shift = _mm512_fnmadd_ps(mean, scale, _mm512_setzero_ps());
  }
  TNT_INLINE __m512i operator()(__m512 even, __m512 odd) const {
    return pair(_mm512_fmadd_ps(even, scale, shift), _mm512_fmadd_ps(odd, scale, shift));
  }
  // The tokens whose squares have a finite sum; that of the others is NaN or infinite.
  TNT_INLINE __mmask16 finite() const {
    const __m512 square = _mm512_add_ps(squares[0], squares[1]);
    return _mm512_cmp_ps_mask(square, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  }
};

// ---- GELU ----

// A quadratic per unit interval of the argument, the first and the last being 0 and x. The lowest
// five bits of the argument, rounded, look up its coefficients.
struct Gelu {
  __m512 low[3], high[3];
  TNT_INLINE Gelu() {
    for (int i = 0; i < 3; ++i) {
      low[i] = _mm512_load_ps(kGelu.coefficient[i]);
      high[i] = _mm512_load_ps(kGelu.coefficient[i] + 16);
    }
  }
  TNT_INLINE __m512 operator()(__m512 x) const {
    // the smaller in magnitude, with the sign of x
    const __m512 near = _mm512_range_ps(x, _mm512_set1_ps(kGeluClamp), 0x2);
    const __m512i index = _mm512_castps_si512(_mm512_add_ps(near, _mm512_set1_ps(kRoundMagic)));
    const __m512 c0 = _mm512_permutex2var_ps(low[0], index, high[0]);
    const __m512 c1 = _mm512_permutex2var_ps(low[1], index, high[1]);
    const __m512 c2 = _mm512_permutex2var_ps(low[2], index, high[2]);
    return _mm512_fmadd_ps(_mm512_fmadd_ps(c2, x, c1), x, c0);
  }
};

// ---- 2^x of the scores of two heads (one key, 16 queries), as a pair ----

// Scores within kScoreBound. Their product was given the addends kRoundMagic and kScoreBias and the
// factor kScoreUnits, so that the lowest 16 bits of its fp32 sums are 128 (x + 127), rounded. As a
// bf16 number that is 2^floor(x) * (1 + x - floor(x)); a table corrects the mantissa.
struct BoundedExp2 {
  __m512i low, high, exponent;
  TNT_INLINE BoundedExp2()
      : low(_mm512_load_si512(kExp2.mantissa)),
        high(_mm512_load_si512(kExp2.mantissa + 64)),
        exponent(_mm512_set1_epi32(0xFF80FF80)) {}
  // The lower halves of even and odd lie two bytes before the upper ones.
  TNT_INLINE __m512i operator()(const char* even, const char* odd) const {
    const __m512i x = _mm512_mask_loadu_epi16(load_bits(even), kOddWords, odd - 2);
    const __m512i mantissa = _mm512_permutex2var_epi8(low, x, high);
    return _mm512_ternarylogic_epi32(exponent, x, mantissa, 0xCA);  // exponent ? x : mantissa
  }
};

// 2^x, relative error 1e-4.
TNT_INLINE __m512 exp2(__m512 x) {
  const __m512 fraction = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(kExp2Polynomial[3]), fraction,
                             _mm512_set1_ps(kExp2Polynomial[2]));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(kExp2Polynomial[1]));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(kExp2Polynomial[0]));
  return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}

}  // namespace tnt_kernels::cpu::amx
