// Operands of a tensor's own type: its elements enter a product as they are.
//
// Where LayerNorm bounds what enters, bf16 tensors go through fp16 (fragment.cuh); images and
// incoming gradients have any size.
#pragma once

#include "cuda/tile/rows.cuh"

namespace tnt_kernels::cuda {

struct BrainOperands {
  static constexpr int kUnitWords = 1;
  using Unit = Words<1>;
  using Tile = cuda::Tile<1>;

  static TNT_DEVICE Unit unit(float lo, float hi) { return {{pack_bf16(lo, hi)}}; }

  static TNT_DEVICE Words<2> registers(const Tile& a) { return {{a.rows[0].w[0], a.rows[1].w[0]}}; }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a, const Unit& b) {
    warp_mma_bf16_k8(acc, registers(a), b.w[0]);
  }

  static TNT_DEVICE void mma(float (&acc)[4], const Tile& a0, const Tile& a1, const Unit& b0,
                             const Unit& b1) {
    warp_mma_bf16_k16(acc, registers(a0), registers(a1), b0.w[0], b1.w[0]);
  }
};

template <class Dtype>
struct Own {
  using Math = HalfOperands;
};

template <>
struct Own<BFloat16> {
  using Math = BrainOperands;
};

template <>
struct Own<Float32> {
  using Math = Single;
};

}  // namespace tnt_kernels::cuda
