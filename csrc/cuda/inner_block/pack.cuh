// Packs the weights of the inner block into the fragments that its kernels read, and folds into
// them what need not be done per token: the LayerNorms' affine parts, the softmax scale with
// log2(e) and, where a head has a pad feature, the bias of proj. One thread packs one unit of one
// lane.
#pragma once

#include "cuda/inner_block/config.cuh"
#include "cuda/tile/weights.cuh"

namespace tnt_kernels::cuda {

// A linear layer behind a LayerNorm: its rows scaled by the norm's weight, its bias with the
// norm's.
struct NormedLinear {
  const WeightView &norm_weight, &norm_bias, &weight, &bias;
  float scale;
  // So many rows on there is a bias that products leave out, unless it is NaN or infinite.
  int left_out = 0;

  TNT_DEVICE float at(int row, int channel) const {
    return scale * (weight_at(weight, row, channel) * weight_at(norm_weight, channel));
  }

  TNT_DEVICE float bias_at(int row, int num_channels) const {
    float sum = bias.data == nullptr ? 0.0f : weight_at(bias, row);
    if (bias.data != nullptr && left_out > 0) {
      sum = fma_f32(0.0f, weight_at(bias, row + left_out), sum);
    }
#pragma unroll 1
    for (int c = 0; c < num_channels; ++c)
      sum = fma_f32(weight_at(weight, row, c), weight_at(norm_bias, c), sum);
    return scale * sum;
  }
};

template <class Config>
TNT_DEVICE NormedLinear query_linear(const PackParams& p) {
  constexpr float kScale = Config::kSoftmaxScale;
  return {p.norm1_weight, p.norm1_bias, p.qk_weight, p.qk_bias, kScale, Config::kDim};
}

template <class Config>
struct Packer {
  using Math = typename Config::Math;
  static constexpr int kDim = Config::kDim, kInputs = Config::kInputs;
  static constexpr int kNone = -1;  // the row of a pad feature

  const PackParams& params;
  int lane;

  TNT_DEVICE int g() const { return lane / 4; }
  TNT_DEVICE int column() const { return lane % 4 * 2; }

  // Feature `index` of a step's group as a row of the weights: kNone for a pad.
  static TNT_DEVICE int feature(int step, int group, int index) {
    if (group >= Config::kGroups) return kNone;
    const int head = step * Config::kStepHeads + group / Config::kHeadGroups;
    const int in_head = group % Config::kHeadGroups * 8 + index;
    return in_head < Config::kHeadDim ? head * Config::kHeadDim + in_head : kNone;
  }

  // Whether it is the pad that is 1 in every value, and of which head.
  static TNT_DEVICE bool is_one(int group, int index) {
    return Config::kPadCarriesBias && group < Config::kGroups &&
           group % Config::kHeadGroups * 8 + index == Config::kHeadDim;
  }

  // Input channels 2t, 2t + 1 of a group of the row that is output feature `row`.
  TNT_DEVICE FloatPair normed_pair(const NormedLinear& linear, int row, int input) const {
    return {normed_element(linear, row, input, 0), normed_element(linear, row, input, 1)};
  }

  TNT_DEVICE float normed_element(const NormedLinear& linear, int row, int input, int i) const {
    const int channel = Config::Row::channel(input, column() + i);
    return row == kNone || channel >= kDim ? 0.0f : linear.at(row, channel);
  }

  // `rows(group, index)` is the weight's row of an output feature.
  template <class Layout, class Rows>
  TNT_DEVICE FloatPair linear_unit(const NormedLinear& linear, int unit, const Rows& rows) const {
    const auto place = Layout::place(unit);
    if (place.input == Layout::Block::kFill) return {0.0f, 0.0f};
    if (place.input != Layout::Block::kBias) {
      return normed_pair(linear, rows(place.group, g()), place.input);
    }
    const int lo = rows(place.group, column()), hi = rows(place.group, column() + 1);
    return {lo == kNone ? 0.0f : linear.bias_at(lo, kDim),
            hi == kNone ? 0.0f : linear.bias_at(hi, kDim)};
  }

  TNT_DEVICE FloatPair attention_unit(int step, int unit) const {
    const PackParams& p = params;
    constexpr int kQ = Config::QueryLayout::kUnits, kK = Config::KeyLayout::kUnits;
    if (unit < kQ) {
      return linear_unit<typename Config::QueryLayout>(
          query_linear<Config>(p), unit,
          [&](int group, int index) { return feature(step, group, index); });
    }
    unit -= kQ;
    if (unit < kK) {
      const NormedLinear k = {p.norm1_weight, p.norm1_bias, p.qk_weight, p.qk_bias, 1.0f};
      return linear_unit<typename Config::KeyLayout>(k, unit, [&](int group, int index) {
        const int row = feature(step, group, index);
        return row == kNone ? kNone : kDim + row;
      });
    }
    unit -= kK;
    if (unit < Config::kValueUnits) return value_unit(step, unit);
    return proj_unit(step, unit - Config::kValueUnits);
  }

