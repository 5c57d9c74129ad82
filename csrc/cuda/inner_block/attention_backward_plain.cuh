// Gradient of y = x + MSA(LN(x)), Eq. 6, for the sizes of the paper's Table 7 (S = 4 and 64), whose
// sequences or sums do not suit a warp: in fp32 without tensor cores, any number of heads. A block
// takes kRows tokens at a time through stages with a barrier after each; a thread makes one element
// of a stage. It keeps a square of one weight's gradient in registers.
//
// Arrays are (features, kRows) in shared memory. Units and scales of the sums are those of
// attention_backward.cuh, so that the same kernel finishes them.
#pragma once

#include "cuda/inner_block/backward_pack.cuh"
#include "cuda/inner_block/backward_rows.cuh"
#include "cuda/tile/block.cuh"

namespace tnt_kernels::cuda {

// Folded weights: q, k, v and proj^T as (C in, C out), q, k, v as (C out, C in), bias of q.
template <class Config>
TNT_DEVICE void plain_attention_pack_body(const PackParams& params) {
  constexpr int kDim = Config::kDim, kMatrix = kDim * kDim;
  const auto linear = [&](int matrix) {
    const bool is_v = matrix == 2;
    return NormedLinear{params.norm1_weight, params.norm1_bias,
                        is_v ? params.v_weight : params.qk_weight,
                        is_v ? params.v_bias : params.qk_bias, 1.0f};
  };
  float* packed = reinterpret_cast<float*>(params.packed);
  for (int i = block_id() * block_threads() + thread_id(); i < Config::kPackedWords;
       i += num_blocks() * block_threads()) {
    const int matrix = i / kMatrix, row = i % kMatrix / kDim, column = i % kDim;
    const int first = matrix % 4 == 1 ? kDim : 0;  // k is behind q
    float value;
    if (matrix == 7) {
      value = linear(0).bias_at(column, kDim);
    } else if (matrix == 3) {
      value = weight_at(params.proj_weight, row, column);
    } else if (matrix < 3) {
      value = linear(matrix).at(first + column, row);
    } else {
      value = linear(matrix - 4).at(first + row, column);
    }
    store_float(packed + i, value);
  }
}

template <class Config>
class PlainAttention {
  using Dtype = typename Config::Dtype;
  static constexpr int kTokens = Config::kTokens, kDim = Config::kDim, kRows = Config::kRows;
  static constexpr int kArray = kDim * kRows, kMatrix = kDim * kDim, kSide = Config::kSide;
  static constexpr int kSquares = kDim / kSide;    // in a row of a weight
  static constexpr int kMatrixItems = kArray / 4;  // a feature of four tokens each

 public:
  TNT_DEVICE PlainAttention(const BackwardParams& params)
      : params_(params),
        weights_(reinterpret_cast<const float*>(params.weights)),
        head_dim_(kDim / params.num_heads),
        normed_(reinterpret_cast<float*>(dynamic_shared())) {
    dz_ = normed_ + kArray;
    features_ = dz_ + kArray;             // q, k, v, gradient of the output
    gradients_ = features_ + 4 * kArray;  // of q, k, v; the output
    p_ = gradients_ + 4 * kArray;
    ds_ = p_ + params.num_heads * kRows * kTokens;
    rstd_ = ds_ + params.num_heads * kRows * kTokens;
  }

  // Tokens from `first` on.
  TNT_DEVICE void take(int64_t first) {
    first_ = first;
    load();
    project();
    attend();
    mix();
    if (params_.partials != nullptr) add_sums();
    if (params_.dx != nullptr) store_dx();
    block_sync();
  }

  TNT_DEVICE void write(float* partial) const {
    const int matrix = thread_id() / (kSquares * kSquares);
    if (matrix < 4) {
#pragma unroll
      for (int i = 0; i < kSide * kSide; ++i) {
        const int row = first_row() + i / kSide, column = first_column() + i % kSide;
        store_float(partial + matrix * kMatrix + row * kDim + column, sums_[i / kSide][i % kSide]);
      }
    }
    if (thread_id() < 2 * kDim) {
      const int bias = thread_id() < kDim ? Config::kQueryBiasSum : Config::kProjBiasSum - kDim;
      store_float(partial + bias + thread_id(), bias_sum_);
    }
  }

 private:
  // use(row) by one warp for each row of the tensors that exists, and a barrier.
  template <class Use>
  TNT_DEVICE void for_each_row(const Use& use) const {
#pragma unroll 1
    for (int row = warp_id(); row < kRows; row += block_threads() / 32) {
      if (first_ + row < params_.num_rows) use(row);
    }
    block_sync();
  }

