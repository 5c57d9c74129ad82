// Forward of the inner block (Eqs. 6 and 7) for bf16 activations on AMX.
#pragma once

#include "cpu/kernels/inner_block_amx_stages.h"

namespace tnt_kernels::cpu::amx {

// Runs a range of sequences of a call.
template <class S>
struct Runner {
  const InnerCall& call;
  Stages<S> stage;
  S s;

  TNT_INLINE int64_t tile_offset(int64_t sequence, int t) const {
    return (sequence * s.tokens() + int64_t{16} * t) * s.dim();
  }

  // Factors of the branch, for each token of a unit.
  TNT_INLINE __m512 drop_path(const float* factors, int64_t sequence, int64_t end) const {
    if (factors == nullptr) return _mm512_set1_ps(1);
    __m512 result = _mm512_set1_ps(factors[sequence]);
    for (int i = 1; i < s.unit_sequences() && sequence + i < end; ++i) {
      const __mmask16 tokens = 0xFFFF << i * s.tokens();
      result = _mm512_mask_mov_ps(result, tokens, _mm512_set1_ps(factors[sequence + i]));
    }
    // no other NaN than the one that survives rounding to bf16 by addition
    const __mmask16 nan = _mm512_cmp_ps_mask(result, result, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(result, nan, _mm512_set1_ps(__builtin_nanf("")));
  }

  // A full tile of tokens, or a copy of what there is.
  TNT_INLINE const BFloat16* input(int64_t sequence, int64_t end, int t) const {
    const BFloat16* x = static_cast<const BFloat16*>(call.x) + tile_offset(sequence, t);
    if (end - sequence >= s.unit_sequences()) return x;
    char* copy = stage.at(stage.in_scratch().staging);
    const int64_t bytes = (end - sequence) * s.tokens() * s.dim() * sizeof(BFloat16);
    __builtin_memset(copy, 0, 16 * s.dim() * sizeof(BFloat16));
    __builtin_memcpy(copy, x, bytes);
    return reinterpret_cast<const BFloat16*>(copy);
  }
  template <class Write>
  TNT_INLINE void output(void* target, int64_t sequence, int64_t end, int t, Write write) const {
    BFloat16* y = static_cast<BFloat16*>(target) + tile_offset(sequence, t);
    if (end - sequence >= s.unit_sequences()) return write(y);
    char* copy = stage.at(stage.in_scratch().staging);
    write(reinterpret_cast<BFloat16*>(copy));
    __builtin_memcpy(y, copy, (end - sequence) * s.tokens() * s.dim() * sizeof(BFloat16));
  }

  // Units one after the other, each stage of a unit in the iteration after that of the stage
  // before. Products and arithmetic of an iteration are of different units, so that they can
  // overlap. Returns the units with tokens that are not finite.
  TNT_INLINE uint32_t attention(int64_t begin, int64_t end, int units) const {
    uint32_t not_finite = 0;
    for (int i = 0; i < units + 4; ++i) {
      const auto runs = [&](int u) { return u >= 0 && u < units; };
      if (runs(i - 2)) stage.score_product();
      if (runs(i - 1)) stage.qkv_product();
      if (runs(i - 3)) stage.value_product(i - 3);
      if (runs(i - 2)) stage.exponentials(i - 2);
      if (runs(i - 4)) stage.proj_product();
      if (runs(i - 1)) stage.split_qkv(i - 1);
      if (runs(i - 3)) stage.divide_by_sums();
      if (runs(i)) {
        const int64_t sequence = begin + int64_t{i} * s.unit_sequences();
        for (int t = 0; t < s.unit_tiles(); ++t) {
          const __mmask16 finite = stage.norm1(i, t, input(sequence, end, t));
          not_finite |= uint32_t{finite != 0xFFFF} << i;
        }
      }
      if (runs(i - 4)) {
        const int64_t sequence = begin + int64_t{i - 4} * s.unit_sequences();
        const __m512 factors = drop_path(call.drop_path_attn, sequence, end);
        for (int t = 0; t < s.unit_tiles(); ++t) {
          stage.add_attention(i - 4, t, factors);
          void* target = call.has_mlp ? call.mid : call.out;
          if (target == nullptr) continue;
          output(target, sequence, end, t, [&](BFloat16* y) { stage.write_mid(i - 4, t, y); });
        }
      }
    }
    return not_finite;
  }

  TNT_INLINE void mlp(int64_t begin, int64_t end, int units) const {
    for (int i = 0; i < units + 1; ++i) {
      if (i < units) stage.fc1_product(i);
      if (i > 0) {
        stage.fc2_product();
        const int64_t sequence = begin + int64_t{i - 1} * s.unit_sequences();
        const __m512 factors = drop_path(call.drop_path_mlp, sequence, end);
        for (int t = 0; t < s.unit_tiles(); ++t) {
          output(call.out, sequence, end, t,
                 [&](BFloat16* y) { stage.add_mlp(i - 1, t, factors, y); });
        }
      }
      if (i < units) stage.activate();
    }
  }

  // Sequences [begin, end), as many as a block has room for.
  TNT_INLINE uint32_t block(int64_t begin, int64_t end) const {
    const int units = (end - begin + s.unit_sequences() - 1) / s.unit_sequences();
    uint32_t not_finite = 0;
    if (call.has_attention) {
      not_finite = attention(begin, end, units);
    } else {
      for (int u = 0; u < units; ++u) {
        const int64_t sequence = begin + int64_t{u} * s.unit_sequences();
        for (int t = 0; t < s.unit_tiles(); ++t) stage.read_mid(u, t, input(sequence, end, t));
      }
    }
    if (call.has_mlp) mlp(begin, end, units);
    return not_finite;
  }

  // Where a tile holds several sequences, 0 * NaN would carry a NaN from one to the others: a
  // sequence with one is run again alone, and so are its neighbours.
  TNT_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t step = int64_t{s.block_units()} * s.unit_sequences();
    for (int64_t first = begin; first < end; first += step) {
      const int64_t last = end - first < step ? end : first + step;
      uint32_t not_finite = block(first, last);
      if (s.unit_sequences() == 1) continue;
      for (int u = 0; not_finite != 0; ++u, not_finite >>= 1) {
        if (not_finite % 2 == 0) continue;
        for (int i = 0; i < s.unit_sequences(); ++i) {
          const int64_t sequence = first + int64_t{u} * s.unit_sequences() + i;
          if (sequence < last) block(sequence, sequence + 1);
        }
      }
    }
  }
};

template <class S>
TNT_INLINE void run(S s, const InnerCall& call, int64_t begin, int64_t end, const char* packed,
                    char* scratch) {
  const Stages<S> stage{s, packed, scratch, call.eps};
  stage.prefill();
  configure_tiles();
  Runner<S>{call, stage, s}.run(begin, end);
  tile_release();
}

}  // namespace tnt_kernels::cpu::amx
