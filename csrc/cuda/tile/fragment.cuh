// Operands of the tensor cores in one layout for all precisions.
//
// A Unit is an 8x8 block in which lane (g, t) holds row g, columns 2t and 2t + 1; a Tile is two
// units, 16x8. What makes register-only attention work is that this is at once the layout of an
// accumulator, of the left operand of a further product (rows = rows), and of its right operand
// (row g = column g of the right operand, columns = its rows). The order of the summed dimension is
// free, so for tf32, whose operands hold columns t and t + 4, columns 2t and 2t + 1 take their
// place.
//
// Four kinds of arithmetic, each with the same members:
//   FastHalf    bf16 tensors: fp16 operands, fp16 accumulators where the sum is short
//   StrictHalf  fp16 tensors: fp16 operands, fp32 accumulators throughout
//   Single      fp32 tensors: each operand split into two tf32 numbers, three products
//   Tf32        fp32 tensors where torch allows TF32: each operand rounded, one product
#pragma once

#include "cuda/warp.cuh"

namespace tnt_kernels::cuda {

template <int kUnitWords>
struct Tile {
  Words<kUnitWords> rows[2];  // rows 0-7 and 8-15
};

// Operands of all 16-bit arithmetic: a unit is one register.
struct HalfOperands {
  static constexpr int kUnitWords = 1;
  // Branches are summed in fp32 straight onto the residual: its roundings are far below 16 bits.
  static constexpr bool kSumsOntoResidual = true;
  using Unit = Words<1>;
  using Tile = cuda::Tile<1>;

  static TNT_DEVICE Unit unit(float lo, float hi) { return {{pack_f16(lo, hi)}}; }
  static TNT_DEVICE FloatPair unpack(const Unit& a) { return unpack_f16(a.w[0]); }

  // What an operand makes of a number.
  static TNT_DEVICE float rounded(float x) { return unpack_f16(pack_f16(x, x)).lo; }

  static TNT_DEVICE Tile tile(const float (&acc)[4]) {
    return {{unit(acc[0], acc[1]), unit(acc[2], acc[3])}};
  }

  static TNT_DEVICE Words<2> registers(const Tile& a) { return {{a.rows[0].w[0], a.rows[1].w[0]}}; }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a, const Unit& b) {
    warp_mma_f16_k8(acc, registers(a), b.w[0]);
  }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    warp_mma_f16_k16(acc, registers(a0), registers(a1), b0.w[0], b1.w[0]);
  }

  // The same numbers with neither infinity nor NaN, so that 0 times any of them is 0.
  static TNT_DEVICE Unit finite(const Unit& a) {
    return {{max_f16x2(min_f16x2(a.w[0], 0x7bff7bffu), 0xfbfffbffu)}};
  }
};

struct FastHalf : HalfOperands {
  using HalfOperands::mma;

  // Accumulator of a short sum: already the tile that the next product reads.
  struct Acc {
    Words<2> pair;
  };

  // Starts from one unit for rows 0-7 and one for rows 8-15.
  static TNT_DEVICE Acc start(const Unit& lower, const Unit& upper) {
    return {{{lower.w[0], upper.w[0]}}};
  }

  static TNT_DEVICE Tile finish(const Acc& acc) { return {{{{acc.pair.w[0]}}, {{acc.pair.w[1]}}}}; }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a, const Unit& b) {
    warp_mma_f16_k8(acc.pair, registers(a), b.w[0]);
  }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    warp_mma_f16_k16(acc.pair, registers(a0), registers(a1), b0.w[0], b1.w[0]);
  }
};

struct StrictHalf : HalfOperands {
  using HalfOperands::mma;

  struct Acc {
    float sum[4];
  };

  static TNT_DEVICE Acc start(const Unit& lower, const Unit& upper) {
    const FloatPair first = unpack_f16(lower.w[0]), second = unpack_f16(upper.w[0]);
    return {{first.lo, first.hi, second.lo, second.hi}};
  }

  static TNT_DEVICE Tile finish(const Acc& acc) { return tile(acc.sum); }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a, const Unit& b) { mma(acc.sum, a, b); }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    mma(acc.sum, a0, a1, b0, b1);
  }
};

// What fp32 tensors have in common: a unit is two numbers, every sum is fp32.
template <class Self>
struct SingleOperands {
  static constexpr int kUnitWords = 2;
  using Unit = Words<2>;
  using Tile = cuda::Tile<2>;

  struct Acc {
    float sum[4];
  };

  static TNT_DEVICE Unit unit(float lo, float hi) {
    return {{as_word(Self::rounded(lo)), as_word(Self::rounded(hi))}};
  }
  static TNT_DEVICE FloatPair unpack(const Unit& a) { return {as_float(a.w[0]), as_float(a.w[1])}; }

  static TNT_DEVICE Tile tile(const float (&acc)[4]) {
    return {{unit(acc[0], acc[1]), unit(acc[2], acc[3])}};
  }