  static TNT_DEVICE float element(const void* x, int64_t i) {
    if constexpr (Dtype::kPairWords == 2) return load_float(static_cast<const float*>(x) + i);
    const uint32_t half = load_half_word(static_cast<const uint16_t*>(x) + i);
    return Dtype::unpack(&half).lo;
  }

  TNT_DEVICE int64_t offset(int row) const { return (first_ + row) * kDim; }

  // The normalised input and the branch's gradient; 0 in rows that do not exist.
  TNT_DEVICE void load() {
    block_for_each(2 * kArray, [&](int i) { normed_[i] = 0; });
    for_each_row([&](int row) {
      float sum = 0, squares = 0;
      for (int c = lane_id(); c < kDim; c += 32) sum += element(params_.x, offset(row) + c);
      const float mean = warp_sum(sum) * (1.0f / kDim);
      for (int c = lane_id(); c < kDim; c += 32) {
        const float centred = element(params_.x, offset(row) + c) - mean;
        squares = fma_f32(centred, centred, squares);
      }
      const float rstd = rsqrt_approx(fma_f32(warp_sum(squares), 1.0f / kDim, params_.eps));
      const float factor = params_.drop_path == nullptr
                               ? 1.0f
                               : load_float(params_.drop_path + (first_ + row) / kTokens);
      for (int c = lane_id(); c < kDim; c += 32) {
        normed_[c * kRows + row] = (element(params_.x, offset(row) + c) - mean) * rstd;
        dz_[c * kRows + row] = factor * element(params_.dy, offset(row) + c);
      }
      if (lane_id() == 0) rstd_[row] = rstd;
    });
  }

  TNT_DEVICE void project() {
    const float scale = 1.44269504f * rsqrt_approx(static_cast<float>(head_dim_));
    block_for_each(4 * kMatrixItems, [&](int i) {
      const int matrix = i / kMatrixItems, feature = i % kDim, row = i % kMatrixItems / kDim * 4;
      const float* inputs = (matrix == 3 ? dz_ : normed_) + row;
      const float* w = weights_ + matrix * kMatrix + feature;
      const float bias = matrix == 0 ? load_float(weights_ + 7 * kMatrix + feature) : 0.0f;
      float sum[4] = {bias, bias, bias, bias};
#pragma unroll 4
      for (int c = 0; c < kDim; ++c) add_four(load_float(w + c * kDim), inputs + c * kRows, sum);
      for (int r = 0; r < 4; ++r) {
        features_[matrix * kArray + feature * kRows + row + r] =
            matrix == 0 ? scale * sum[r] : sum[r];
      }
    });
  }
  static TNT_DEVICE void add_four(float w, const float* x, float (&sum)[4]) {
    const Words<4> four = load_words<4>(x);
#pragma unroll
    for (int r = 0; r < 4; ++r) sum[r] = fma_f32(w, as_float(four.w[r]), sum[r]);
  }

  // Probabilities and dS of a head's query, over the keys of its sequence.
  TNT_DEVICE void attend() {
    block_for_each(params_.num_heads * kRows, [&](int i) {
      const int row = i % kRows, sequence = row / kTokens * kTokens;
      const int head = i / kRows * head_dim_ * kRows;
      float *p = p_ + i * kTokens, *ds = ds_ + i * kTokens;
      float largest = as_float(0xff800000u), total = 0, mean = 0;  // from -infinity
      for (int j = 0; j < kTokens; ++j) {
        p[j] = product(features_ + head, row, sequence + j);
        ds[j] = product(features_ + 2 * kArray + head, sequence + j, row);
        largest = max_f32(largest, p[j]);
      }
      for (int j = 0; j < kTokens; ++j) {
        p[j] = exp2_approx(p[j] - largest);
        total += p[j];
      }
      for (int j = 0; j < kTokens; ++j) {
        p[j] *= rcp_approx(total);
        mean = fma_f32(p[j], ds[j], mean);
      }
      for (int j = 0; j < kTokens; ++j) ds[j] = p[j] * (ds[j] - mean);
    });
  }

  // Over a head's features: array[.][i] times the array behind it [.][j].
  TNT_DEVICE float product(const float* array, int i, int j) const {
    float sum = 0;
    for (int d = 0; d < head_dim_; ++d) {
      sum = fma_f32(array[d * kRows + i], array[kArray + d * kRows + j], sum);
    }
    return sum;
  }

