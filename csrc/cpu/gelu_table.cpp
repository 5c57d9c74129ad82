#include "cpu/gelu_table.h"

#include <cmath>

namespace tnt_kernels::cpu {
namespace {

// gelu(-a), written with erfc so that the tail keeps its relative accuracy.
double negative_gelu(double a) { return -a * 0.5 * std::erfc(a * std::sqrt(0.5)); }

double negative_gelu_slope(double a) {
  const double density = std::exp(-0.5 * a * a) / std::sqrt(2.0 * M_PI);
  return 0.5 * std::erfc(a * std::sqrt(0.5)) - a * density;
}

// Interpolates f at the Chebyshev nodes of each segment, by divided differences expanded to powers
// of u: within a factor of 1.1 of the best polynomial, without a table of magic numbers.
template <class Function>
void fit(Function f, float (&coefficients)[GeluTable::kDegree + 1][GeluTable::kSegments]) {
  constexpr int kNodes = GeluTable::kDegree + 1;
  constexpr double kHalfWidth = 0.125;
  for (int segment = 0; segment < GeluTable::kSegments; ++segment) {
    double node[kNodes], difference[kNodes];
    for (int i = 0; i < kNodes; ++i) {
      node[i] = kHalfWidth * std::cos(M_PI * (i + 0.5) / kNodes);
      difference[i] = f(0.25 * segment + node[i]);
    }
    for (int order = 1; order < kNodes; ++order) {
      for (int i = kNodes - 1; i >= order; --i) {
        difference[i] = (difference[i] - difference[i - 1]) / (node[i] - node[i - order]);
      }
    }
    double power[kNodes] = {};  // Newton form to powers of u, by Horner's rule on polynomials
    for (int i = kNodes - 1; i >= 0; --i) {
      for (int k = kNodes - 1; k > 0; --k) power[k] = power[k - 1] - node[i] * power[k];
      power[0] = difference[i] - node[i] * power[0];
    }
    for (int k = 0; k < kNodes; ++k) coefficients[k][segment] = static_cast<float>(power[k]);
  }
}

GeluTable make_table() {
  GeluTable table;
  fit(negative_gelu, table.value);
  fit(negative_gelu_slope, table.slope);
  table.value[0][0] = 0.0f;  // gelu(0) is exactly 0, which interpolation gives to 1e-18 only
  // |x| is clamped to the centre of the last segment, where 0 is the value to fp32 accuracy
  for (int k = 0; k <= GeluTable::kDegree; ++k) {
    table.value[k][GeluTable::kSegments - 1] = 0.0f;
    table.slope[k][GeluTable::kSegments - 1] = 0.0f;
  }
  return table;
}

}  // namespace

const GeluTable kGeluTable = make_table();

}  // namespace tnt_kernels::cpu
