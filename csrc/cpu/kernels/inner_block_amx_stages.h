// The stages of inner_block_amx.h: the arithmetic between products.
#pragma once

#include "cpu/kernels/inner_block_amx_layout.h"
#include "cpu/kernels/inner_block_amx_pack.h"
#include "cpu/kernels/inner_block_amx_products.h"

namespace tnt_kernels::cpu::amx {

// Stages of the unit `u` of a block, each for all tiles of the unit.
template <class S>
struct Stages {
  S s;
  const char* packed;
  char* scratch;
  float eps;

  TNT_INLINE PackedLayout in_packed() const { return PackedLayout(s); }
  TNT_INLINE ScratchLayout in_scratch() const { return ScratchLayout(s); }
  TNT_INLINE char* at(int64_t offset) const { return scratch + offset; }
  TNT_INLINE const char* weights(int64_t offset) const { return packed + offset; }

  TNT_INLINE char* mid(int u, int t) const {
    return at(in_scratch().mid + in_scratch().unit_bytes * u + kRow * s.dim() * t);
  }
  TNT_INLINE char* x_pairs(int u, int t) const { return mid(u, t) + kRow * (s.dim() / 2); }
  TNT_INLINE char* normed2(int u, int t) const {
    return at(in_scratch().normed2 + in_scratch().unit_bytes * u + kTile * s.dim_steps() * t);
  }
  TNT_INLINE char* normed1(int t) const {
    return at(in_scratch().normed1 + kTile * s.dim_steps() * t);
  }
  TNT_INLINE char* q(int t) const {
    return at(in_scratch().q + 4 * kRow * s.heads() * s.score_steps() * t);
  }
  TNT_INLINE char* k(int t) const {
    return at(in_scratch().k + 4 * kRow * s.heads() * s.score_steps() * t);
  }
  TNT_INLINE char* v(int u, int t) const {
    return at(in_scratch().v + in_scratch().v_bytes * (u & 1) +
              kTile * s.head_pairs() * s.value_tiles() * t);
  }
  // of the queries in tile t and the keys in tile j
  TNT_INLINE char* probs(int u, int t, int j = 0) const {
    return at(in_scratch().probs + in_scratch().probs_bytes * (u & 1) +
              kTile * s.head_pairs() * (s.unit_tiles() * t + j));
  }
  TNT_INLINE char* mixed(int t) const { return at(in_scratch().mixed + kTile * s.dim_steps() * t); }
  TNT_INLINE char* hidden(int t) const {
    return at(in_scratch().hidden + kTile * s.hidden_steps() * t);
  }
  TNT_INLINE char* qkv_sums(int t) const {
    return at(in_scratch().qkv_sums + kTile * s.qkv_tiles() * t);
  }
  TNT_INLINE char* score_sums(int t, int j = 0) const {
    return at(in_scratch().score_sums + kTile * s.heads() * (s.unit_tiles() * t + j));
  }
  TNT_INLINE char* value_sums(int t) const {
    return at(in_scratch().value_sums + kTile * s.head_pairs() * s.value_tiles() * t);
  }
  TNT_INLINE char* hidden_sums(int t) const {
    return at(in_scratch().hidden_sums + kTile * s.hidden_tiles() * t);
  }
  TNT_INLINE char* dim_sums(int t) const {
    return at(in_scratch().dim_sums + kTile * s.dim_tiles() * t);
  }
  TNT_INLINE bool bounded_scores() const {
    return reinterpret_cast<const PackedHeader*>(packed)->bounded_scores;
  }

  // Rows of operands that no stage writes: constants that meet biases, and zeros.
  TNT_INLINE void prefill() const {
    __builtin_memset(scratch, 0, in_scratch().qkv_sums);
    const __m512i ones = _mm512_set1_epi32(0x3F803F80);
    const uint32_t score_addends =
        uint32_t{to_bfloat16(kScoreBias)} << 16 | to_bfloat16(kRoundMagic);
    for (int t = 0; t < s.unit_tiles(); ++t) {
      for (int u = 0; u < s.block_units(); ++u) store(normed2(u, t) + kRow * (s.dim() / 2), ones);
      store(normed1(t) + kRow * (s.dim() / 2), ones);
      store(mixed(t) + kRow * (s.dim() / 2), ones);
      for (int head = 0; head < s.heads() && bounded_scores(); ++head) {
        store(q(t) + kRow * (4 * s.score_steps() * head + s.head_rows() / 2),
              _mm512_set1_epi32(score_addends));
      }
      for (int p = 0; p < 2 * s.head_pairs(); ++p) {
        char* sums = v(p & 1, t) + kTile * s.value_tiles() * (p / 2);
        store(sums, _mm512_set1_epi32(0x00003F80));
        store(sums + kRow, _mm512_set1_epi32(0x3F800000));
      }
    }
  }

