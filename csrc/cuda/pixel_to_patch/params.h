// What the kernels of pixel_to_patch are given: plain data, for host and device.
//
// K = S*C is the width of a vectorised patch, D the outer width; kernels are compiled for K = D.
#pragma once

#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

constexpr int kPatchWarps = 8;  // of a block, in every kernel of the op

struct PatchPack {
  WeightView norm1_weight, norm1_bias;  // (norm1_width)
  WeightView proj_weight;               // (D, K)
  WeightView proj_bias;                 // (D) or null
  WeightView norm2_weight, norm2_bias;  // (D) or null
  int norm1_width;                      // K: LN1 spans the patch, or C: each pixel token
  uint32_t* weights;                    // packed: D K 16- or 32-bit words
  float* vectors;                       // (3, D): folded bias, LN2's weight and bias
};

struct PatchForward {
  const void* pixels;  // (P, K)
  const uint32_t* weights;
  const float* vectors;
  const void* tokens;  // (B, N + 1, D) of `tokens_type`, or null: the stem
  void* out;           // as tokens; or (P, D) of the pixels' type
  void* projection;    // (P, D) of the pixels' type, or null
  int64_t num_patches;
  int patches_per_image;  // N
  DType tokens_type;      // of out, too
  int norm1_width;
  bool has_norm2;
  float eps;
};

// xhat gamma + beta of LN1, for the product that gives the weight's gradient.
struct PatchNormalise {
  const void* pixels;
  void* rows;  // (P, K)
  WeightView norm1_weight, norm1_bias;
  int64_t num_patches;
  int norm1_width;
  float eps;
};

// dz from dy, through LN2 if there is one.
struct PatchNorm2Backward {
  const void* dy;          // (B, N + 1, D) of `dy_type`, or (P, D) if patches_per_image is 0
  const void* projection;  // (P, D); not read without LN2
  WeightView norm2_weight;
  void* dz;         // (P, D) of the pixels' type
  float* partials;  // (3, blocks, D): sums of dz, dy zhat and dy; or null
  int64_t num_patches;
  int patches_per_image;
  DType dy_type;
  bool has_norm2;
  float eps;
};

// Gradient of the pixels from that of LN1's rows.
struct PatchNorm1Backward {
  const void* drows;  // (P, K)
  const void* pixels;
  WeightView norm1_weight;
  void* dpixels;    // (P, K) or null
  float* partials;  // (2, blocks, K): sums of drows xhat and of drows; or null
  int64_t num_patches;
  int norm1_width;
  float eps;
};

}  // namespace tnt_kernels::cuda
