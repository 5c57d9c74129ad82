// Packs the fp32 weights of an inner block for inner_block_amx.h: bf16 tiles of 16 outputs x 32
// inputs, with LayerNorm's weight and bias, the softmax scale and the GELU's unit folded in.
#pragma once

#include "cpu/inner_block.h"
#include "cpu/kernels/inner_block_amx_vec.h"

namespace tnt_kernels::cpu::amx {

TNT_INLINE uint16_t to_bfloat16(float a) {
  const __m128bh bits = _mm_cvtneps_pbh(_mm_set_ss(a));
  return _mm_extract_epi16(reinterpret_cast<const __m128i&>(bits), 0);
}
TNT_INLINE float from_bfloat16(uint16_t a) {
  const uint32_t bits = uint32_t{a} << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

TNT_INLINE __mmask16 first(int count) { return count < 16 ? (1u << count) - 1 : 0xFFFF; }

// One matrix of `inputs` columns, whose input is a LayerNorm with this weight and bias, or has
// none.
struct Packer {
  char* tiles;
  int inputs, steps;
  const float *norm_weight, *norm_bias;

  TNT_INLINE uint16_t* at(int row, int input) const {
    char* tile = tiles + kTile * (row / 16 * steps + input / 32);
    return reinterpret_cast<uint16_t*>(tile + kRow * (row % 16)) + input % 32;
  }

  // Writes output `row`: scale * (w * norm_weight).
  TNT_INLINE void pack(int row, const float* w, float scale) const {
    for (int i = 0; i < inputs; i += 16) {
      const __mmask16 some = first(inputs - i);
      __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, w + i), _mm512_set1_ps(scale));
      if (norm_weight != nullptr) {
        value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, norm_weight + i));
      }
      const __m256bh bits = _mm512_cvtneps_pbh(value);
      _mm256_mask_storeu_epi16(at(row, i), some, reinterpret_cast<const __m256i&>(bits));
    }
  }

  // The bias of an output, that of the LayerNorm included.
  TNT_INLINE float bias(const float* w, float b) const {
    __m512 dot = _mm512_setzero_ps();
    for (int i = 0; i < inputs && norm_bias != nullptr; i += 16) {
      const __mmask16 some = first(inputs - i);
      dot = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, w + i),
                            _mm512_maskz_loadu_ps(some, norm_bias + i), dot);
    }
    return b + _mm512_reduce_add_ps(dot);
  }

  // Writes the bias of output `row` to the inputs that are 1, as the sum of two bf16 numbers.
  TNT_INLINE void pack_bias(int row, float value) const {
    const uint16_t high = to_bfloat16(value);
    *at(row, inputs) = high;
    *at(row, inputs + 1) = to_bfloat16(value - from_bfloat16(high));
  }

  // The product of two rows of weights, those of the LayerNorm included.
  TNT_INLINE float dot(const float* a, const float* b) const {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < inputs; i += 16) {
      const __mmask16 some = first(inputs - i);
      const __m512 norm = _mm512_maskz_loadu_ps(some, norm_weight + i);
      sum = _mm512_fmadd_ps(_mm512_mul_ps(norm, _mm512_maskz_loadu_ps(some, a + i)),
                            _mm512_mul_ps(norm, _mm512_maskz_loadu_ps(some, b + i)), sum);
    }
    return _mm512_reduce_add_ps(sum);
  }
};

// The largest that |q . k| of one head can be. A LayerNorm without weight and bias has length
// sqrt(C) at most; with z and z' such, q . k is (Wq z + a) . (Wk z' + b), and Wq' Wk has the norm
// sqrt(sum of Gq * Gk), G = W W', at most.
template <class S>
TNT_INLINE float largest_score(S s, const InnerWeights& w, const Packer& qkv, int head) {
  const int dim = s.dim();
  float product = 0, weights[2] = {}, biases[2] = {};
  for (int i = 0; i < s.head_dim(); ++i) {
    const int channel = head * s.head_dim() + i;
    const float* rows[2] = {w.qk_weight + int64_t{channel} * dim,
                            w.qk_weight + int64_t{channel + dim} * dim};
    for (int part = 0; part < 2; ++part) {  // q, k
      const float b = w.qk_bias == nullptr ? 0 : w.qk_bias[channel + part * dim];
      const float bias = qkv.bias(rows[part], b);
      weights[part] += qkv.dot(rows[part], rows[part]);
      biases[part] += bias * bias;
    }
    for (int j = 0; j <= i; ++j) {
      const int64_t back = int64_t{i - j} * dim;
      product +=
          (j < i ? 2 : 1) * qkv.dot(rows[0], rows[0] - back) * qkv.dot(rows[1], rows[1] - back);
    }
  }
  const float cross =
      __builtin_sqrtf(weights[0] * biases[1]) + __builtin_sqrtf(weights[1] * biases[0]);
  return dim * __builtin_sqrtf(product) + __builtin_sqrtf(dim) * cross +
         __builtin_sqrtf(biases[0] * biases[1]);
}

