// Packs the weights of the inner block into the fragments that its backward kernels read, with the
// LayerNorms' affine parts and the softmax's scale folded in. One thread packs one unit, or one
// bias, of one lane.
#pragma once

#include "cuda/inner_block/backward_config.cuh"
#include "cuda/inner_block/pack.cuh"

namespace tnt_kernels::cuda {

// Gradients of q and k, as attention_backward.cuh has them, to those with respect to the outputs of
// their linear layers: with s = q k / sqrt(head_dim), dq = ds k / sqrt(head_dim), dk = ds q /
// sqrt(head_dim), while k is multiplied by ds alone and q carries log2(e) / sqrt(head_dim).
TNT_DEVICE float query_grad_scale(int head_dim) {
  return rsqrt_approx(static_cast<float>(head_dim));
}
constexpr float kKeyGradScale = 0.69314718f;

template <class Config>
TNT_DEVICE void store_packed(uint32_t* packed, int word, int lane, uint32_t bits) {
  packed[(word / 4 * 32 + lane) * 4 + word % 4] = bits;
}

template <class Config>
TNT_DEVICE void store_packed(uint32_t* packed, int word, int lane, const FloatPair& pair) {
  const typename Config::Math::Unit unit = Config::Math::unit(pair.lo, pair.hi);
  for (int i = 0; i < Config::kUnitWords; ++i) {
    store_packed<Config>(packed, word + i, lane, unit.w[i]);
  }
}

template <class Config>
TNT_DEVICE void inner_mlp_bwd_pack_body(const PackParams& params) {
  constexpr int kInputs = Config::kInputs, kEven = Config::kEven;
  constexpr int kUnits = 4 * kInputs, kItems = kUnits + 4 + 2 * kInputs;
  const NormedLinear fc1 = {params.norm2_weight, params.norm2_bias, params.fc1_weight,
                            params.fc1_bias, 1.0f};
  const auto is_pad = [](int hidden, int channel) {
    return hidden >= Config::kHidden || channel >= Config::kDim;
  };
  // Of fc1 or fc2^T: hidden units are rows.
  const auto element = [&](int chunk, int unit, int row, int column) {
    const bool is_odd = unit >= 4 * kEven;
    const int in_part = is_odd ? unit - 4 * kEven : unit, part = is_odd ? 2 : 2 * kEven;
    const int hidden = 16 * chunk + 8 * (in_part % 2) + row;
    const int tile = (is_odd ? kEven : 0) + in_part % part / 2;
    const int channel = Config::Row::channel(tile, column);
    if (is_pad(hidden, channel)) return 0.0f;
    return in_part < part ? fc1.at(hidden, channel) : weight_at(params.fc2_weight, channel, hidden);
  };
  // Of fc1^T: channels are rows.
  const auto transposed = [&](int chunk, int unit, int row, int column) {
    const int hidden = 16 * chunk + 8 * (unit % 2) + column;
    const int channel = Config::Row::channel(unit / 2, row);
    return is_pad(hidden, channel) ? 0.0f : fc1.at(hidden, channel);
  };
  for (int i = block_id() * block_threads() + thread_id(); i < 32 * Config::kChunks * kItems;
       i += num_blocks() * block_threads()) {
    const int lane = i % 32, chunk = i / 32 / kItems, item = i / 32 % kItems;
    const int g = lane / 4, column = lane % 4 * 2;
    const int word = chunk * Config::kChunkWords;
    if (item < kUnits) {
      store_packed<Config>(
          params.packed, word + item * Config::kUnitWords, lane,
          FloatPair{element(chunk, item, g, column), element(chunk, item, g, column + 1)});
    } else if (item < kUnits + 4) {
      const int index = item - kUnits, hidden = 16 * chunk + index / 2 * 8 + g;
      const float bias = hidden < Config::kHidden ? fc1.bias_at(hidden, Config::kDim) : 0.0f;
      store_packed<Config>(params.packed, word + Config::kBiasWord + index, lane, as_word(bias));
    } else {
      const int unit = item - kUnits - 4;
      store_packed<Config>(
          params.packed, word + Config::kTransposedWord + unit * Config::kUnitWords, lane,
          FloatPair{transposed(chunk, unit, g, column), transposed(chunk, unit, g, column + 1)});
    }
  }
}

template <class Config>
TNT_DEVICE void inner_attention_bwd_pack_body(const PackParams& params) {
  using Linear = typename Config::Linear;
  constexpr int kGroups = Config::kGroups, kDim = Config::kDim;
  constexpr int kUnits = 4 * Linear::kUnits, kTransposed = 3 * Config::kTransposedUnits;
  constexpr int kItems = kUnits + kTransposed + 2 * kGroups;
  const auto linear = [&](int matrix, float scale) {  // q, k, v
    const bool is_v = matrix == 2;
    return NormedLinear{params.norm1_weight, params.norm1_bias,
                        is_v ? params.v_weight : params.qk_weight,
                        is_v ? params.v_bias : params.qk_bias, scale};
  };
  // Row of q that is feature `index` of a step's group; kDim for a pad.
  const auto feature = [](int step, int group, int index) {
    const int in_head = group % Config::kHeadGroups * 8 + index;
    const int head = step * Config::kStepHeads + group / Config::kHeadGroups;
    return group < kGroups && in_head < Config::kHeadDim ? head * Config::kHeadDim + in_head : kDim;
  };
  // Of q, k, v or proj^T: features are rows.
  const auto element = [&](int step, int unit, int row, int column) {
    const int matrix = unit / Linear::kUnits;
    const auto place = Linear::place(unit % Linear::kUnits);
    if (place.input == Linear::Block::kFill) return 0.0f;
    const int weight_row = feature(step, place.group, row);
    const int channel = Config::Row::channel(place.input, column);
    if (weight_row >= kDim || channel >= kDim) return 0.0f;
    if (matrix == 3) return weight_at(params.proj_weight, channel, weight_row);
    const float scale = matrix == 0 ? Config::kSoftmaxScale : 1.0f;
    return linear(matrix, scale).at((matrix == 1 ? kDim : 0) + weight_row, channel);
  };
  // Of q^T, k^T or v^T: channels are rows.
  const auto transposed = [&](int step, int unit, int row, int column) {
    const int matrix = unit / Config::kTransposedUnits, index = unit % Config::kTransposedUnits;
    const int weight_row = feature(step, index % kGroups, column);
    const int channel = Config::Row::channel(index / kGroups, row);
    if (weight_row >= kDim || channel >= kDim) return 0.0f;
    const float scale = matrix == 0   ? query_grad_scale(Config::kHeadDim)
                        : matrix == 1 ? kKeyGradScale
                                      : 1.0f;
    return linear(matrix, scale).at((matrix == 1 ? kDim : 0) + weight_row, channel);
  };
  for (int i = block_id() * block_threads() + thread_id(); i < 32 * Config::kSteps * kItems;
       i += num_blocks() * block_threads()) {
    const int lane = i % 32, step = i / 32 / kItems, item = i / 32 % kItems;
    const int g = lane / 4, column = lane % 4 * 2;
    const int word = step * Config::kStepWords;
    if (item < kUnits) {
      store_packed<Config>(
          params.packed, word + item * Config::kUnitWords, lane,
          FloatPair{element(step, item, g, column), element(step, item, g, column + 1)});
    } else if (item < kUnits + kTransposed) {
      const int unit = item - kUnits;
      store_packed<Config>(
          params.packed, word + Config::kTransposedWord + unit * Config::kUnitWords, lane,
          FloatPair{transposed(step, unit, g, column), transposed(step, unit, g, column + 1)});
    } else {
      const int index = item - kUnits - kTransposed;
      const int row = feature(step, index / 2, column + index % 2);
      const float bias = row < kDim ? linear(0, Config::kSoftmaxScale).bias_at(row, kDim) : 0.0f;
      store_packed<Config>(params.packed, word + Config::kBiasWord + index, lane, as_word(bias));
    }
  }
}

}  // namespace tnt_kernels::cuda