  // ---- Attention ----

  // Reads a tile of x. Returns the tokens whose LayerNorm is finite.
  TNT_INLINE __mmask16 norm1(int u, int t, const BFloat16* x) const {
    char* pairs = x_pairs(u, t);
    Norm norm;
    for (int channel = 0; channel < s.dim(); channel += 8) {
      __m512i r[4];
      load_transposed(x, s.dim(), channel, r);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if (channel + 2 * i >= s.dim()) break;
        store(pairs + kRow * (channel / 2 + i), r[i]);
        norm.add(even_of(r[i]), odd_of(r[i]));
      }
    }
    norm.finish(s.dim(), eps);
    for (int i = 0; i < s.dim() / 2; ++i) {
      const __m512i x_pair = load_bits(pairs + kRow * i);
      store(normed1(t) + kRow * i, norm(even_of(x_pair), odd_of(x_pair)));
    }
    return norm.finite();
  }

  TNT_INLINE void qkv_product() const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      product(s.qkv_tiles(), qkv_sums(t),
              MultiplyWeights(weights(in_packed().qkv), normed1(t), s.dim_steps()));
    }
  }

  // q becomes right operands, k and v left ones. Row 4 i + j of k is key i + 4 j. v's rows of the
  // even head of a pair have their values in the lower halves, those of the odd head in the upper.
  TNT_INLINE void split_qkv(int u) const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      const char* q_rows = qkv_sums(t);
      const char* k_rows = q_rows + kRow * s.heads() * s.head_rows();
      const char* v_rows = q_rows + kRow * s.v_row();
      for (int head = 0; head < s.heads(); ++head) {
        const int64_t operand = 4 * kRow * s.score_steps() * head;
        for (int step = 0; step < s.score_steps(); ++step) {
          split_keys(k_rows, k(t) + operand, step);
        }
        for (int i = 0; i < s.head_rows() / 2; ++i) {
          store(q(t) + operand + kRow * i,
                load_pair(q_rows + kRow * 2 * i, q_rows + kRow * (2 * i + 1)));
        }
        char* values = v(u, t) + kTile * s.value_tiles() * (head / 2) + 2 * kRow;
        if (head % 2 == 1) values += kRow * s.head_dim();
        for (int i = 0; i < s.head_dim(); ++i) {
          const char* row = v_rows + kRow * i;
          store(values + kRow * i, head % 2 == 0 ? _mm512_maskz_loadu_epi16(kEvenWords, row + 2)
                                                 : _mm512_maskz_loadu_epi16(kOddWords, row));
        }
        q_rows += kRow * s.head_rows();
        k_rows += kRow * s.head_rows();
        v_rows += kRow * s.head_dim();
      }
    }
  }
  TNT_INLINE void split_keys(const char* rows, char* keys, int step) const {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int p = 4 * step + i, pairs = s.head_rows() / 2;
      if (p < pairs) {
        r[i] = load_pair(rows + kRow * 2 * p, rows + kRow * (2 * p + 1));
      } else {  // the constants that meet kRoundMagic and kScoreBias
        r[i] = _mm512_set1_epi32(p == pairs ? 0x3F803F80 : 0);
      }
    }
    transpose_groups(r);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(keys + kRow * (4 * step + i), r[i]);
  }

  TNT_INLINE void score_product() const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      for (int j = 0; j < s.unit_tiles(); ++j) {
        product(s.heads(), score_sums(t, j), MultiplyKeys{k(j), q(t), s.score_steps()});
      }
    }
  }

  TNT_INLINE void exponentials(int u) const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      for (int p = 0; p < s.head_pairs(); ++p) {
        const int64_t even = kTile * 2 * p, odd = 2 * p + 1 < s.heads() ? even + kTile : even;
        if (bounded_scores()) {
          bounded_exponentials(u, t, p, even, odd);
        } else {
          any_exponentials(u, t, p, even, odd);
        }
      }
    }
  }
  // Queries that may look at the key in row `row` of a tile of scores.
  TNT_INLINE __mmask16 same_sequence(int key) const {
    const int first = key - key % s.tokens();
    return ((1 << s.tokens()) - 1) << first;
  }
  TNT_INLINE void store_probs(char* target, int row, __m512i probs) const {
    const int key = row / 4 + row % 4 * 4;
    if (s.tokens() < 16) probs = _mm512_maskz_mov_epi32(same_sequence(key), probs);
    store(target + kRow * key, probs);
  }
  TNT_INLINE void bounded_exponentials(int u, int t, int p, int64_t even, int64_t odd) const {
    const BoundedExp2 exp2;
    for (int j = 0; j < s.unit_tiles(); ++j) {
      const char* sums = score_sums(t, j);
#pragma GCC unroll 16
      for (int row = 0; row < 16; ++row) {
        store_probs(probs(u, t, j) + kTile * p, row,
                    exp2(sums + even + kRow * row, sums + odd + kRow * row));
      }
    }
  }
  TNT_INLINE void any_exponentials(int u, int t, int p, int64_t even, int64_t odd) const {
    __m512 largest[2] = {_mm512_set1_ps(-__builtin_inff()), _mm512_set1_ps(-__builtin_inff())};
    for (int j = 0; j < s.unit_tiles(); ++j) {
      for (int row = 0; row < 16; ++row) {
        const char* sums = score_sums(t, j) + kRow * row;
        const int key = row / 4 + row % 4 * 4;
        const __mmask16 seen = s.tokens() < 16 ? same_sequence(key) : 0xFFFF;
        largest[0] = _mm512_mask_max_ps(largest[0], seen, largest[0], load(sums + even));
        largest[1] = _mm512_mask_max_ps(largest[1], seen, largest[1], load(sums + odd));
      }
    }
    for (int j = 0; j < s.unit_tiles(); ++j) {
      for (int row = 0; row < 16; ++row) {
        const char* sums = score_sums(t, j) + kRow * row;
        store_probs(probs(u, t, j) + kTile * p, row,
                    pair(exp2(_mm512_sub_ps(load(sums + even), largest[0])),
                         exp2(_mm512_sub_ps(load(sums + odd), largest[1]))));
      }
    }
  }

  TNT_INLINE void value_product(int u) const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      product(
          s.head_pairs() * s.value_tiles(), value_sums(t),
          MultiplyValues{v(u, 0), probs(u, t), s.value_tiles(), s.head_pairs(), s.unit_tiles()});
    }
  }

  TNT_INLINE void divide_by_sums() const {
    const __m512 unit = _mm512_set1_ps(kCentred);
    const int head_dim = s.head_dim();
    for (int t = 0; t < s.unit_tiles(); ++t) {
      for (int p = 0; p < s.head_pairs(); ++p) {
        const char* rows = value_sums(t) + kTile * s.value_tiles() * p;
        const __m512 inverse[2] = {_mm512_mul_ps(unit, _mm512_rcp14_ps(load(rows))),
                                   _mm512_mul_ps(unit, _mm512_rcp14_ps(load(rows + kRow)))};
        const int pairs = 2 * p + 1 < s.heads() ? head_dim : head_dim / 2;
#pragma GCC unroll 16
        for (int i = 0; i < pairs; ++i) {
          const __m512 even = load(rows + kRow * (2 * i + 2)),
                       odd = load(rows + kRow * (2 * i + 3));
          store(mixed(t) + kRow * (head_dim * p + i),
                pair(_mm512_mul_ps(even, 2 * i < head_dim ? inverse[0] : inverse[1]),
                     _mm512_mul_ps(odd, 2 * i + 1 < head_dim ? inverse[0] : inverse[1])));
        }
      }
    }
  }

  TNT_INLINE void proj_product() const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      product(s.dim_tiles(), dim_sums(t),
              MultiplyWeights(weights(in_packed().proj), mixed(t), s.dim_steps()));
    }
  }

  // mid = x + drop_path * proj, and its LayerNorm.
  TNT_INLINE void add_attention(int u, int t, __m512 drop_path) const {
    Norm norm;
    for (int i = 0; i < s.dim() / 2; ++i) {
      const __m512i x = load_bits(x_pairs(u, t) + kRow * i);
      const char* proj = dim_sums(t) + kRow * 2 * i;
      char* rows = mid(u, t) + kRow * 2 * i;
      const __m512 even = _mm512_fmadd_ps(load(proj), drop_path, even_of(x));
      const __m512 odd = _mm512_fmadd_ps(load(proj + kRow), drop_path, odd_of(x));
      store(rows, even);
      store(rows + kRow, odd);
      norm.add(even, odd);
    }
    norm2(u, t, norm);
  }

  // ---- MLP ----

  TNT_INLINE void norm2(int u, int t, Norm& norm) const {
    norm.finish(s.dim(), eps);
    for (int i = 0; i < s.dim() / 2; ++i) {
      const char* rows = mid(u, t) + kRow * 2 * i;
      store(normed2(u, t) + kRow * i, norm(load(rows), load(rows + kRow)));
    }
  }

  // For inner_mlp alone: mid = x, and its LayerNorm.
  TNT_INLINE void read_mid(int u, int t, const BFloat16* x) const {
    Norm norm;
    for (int channel = 0; channel < s.dim(); channel += 8) {
      __m512i r[4];
      load_transposed(x, s.dim(), channel, r);
      for (int i = 0; i < 4 && channel + 2 * i < s.dim(); ++i) {
        char* rows = mid(u, t) + kRow * (channel + 2 * i);
        store(rows, even_of(r[i]));
        store(rows + kRow, odd_of(r[i]));
        norm.add(even_of(r[i]), odd_of(r[i]));
      }
    }
    norm2(u, t, norm);
  }

  TNT_INLINE void write_mid(int u, int t, BFloat16* y) const {
    for (int channel = 0; channel < s.dim(); channel += 8) {
      __m512i r[4] = {};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if (channel + 2 * i >= s.dim()) break;
        const char* rows = mid(u, t) + kRow * (channel + 2 * i);
        r[i] = pair_rounded(load(rows), load(rows + kRow));
      }
      store_transposed(y, s.dim(), channel, r);
    }
  }

  TNT_INLINE void fc1_product(int u) const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      product(s.hidden_tiles(), hidden_sums(t),
              MultiplyWeights(weights(in_packed().fc1), normed2(u, t), s.dim_steps()));
    }
  }

  TNT_INLINE void activate() const {
    const Gelu gelu;
    for (int t = 0; t < s.unit_tiles(); ++t) {
      for (int i = 0; i < s.hidden_pairs(); ++i) {
        const char* rows = hidden_sums(t) + kRow * 2 * i;
        store(hidden(t) + kRow * i, pair(gelu(load(rows)), gelu(load(rows + kRow))));
      }
    }
  }

  TNT_INLINE void fc2_product() const {
    for (int t = 0; t < s.unit_tiles(); ++t) {
      product(s.dim_tiles(), dim_sums(t),
              MultiplyWeights(weights(in_packed().fc2), hidden(t), s.hidden_steps()));
    }
  }

  // y = mid + drop_path * (fc2 + bias)
  TNT_INLINE void add_mlp(int u, int t, __m512 drop_path, BFloat16* y) const {
    const float* bias = reinterpret_cast<const float*>(weights(in_packed().fc2_bias));
    for (int channel = 0; channel < s.dim(); channel += 8) {
      __m512i r[4] = {};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int even = channel + 2 * i, odd = even + 1;
        if (even >= s.dim()) break;
        r[i] = pair_rounded(mlp_row(u, t, even, bias[even], drop_path),
                            mlp_row(u, t, odd, bias[odd], drop_path));
      }
      store_transposed(y, s.dim(), channel, r);
    }
  }
  TNT_INLINE __m512 mlp_row(int u, int t, int channel, float bias, __m512 drop_path) const {
    const __m512 fc2 = _mm512_add_ps(load(dim_sums(t) + kRow * channel), _mm512_set1_ps(bias));
    return _mm512_fmadd_ps(fc2, drop_path, load(mid(u, t) + kRow * channel));
  }
};

}  // namespace tnt_kernels::cpu::amx