  static TNT_DEVICE Acc start(const Unit& lower, const Unit& upper) {
    return {
        {as_float(lower.w[0]), as_float(lower.w[1]), as_float(upper.w[0]), as_float(upper.w[1])}};
  }

  static TNT_DEVICE Tile finish(const Acc& acc) { return tile(acc.sum); }

  // a b in the order of the mma's registers.
  static TNT_DEVICE void registers(const Tile& a, const Unit& b, float (&x)[4], float (&y)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = as_float(a.rows[i % 2].w[i / 2]);
#pragma unroll
    for (int i = 0; i < 2; ++i) y[i] = as_float(b.w[i]);
  }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a, const Unit& b) {
    float x[4], y[2];
    registers(a, b, x, y);
    Self::multiply(acc, x, y);
  }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    mma(acc, a0, b0);
    mma(acc, a1, b1);
  }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a, const Unit& b) { mma(acc.sum, a, b); }

  static TNT_DEVICE void mma(Acc& acc, const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    mma(acc.sum, a0, a1, b0, b1);
  }

  static TNT_DEVICE Unit finite(const Unit& a) {
    constexpr float kLargest = 0x1p126f;  // a tf32 number
    Unit y;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      y.w[i] = as_word(max_f32(-max_f32(-as_float(a.w[i]), -kLargest), -kLargest));
    }
    return y;
  }
};

struct Single : SingleOperands<Single> {
  static constexpr bool kSumsOntoResidual = false;

  static TNT_DEVICE float rounded(float x) { return x; }

  // x = hi + lo, up to 2^-21 of it. Where hi is not a number's (NaN, infinity), lo is NaN.
  static TNT_DEVICE void split(float x, float& hi, float& lo) {
    constexpr uint32_t kTf32Bits = 0xffffe000u, kHalfUnit = 0x1000u;
    hi = as_float((as_word(x) + kHalfUnit) & kTf32Bits);
    lo = as_float(as_word(x - hi) & kTf32Bits);
  }

  // a b = a_hi b_hi + a_hi b_lo + a_lo b_hi, the small products first.
  static TNT_DEVICE void multiply(float (&acc)[4], const float (&a)[4], const float (&b)[2]) {
    float a_hi[4], a_lo[4], b_hi[2], b_lo[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a[i], a_hi[i], a_lo[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) split(b[i], b_hi[i], b_lo[i]);
    warp_mma_tf32_k8(acc, a_lo[0], a_lo[1], a_lo[2], a_lo[3], b_hi[0], b_hi[1]);
    warp_mma_tf32_k8(acc, a_hi[0], a_hi[1], a_hi[2], a_hi[3], b_lo[0], b_lo[1]);
    warp_mma_tf32_k8(acc, a_hi[0], a_hi[1], a_hi[2], a_hi[3], b_hi[0], b_hi[1]);
  }
};

struct Tf32 : SingleOperands<Tf32> {
  static constexpr bool kSumsOntoResidual = true;

  static TNT_DEVICE float rounded(float x) { return round_tf32(x); }

  static TNT_DEVICE void multiply(float (&acc)[4], const float (&a)[4], const float (&b)[2]) {
    warp_mma_tf32_k8(acc, a[0], a[1], a[2], a[3], b[0], b[1]);
  }
};

// acc += the product over kCount tiles of the summed dimension.
template <class Math, int kCount, class Acc>
TNT_DEVICE void multiply_add(Acc& acc, const typename Math::Tile (&a)[kCount],
                             const typename Math::Unit (&b)[kCount]) {
#pragma unroll
  for (int k = 0; k + 1 < kCount; k += 2) Math::mma(acc, a[k], a[k + 1], b[k], b[k + 1]);
  if constexpr (kCount % 2 == 1) Math::mma(acc, a[kCount - 1], b[kCount - 1]);
}

// Reads a lane's share of packed weights, unit by unit, in the order they were packed.
template <class Math>
class WeightStream {
 public:
  // From word `first` of every lane's share; a multiple of 4.
  TNT_DEVICE WeightStream(const uint32_t* weights, int first)
      : next_(weights + first * 32 + lane_id() * 4), used_(4) {}

  TNT_DEVICE typename Math::Unit unit() {
    typename Math::Unit y;
#pragma unroll
    for (int i = 0; i < Math::kUnitWords; ++i) y.w[i] = word();
    return y;
  }

  TNT_DEVICE float number() { return as_float(word()); }

  template <int kCount>
  TNT_DEVICE void units(typename Math::Unit (&y)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) y[i] = unit();
  }

 private:
  TNT_DEVICE uint32_t word() {
    if (used_ == 4) {
      buffer_ = load_words<4>(next_);
      next_ += 32 * 4;
      used_ = 0;
    }
    return buffer_.w[used_++];
  }

  const uint32_t* next_;
  Words<4> buffer_;
  int used_;  // a constant wherever the loops around are unrolled
};

}  // namespace tnt_kernels::cuda