  TNT_DEVICE FloatPair value_unit(int step, int unit) const {
    const PackParams& p = params;
    const NormedLinear v = {p.norm1_weight, p.norm1_bias, p.v_weight, p.v_bias, 1.0f};
    constexpr int kUnits = 2 * (kInputs + 1);  // of two groups
    const int group = unit / kUnits * 2 + unit % 2, input = unit % kUnits / 2;
    const int row = feature(step, group, g());
    if (input < kInputs) return normed_pair(v, row, input);
    const float bias = row == kNone ? (is_one(group, g()) ? 1.0f : 0.0f) : v.bias_at(row, kDim);
    return {bias, bias};
  }

  TNT_DEVICE FloatPair proj_unit(int step, int unit) const {
    const int output = Config::Row::channel(unit / Config::kGroups, g());
    const int group = unit % Config::kGroups;
    return {proj_element(step, output, group, column()),
            proj_element(step, output, group, column() + 1)};
  }

  TNT_DEVICE float proj_element(int step, int output, int group, int index) const {
    if (output >= kDim) return 0.0f;
    const int row = feature(step, group, index);
    if (row != kNone) return weight_at(params.proj_weight, output, row);
    // The first head carries the bias, the second what rounding took from it.
    const int head = step * Config::kStepHeads + group / Config::kHeadGroups;
    if (!is_one(group, index) || head > 1) return 0.0f;
    const float bias = weight_at(params.proj_bias, output);
    const float rounded = Math::rounded(bias);
    return head == 0 ? rounded : bias - rounded;
  }

  static TNT_DEVICE int hidden_row(int chunk, int group, int index) {
    const int row = (chunk * Config::kChunkGroups + group) * 8 + index;
    return row < Config::kHidden ? row : kNone;
  }

  TNT_DEVICE FloatPair mlp_unit(int chunk, int unit) const {
    const PackParams& p = params;
    constexpr float kScale = Gelu<Math>::kHiddenScale;
    if (unit < Config::Fc1Layout::kUnits) {
      const NormedLinear fc1 = {p.norm2_weight, p.norm2_bias, p.fc1_weight, p.fc1_bias, kScale};
      return linear_unit<typename Config::Fc1Layout>(
          fc1, unit, [&](int group, int index) { return hidden_row(chunk, group, index); });
    }
    unit -= Config::Fc1Layout::kUnits;
    const int output = Config::Row::channel(unit / Config::kChunkGroups, g());
    const int group = unit % Config::kChunkGroups;
    const int lo = hidden_row(chunk, group, column()), hi = hidden_row(chunk, group, column() + 1);
    return {output >= kDim || lo == kNone ? 0.0f
                                          : weight_at(p.fc2_weight, output, lo) * (1.0f / kScale),
            output >= kDim || hi == kNone ? 0.0f
                                          : weight_at(p.fc2_weight, output, hi) * (1.0f / kScale)};
  }

  TNT_DEVICE void store(int word, uint32_t bits) const {
    params.packed[(word / 4 * 32 + lane) * 4 + word % 4] = bits;
  }

  TNT_DEVICE void store_unit(int word, const FloatPair& pair) const {
    const typename Math::Unit unit = Math::unit(pair.lo, pair.hi);
    for (int i = 0; i < Math::kUnitWords; ++i) store(word + i, unit.w[i]);
  }

  // A bias per output channel in the layout of a fp32 accumulator.
  TNT_DEVICE void store_bias(const WeightView& bias, int first, int index) const {
    const int channel = Config::Row::channel(index / 4, column() + index % 2);
    store(first + index, as_word(channel < kDim ? weight_at(bias, channel) : 0.0f));
  }
};

// Whether every operand and every short sum of the forward stays within fp16: a normed row has
// length sqrt(C), so a feature is at most that times its row's length, plus its bias.
template <class Config>
struct RangeCheck {
  static constexpr int kDim = Config::kDim, kHidden = Config::kHidden;
  static constexpr int kRows = 5 * kDim + kHidden;  // of q, k, v, fc1, proj, fc2
  static constexpr float kLargest = 60000.0f;       // of 65504: sums are rounded on their way
  const PackParams& params;