  TNT_DEVICE void mix() {
    block_for_each(4 * kArray, [&](int i) {
      const int kind = i / kArray, row = i % kRows, at = i % kArray;
      const int sequence = row / kTokens * kTokens;
      const int head_rows = at / kRows / head_dim_ * kRows;
      const bool of_query = kind == 0 || kind == 3;  // dq and output; of a key: dk, dv
      const float* weight = kind == 0 || kind == 1 ? ds_ : p_;
      // dq = dS k, dk = dS^T q, dv = P^T dO, output = P v
      const int source = kind == 0 ? 1 : kind == 1 ? 0 : kind == 2 ? 3 : 2;
      const float* features = features_ + source * kArray + at / kRows * kRows + sequence;
      float sum = 0;
      for (int j = 0; j < kTokens; ++j) {
        const int query = of_query ? row : sequence + j, key = of_query ? j : row - sequence;
        sum = fma_f32(weight[(head_rows + query) * kTokens + key], features[j], sum);
      }
      gradients_[i] = sum;
    });
  }

  static TNT_DEVICE int first_row() { return thread_id() / kSquares % kSquares * kSide; }
  static TNT_DEVICE int first_column() { return thread_id() % kSquares * kSide; }

  // This thread's square of a weight's gradient, and its element of a bias's.
  TNT_DEVICE void add_sums() {
    const int matrix = thread_id() / (kSquares * kSquares);
    if (matrix < 4) {
      const float* rows = gradients_ + matrix * kArray + first_row() * kRows;
      const float* columns = (matrix == 3 ? dz_ : normed_) + first_column() * kRows;
#pragma unroll 1
      for (int t = 0; t < kRows; ++t) {
        float x[kSide];
#pragma unroll
        for (int j = 0; j < kSide; ++j) x[j] = columns[j * kRows + t];
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
          const float y = rows[i * kRows + t];
#pragma unroll
          for (int j = 0; j < kSide; ++j) sums_[i][j] = fma_f32(y, x[j], sums_[i][j]);
        }
      }
    }
    if (thread_id() < 2 * kDim) {
      const float* of = (thread_id() < kDim ? gradients_ : dz_) + thread_id() % kDim * kRows;
      float sum = 0;  // of its own: short sums first lose less
      for (int t = 0; t < kRows; ++t) sum += of[t];
      bias_sum_ += sum;
    }
  }

  TNT_DEVICE void store_dx() {
    float* dnormed = features_;  // of no further use
    const float scales[3] = {query_grad_scale(head_dim_), kKeyGradScale, 1.0f};
    block_for_each(kMatrixItems, [&](int i) {
      const int channel = i % kDim, row = i / kDim * 4;
      float sum[4] = {};
      for (int matrix = 0; matrix < 3; ++matrix) {
        const float* w = weights_ + (4 + matrix) * kMatrix + channel;
        const float* rows = gradients_ + matrix * kArray + row;
#pragma unroll 4
        for (int f = 0; f < kDim; ++f) {
          add_four(scales[matrix] * load_float(w + f * kDim), rows + f * kRows, sum);
        }
      }
      for (int r = 0; r < 4; ++r) dnormed[channel * kRows + row + r] = sum[r];
    });
    for_each_row([&](int row) {
      float sum = 0, product = 0;
      for (int c = lane_id(); c < kDim; c += 32) {
        sum += dnormed[c * kRows + row];
        product = fma_f32(dnormed[c * kRows + row], normed_[c * kRows + row], product);
      }
      const float mean = warp_sum(sum) * (1.0f / kDim), slope = warp_sum(product) * (1.0f / kDim);
      // neighbours in one word where elements are of 16 bits
      for (int c = 2 * lane_id(); c < kDim; c += 64) {
        float dx[2];
        for (int e = 0; e < 2; ++e) {
          const int at = (c + e) * kRows + row;
          const float centred = fma_f32(-slope, normed_[at], dnormed[at] - mean);
          dx[e] = fma_f32(rstd_[row], centred, element(params_.dy, offset(row) + c + e));
        }
        Words<Dtype::kPairWords> pair;
        Dtype::pack(dx[0], dx[1], pair.w);
        store_words(static_cast<uint32_t*>(params_.dx) + (offset(row) + c) / 2 * Dtype::kPairWords,
                    pair);
      }
    });
  }

  const BackwardParams& params_;
  const float* weights_;
  const int head_dim_;
  int64_t first_ = 0;
  float *normed_, *dz_, *features_, *gradients_, *p_, *ds_, *rstd_;
  float sums_[kSide][kSide] = {};
  float bias_sum_ = 0;
};

template <class Config>
TNT_DEVICE void plain_attention_bwd_body(const BackwardParams& params) {
  PlainAttention<Config> attention(params);
#pragma unroll 1
  for (int64_t first = int64_t{block_id()} * Config::kRows; first < params.num_rows;
       first += int64_t{params.workers} * Config::kRows) {
    attention.take(first);
  }
  if (params.partials == nullptr) return;
  attention.write(params.partials + block_id() * int64_t{Config::kSums});
}

}  // namespace tnt_kernels::cuda
