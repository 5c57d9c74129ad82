// A row of kWidth elements in the registers of a warp: each lane has kWidth / 32 neighbouring ones.
//
// LayerNorm groups are the row, or its parts of `group` elements: whole lanes, as many as a power
// of two, or half a lane each.
#pragma once

#include "cuda/tile/rows.cuh"
#include "cuda/tile/weights.cuh"

namespace tnt_kernels::cuda {

template <int kWidth>
struct LaneRow {
  static constexpr int kCount = kWidth / 32;  // elements of a lane
  static constexpr int kUnits = kCount / 4;   // accesses of 4 elements
  static_assert(kWidth % 128 == 0, "lanes have whole accesses");

  static TNT_DEVICE int column(int i) { return lane_id() * kCount + i; }
};

template <class Dtype>
using RowUnit = Words<2 * Dtype::kPairWords>;

template <class Dtype, int kWidth>
TNT_DEVICE void load_lane_row(const void* matrix, int64_t row,
                              RowUnit<Dtype> (&y)[LaneRow<kWidth>::kUnits]) {
  constexpr int kWords = 2 * Dtype::kPairWords;
  const uint32_t* source = static_cast<const uint32_t*>(matrix) + row * (kWidth / 4 * kWords) +
                           lane_id() * (LaneRow<kWidth>::kUnits * kWords);
#pragma unroll
  for (int i = 0; i < LaneRow<kWidth>::kUnits; ++i) {
    y[i] = load_words<kWords>(source + i * kWords);
  }
}

template <class Dtype>
TNT_DEVICE void unpack_unit(const RowUnit<Dtype>& unit, float* x) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const FloatPair pair = Dtype::unpack(unit.w + i * Dtype::kPairWords);
    x[2 * i] = pair.lo;
    x[2 * i + 1] = pair.hi;
  }
}

template <class Dtype>
TNT_DEVICE RowUnit<Dtype> pack_unit(const float* x) {
  RowUnit<Dtype> unit;
#pragma unroll
  for (int i = 0; i < 2; ++i) Dtype::pack(x[2 * i], x[2 * i + 1], unit.w + i * Dtype::kPairWords);
  return unit;
}

template <class Dtype, int kWidth>
TNT_DEVICE void unpack_lane_row(const RowUnit<Dtype> (&units)[LaneRow<kWidth>::kUnits],
                                float (&x)[LaneRow<kWidth>::kCount]) {
#pragma unroll
  for (int i = 0; i < LaneRow<kWidth>::kUnits; ++i) unpack_unit<Dtype>(units[i], x + 4 * i);
}

template <class Dtype, int kWidth>
TNT_DEVICE void store_lane_row(void* matrix, int64_t row,
                               const float (&x)[LaneRow<kWidth>::kCount]) {
  constexpr int kWords = 2 * Dtype::kPairWords;
  uint32_t* target = static_cast<uint32_t*>(matrix) + row * (kWidth / 4 * kWords) +
                     lane_id() * (LaneRow<kWidth>::kUnits * kWords);
#pragma unroll
  for (int i = 0; i < LaneRow<kWidth>::kUnits; ++i) {
    store_words(target + i * kWords, pack_unit<Dtype>(x + 4 * i));
  }
}

// Calls f(Dtype{}) for a type that is known at run time.
template <class F>
TNT_DEVICE void with_type(DType type, const F& f) {
  if (type == DType::kBFloat16) {
    f(BFloat16{});
  } else if (type == DType::kFloat16) {
    f(Float16{});
  } else {
    f(Float32{});
  }
}

// The same, per lane, of the groups that its lower and its upper half belong to.
struct GroupValue {
  float lower, upper;
};

struct RowGroups {
  int lanes;  // of a group; 0: half a lane
  float inverse;

  TNT_DEVICE RowGroups(int width, int group)
      : lanes(32 * group / width), inverse(1.0f / static_cast<float>(group)) {}

  // Mean of each group of the values f(0), f(1), ...; all lanes call it together.
  template <int kCount, class F>
  TNT_DEVICE GroupValue mean(const F& f) const {
    GroupValue sum = {0, 0};
#pragma unroll
    for (int i = 0; i < kCount; ++i) (i < kCount / 2 ? sum.lower : sum.upper) += f(i);
    if (lanes > 0) {
      float x = sum.lower + sum.upper;
      if (lanes > 1) x += warp_shuffle_xor<1>(x);
      if (lanes > 2) x += warp_shuffle_xor<2>(x);
      if (lanes > 4) x += warp_shuffle_xor<4>(x);
      if (lanes > 8) x += warp_shuffle_xor<8>(x);
      if (lanes > 16) x += warp_shuffle_xor<16>(x);
      sum = {x, x};
    }
    return {sum.lower * inverse, sum.upper * inverse};
  }
};

template <int kCount>
TNT_DEVICE float of_element(const GroupValue& value, int i) {
  return i < kCount / 2 ? value.lower : value.upper;
}

// x becomes (x - mean) / sqrt(variance + eps); returns what it was divided by, inverted.
template <int kCount>
TNT_DEVICE GroupValue normalise(const RowGroups& groups, float eps, float (&x)[kCount]) {
  const GroupValue mean = groups.mean<kCount>([&](int i) { return x[i]; });
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] -= of_element<kCount>(mean, i);
  const GroupValue variance = groups.mean<kCount>([&](int i) { return x[i] * x[i]; });
  const GroupValue rstd = {rsqrt_approx(variance.lower + eps), rsqrt_approx(variance.upper + eps)};
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] *= of_element<kCount>(rstd, i);
  return rstd;
}

// Gradient of the input of `normalise` from dxhat, that of its output xhat; in place of dxhat.
template <int kCount>
TNT_DEVICE void normalise_backward(const RowGroups& groups, const GroupValue& rstd,
                                   const float (&xhat)[kCount], float (&dxhat)[kCount]) {
  const GroupValue mean = groups.mean<kCount>([&](int i) { return dxhat[i]; });
  const GroupValue along = groups.mean<kCount>([&](int i) { return dxhat[i] * xhat[i]; });
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float rest = dxhat[i] - of_element<kCount>(mean, i);
    dxhat[i] = of_element<kCount>(rstd, i) * fma_f32(-xhat[i], of_element<kCount>(along, i), rest);
  }
}

}  // namespace tnt_kernels::cuda