  // False also for what is not a number.
  TNT_DEVICE bool fits(int row) const {
    const PackParams& p = params;
    constexpr float kScale = Gelu<typename Config::Math>::kHiddenScale;
    if (row < 2 * kDim) {  // k has no bias: see warp_project_qkv
      const bool is_q = row < kDim;
      const NormedLinear k = {p.norm1_weight, p.norm1_bias, p.qk_weight, p.qk_bias, 1.0f};
      const NormedLinear linear = is_q ? query_linear<Config>(p) : k;
      return !p.has_attention || largest_feature(linear, row, is_q) <= kLargest;
    }
    row -= 2 * kDim;
    if (row < kDim) {
      const NormedLinear v = {p.norm1_weight, p.norm1_bias, p.v_weight, p.v_bias, 1.0f};
      return !p.has_attention || largest_feature(v, row, true) <= kLargest;
    }
    row -= kDim;
    if (row < kHidden) {
      const NormedLinear fc1 = {p.norm2_weight, p.norm2_bias, p.fc1_weight, p.fc1_bias, kScale};
      return !p.has_mlp || largest_feature(fc1, row, true) <= kLargest;
    }
    row -= kHidden;
    if (row < kDim) {
      return !p.has_attention || (elements_fit(p.proj_weight, row, kDim, 1.0f) &&
                                  abs_f32(weight_at(p.proj_bias, row)) <= kLargest);
    }
    return !p.has_mlp || elements_fit(p.fc2_weight, row - kDim, kHidden, 1.0f / kScale);
  }

  static TNT_DEVICE float largest_feature(const NormedLinear& linear, int row, bool has_bias) {
    float squares = 0;
#pragma unroll 1
    for (int c = 0; c < kDim; ++c) squares = fma_f32(linear.at(row, c), linear.at(row, c), squares);
    const float bias = has_bias ? abs_f32(linear.bias_at(row, kDim)) : 0.0f;
    return fma_f32(sqrt_f32(squares), sqrt_f32(kDim), bias);
  }

  static TNT_DEVICE bool elements_fit(const WeightView& weight, int row, int count, float scale) {
    bool fits = true;
#pragma unroll 1
    for (int c = 0; c < count; ++c) {
      fits = fits && abs_f32(weight_at(weight, row, c) * scale) <= kLargest;
    }
    return fits;
  }
};

// The word behind the packed weights: 1 where they may leave the range of the operands.
template <class Config>
TNT_DEVICE void block_check_range(const PackParams& params) {
  const RangeCheck<Config> check = {params};
  bool leaves = false;
  for (int row = thread_id(); row < check.kRows; row += block_threads()) {
    leaves = leaves || !check.fits(row);
  }
  leaves = block_any(leaves);
  if (thread_id() == 0) params.packed[Config::kPackedWords] = leaves;
}

template <class Config>
TNT_DEVICE void inner_block_pack_body(const PackParams& params) {
  if constexpr (Config::kMayLeaveRange) {
    if (block_id() == 0) block_check_range<Config>(params);
  }
  constexpr int kUnitWords = Config::Math::kUnitWords;
  constexpr int kStepUnits = Config::kSteps * Config::kStepUnits;
  constexpr int kChunkUnits = Config::kChunks * Config::kChunkUnits;
  constexpr int kItems = kStepUnits + kChunkUnits + 2 * Config::kBiasWords;
  for (int i = block_id() * block_threads() + thread_id(); i < 32 * kItems;
       i += num_blocks() * block_threads()) {
    const Packer<Config> packer = {params, i % 32};
    int item = i / 32;
    if (item < kStepUnits) {
      if (!params.has_attention) continue;
      const int step = item / Config::kStepUnits, unit = item % Config::kStepUnits;
      packer.store_unit(step * Config::kStepWords + unit * kUnitWords,
                        packer.attention_unit(step, unit));
      continue;
    }
    item -= kStepUnits;
    if (item < kChunkUnits) {
      if (!params.has_mlp) continue;
      const int chunk = item / Config::kChunkUnits, unit = item % Config::kChunkUnits;
      packer.store_unit(Config::kFirstChunk + chunk * Config::kChunkWords + unit * kUnitWords,
                        packer.mlp_unit(chunk, unit));
      continue;
    }
    item -= kChunkUnits;
    if (item < Config::kBiasWords) {
      if (params.has_mlp) packer.store_bias(params.fc2_bias, Config::kFc2Bias, item);
    } else if (!Config::kPadCarriesBias && params.has_attention) {
      packer.store_bias(params.proj_bias, Config::kProjBias, item - Config::kBiasWords);
    }
  }
}

}  // namespace tnt_kernels::cuda
