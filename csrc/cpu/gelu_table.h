// The erf-GELU and its derivative as piecewise polynomials, for instruction sets that can look up
// 32 floats in one instruction.
#pragma once

namespace tnt_kernels::cpu {

// For a = |x| rounded to the nearest multiple s/4 and u = a - s/4:
//   gelu(-a)  = sum_k value[k][s] u^k        gelu'(-a) = sum_k slope[k][s] u^k
// Past the last segment both are 0 to fp32 accuracy. Errors are below 3e-8.
struct GeluTable {
  static constexpr int kDegree = 4;
  static constexpr int kSegments = 32;
  alignas(64) float value[kDegree + 1][kSegments];
  alignas(64) float slope[kDegree + 1][kSegments];
};

// Filled when the library is loaded.
extern const GeluTable kGeluTable;

}  // namespace tnt_kernels::cpu
