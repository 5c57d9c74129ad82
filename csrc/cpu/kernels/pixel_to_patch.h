#pragma once
// What the glue and the kernels of pixel_to_patch agree on: plain data only, see pixel_embed.h.

#include <stdint.h>

#include "cpu/types.h"

namespace tnt_kernels::cpu {

// y = LN(x), row by row.
struct RowNorm {
  const void* x;
  void* y;
  DType x_dtype, y_dtype;
  const float* gamma;
  const float* beta;
  int64_t width;
  float eps;
};

// out = tokens + LN2(projection + bias), Eq. 8 after its product.
struct PatchUpdate {
  const void* product;  // (P, D)
  DType product_dtype;
  const float* bias;   // (D,) or null
  const float* gamma;  // (D,) or null: no LN2
  const float* beta;
  const void* tokens;  // (B, N + 1, D) or null: the stem
  void* out;           // like tokens, or (P, D)
  DType out_dtype;
  void* projection;  // (P, D) product + bias, or null
  DType projection_dtype;
  int64_t patches_per_image, width;
  float eps;
};

// Gradients of LN, or of the identity where gamma is null, row by row. dx is dy's row after LN's
// backward; the sums over rows go to dgamma, dbeta and dx_sum, unless they are null.
struct RowNormBackward {
  const void* dy;
  DType dy_dtype;
  int64_t patches_per_image;  // dy has a class token before every so many rows; 0: none
  const void* x;              // null where gamma is
  DType x_dtype;
  void* dx;
  DType dx_dtype;
  const float* gamma;
  int64_t width;
  float eps;
};

struct RowNormSums {
  float* dgamma;
  float* dbeta;
  float* dx_sum;
};

// Each computes rows [first, last).
struct PixelToPatchKernels {
  int64_t lanes;  // of a vector
  // scratch: lanes * width floats
  void (*norm)(const RowNorm&, int64_t first, int64_t last, float* scratch);
  // scratch: width floats
  void (*update)(const PatchUpdate&, int64_t first, int64_t last, float* scratch);
  // scratch: (2 lanes + 3) * width floats
  void (*norm_bwd)(const RowNormBackward&, int64_t first, int64_t last, const RowNormSums& sums,
                   float* scratch);
};

}  // namespace tnt_kernels::cpu