template <class S>
TNT_INLINE void pack_attention(S s, const InnerWeights& w, char* packed) {
  const PackedLayout layout(s);
  const int dim = s.dim(), head_dim = s.head_dim();
  const Packer qkv{packed + layout.qkv, dim, s.dim_steps(), w.norm1_weight, w.norm1_bias};
  const float scale = 1.44269504f / __builtin_sqrtf(head_dim);  // the exponential's base is 2
  bool bounded = true;
  for (int head = 0; head < s.heads(); ++head) {
    bounded &= scale * largest_score(s, w, qkv, head) <= kScoreBound;  // false for a NaN
  }
  reinterpret_cast<PackedHeader*>(packed + layout.header)->bounded_scores = bounded;

  const float part_scale[2] = {(bounded ? kScoreUnits : 1) * scale * kCentred, kCentred};
  for (int channel = 0; channel < 2 * dim; ++channel) {
    const int part = channel / dim, head = channel % dim / head_dim;
    const int row = (part * s.heads() + head) * s.head_rows() + channel % head_dim;
    const float* weight = w.qk_weight + int64_t{channel} * dim;
    qkv.pack(row, weight, part_scale[part]);
    qkv.pack_bias(
        row, part_scale[part] * qkv.bias(weight, w.qk_bias == nullptr ? 0 : w.qk_bias[channel]));
  }
  const Packer proj{packed + layout.proj, dim, s.dim_steps(), nullptr, nullptr};
  for (int channel = 0; channel < dim; ++channel) {
    const int64_t row = int64_t{channel} * dim;
    qkv.pack(s.v_row() + channel, w.v_weight + row, kCentred);
    qkv.pack_bias(
        s.v_row() + channel,
        kCentred * qkv.bias(w.v_weight + row, w.v_bias == nullptr ? 0 : w.v_bias[channel]));
    proj.pack(channel, w.proj_weight + row, 1);
    proj.pack_bias(channel, w.proj_bias[channel]);
  }
}

template <class S>
TNT_INLINE void pack_mlp(S s, const InnerWeights& w, char* packed) {
  const PackedLayout layout(s);
  const Packer fc1{packed + layout.fc1, s.dim(), s.dim_steps(), w.norm2_weight, w.norm2_bias};
  const Packer fc2{packed + layout.fc2, s.hidden(), s.hidden_steps(), nullptr, nullptr};
  const float scale = static_cast<float>(1 / kGeluUnit);
  for (int i = 0; i < s.hidden(); ++i) {
    const float* weight = w.fc1_weight + int64_t{i} * s.dim();
    fc1.pack(i, weight, scale);
    fc1.pack_bias(i, scale * fc1.bias(weight, w.fc1_bias[i]));
  }
  float* fc2_bias = reinterpret_cast<float*>(packed + layout.fc2_bias);
  for (int i = 0; i < s.dim(); ++i) {
    fc2.pack(i, w.fc2_weight + int64_t{i} * s.hidden(), 1);
    fc2_bias[i] = w.fc2_bias[i] == w.fc2_bias[i] ? w.fc2_bias[i] : __builtin_nanf("");
  }
}

template <class S>
TNT_INLINE void pack(S s, const InnerCall& call, char* packed) {
  __builtin_memset(packed, 0, PackedLayout(s).bytes);
  if (call.has_attention) pack_attention(s, call.weights, packed);
  if (call.has_mlp) pack_mlp(s, call.weights, packed);
}

}  // namespace tnt_kernels::cpu::amx
