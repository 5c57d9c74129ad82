// The inner block (Eqs. 6-7) for bf16 tensors whose weights could leave the range of fp16: in fp32
// throughout, from the weights as they are. A block takes a patch at a time, a thread one element
// of each stage. No trained model comes here; it is right, and many times slower.
#pragma once

#include "cuda/inner_block/config.cuh"
#include "cuda/tile/block.cuh"
#include "cuda/tile/weights.cuh"

namespace tnt_kernels::cuda {

template <class Config>
class WideRangePatch {
  static constexpr int kTokens = Config::kTokens, kDim = Config::kDim, kHidden = Config::kHidden;
  static constexpr int kSize = kTokens * kDim, kHeadDim = Config::kHeadDim;

 public:
  // x (S, C), what is read by the next product (S, C), and q, k, v (3, S, C) or hidden (S, 4C).
  TNT_DEVICE WideRangePatch(const ForwardParams& params, float* shared)
      : params_(params), x_(shared), a_(x_ + kSize), b_(a_ + kSize) {}

  TNT_DEVICE void load(int64_t patch) {
    const uint16_t* x = static_cast<const uint16_t*>(params_.x) + patch * kSize;
    block_for_each(kSize, [&](int i) { x_[i] = unpack_bf16(load_half_word(x + i)).lo; });
  }

  TNT_DEVICE void store(void* y, int64_t patch) const {
    uint16_t* to = static_cast<uint16_t*>(y) + patch * kSize;
    block_for_each(kSize, [&](int i) { store_half_word(to + i, pack_bf16(x_[i], x_[i])); });
  }

  // x += factor * proj(MSA(LN(x)))
  TNT_DEVICE void attention_half(float factor) {
    const PackParams& w = params_.unpacked;
    layer_norm(w.norm1_weight, w.norm1_bias);
    float *q = b_, *k = q + kSize, *v = k + kSize;
    block_for_each(3 * kSize, [&](int i) {
      const int token = i / kDim % kTokens, feature = i % kDim, which = i / kSize;
      const float* row = a_ + token * kDim;
      b_[i] = which == 2 ? linear(w.v_weight, w.v_bias, feature, row, kDim)
                         : linear(w.qk_weight, w.qk_bias, which * kDim + feature, row, kDim);
    });
    block_for_each(kSize, [&](int i) {
      const int first = i % kDim / kHeadDim * kHeadDim;  // of the feature's head
      a_[i] = attend(q + i / kDim * kDim + first, k + first, v + i % kDim);
    });
    block_for_each(kSize, [&](int i) {
      const float* row = a_ + i / kDim * kDim;
      x_[i] = fma_f32(factor, linear(w.proj_weight, w.proj_bias, i % kDim, row, kDim), x_[i]);
    });
  }

  // x += factor * fc2(GELU(fc1(LN(x))))
  TNT_DEVICE void mlp_half(float factor) {
    const PackParams& w = params_.unpacked;
    layer_norm(w.norm2_weight, w.norm2_bias);
    block_for_each(kTokens * kHidden, [&](int i) {
      const float* row = a_ + i / kHidden * kDim;
      const float hidden = linear(w.fc1_weight, w.fc1_bias, i % kHidden, row, kDim);
      b_[i] = 0.5f * hidden * (1.0f + erf_f32(hidden * 0.70710678f));
    });
    block_for_each(kSize, [&](int i) {
      const float* row = b_ + i / kDim * kHidden;
      x_[i] = fma_f32(factor, linear(w.fc2_weight, w.fc2_bias, i % kDim, row, kHidden), x_[i]);
    });
  }

 private:
  TNT_DEVICE void layer_norm(const WeightView& weight, const WeightView& bias) {
    block_for_each(kTokens, [&](int token) {
      const float* x = x_ + token * kDim;
      float sum = 0, squares = 0;
#pragma unroll 1
      for (int c = 0; c < kDim; ++c) sum += x[c];
      const float mean = sum * (1.0f / kDim);
#pragma unroll 1
      for (int c = 0; c < kDim; ++c) squares = fma_f32(x[c] - mean, x[c] - mean, squares);
      const float rstd = rsqrt_approx(fma_f32(squares, 1.0f / kDim, params_.eps));
#pragma unroll 1
      for (int c = 0; c < kDim; ++c) {
        const float normed = (x[c] - mean) * rstd;
        a_[token * kDim + c] = fma_f32(normed, weight_at(weight, c), weight_at(bias, c));
      }
    });
  }

  static TNT_DEVICE float linear(const WeightView& weight, const WeightView& bias, int row,
                                 const float* x, int count) {
    float sum = bias.data == nullptr ? 0.0f : weight_at(bias, row);
#pragma unroll 1
    for (int c = 0; c < count; ++c) sum = fma_f32(weight_at(weight, row, c), x[c], sum);
    return sum;
  }

  // One feature of softmax(q k^T) v; keys and values are rows of kDim apart.
  static TNT_DEVICE float attend(const float* q, const float* k, const float* v) {
    float largest = as_float(0xff800000u), sum = 0, mixed = 0;
#pragma unroll 1
    for (int key = 0; key < kTokens; ++key) {
      largest = max_f32(largest, score(q, k + key * kDim));
    }
#pragma unroll 1
    for (int key = 0; key < kTokens; ++key) {
      const float p = exp2_approx(score(q, k + key * kDim) - largest);
      sum += p;
      mixed = fma_f32(p, v[key * kDim], mixed);
    }
    return mixed / sum;
  }

  static TNT_DEVICE float score(const float* q, const float* k) {
    float sum = 0;
#pragma unroll 1
    for (int c = 0; c < kHeadDim; ++c) sum = fma_f32(q[c], k[c], sum);
    return sum * Config::kSoftmaxScale;
  }

  const ForwardParams& params_;
  float *x_, *a_, *b_;
};

template <class Config>
TNT_DEVICE void wide_range_fwd_body(const ForwardParams& params) {
  WideRangePatch<Config> block(params, reinterpret_cast<float*>(dynamic_shared()));
  for (int64_t patch = block_id(); patch < params.num_patches; patch += num_blocks()) {
    const auto factor = [&](const float* drop_path) {
      return drop_path == nullptr ? 1.0f : load_float(drop_path + patch);
    };
    block.load(patch);
    if (params.has_attention) {
      block.attention_half(factor(params.drop_path_attn));
      if (params.mid != nullptr) block.store(params.mid, patch);
    }
    if (params.has_mlp) block.mlp_half(factor(params.drop_path_mlp));
    block.store(params.out, patch);
  }
}

}  // namespace tnt_kernels::cuda
