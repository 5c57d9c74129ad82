#include "cpu/inner_block_amx_tables.h"

#include <cmath>

namespace tnt_kernels::cpu::amx {
namespace {

double gelu(double x) {
  return 0.5 * kGeluUnit * x * (1 + std::erf(kGeluUnit * x * std::sqrt(0.5))) * kCentred;
}

// Interpolates at three points. Those of interval 0 are symmetric and its middle is exact, so that
// 0 stays 0 and small arguments keep their relative accuracy.
GeluTable make_gelu() {
  GeluTable table = {};
  constexpr int kLast = 15;
  table.coefficient[1][kLast] = static_cast<float>(kGeluUnit * kCentred);
  for (int i = 1 - kLast; i < kLast; ++i) {
    const double reach = 0.5 * std::sqrt(0.75);  // Chebyshev nodes
    const double left = gelu(i - reach), middle = gelu(i), right = gelu(i + reach);
    const double c2 = (left - 2 * middle + right) / (2 * reach * reach);
    const double slope = (right - left) / (2 * reach);
    // middle + slope (x - i) + c2 (x - i)^2
    table.coefficient[0][i & 31] = static_cast<float>(middle - slope * i + c2 * i * i);
    table.coefficient[1][i & 31] = static_cast<float>(slope - 2 * c2 * i);
    table.coefficient[2][i & 31] = static_cast<float>(c2);
  }
  return table;
}

Exp2Table make_exp2() {
  Exp2Table table;
  for (int f = 0; f < 128; ++f) {
    table.mantissa[f] = static_cast<uint8_t>(std::lround(128 * (std::exp2(f / 128.0) - 1)));
  }
  return table;
}

}  // namespace

const GeluTable kGelu = make_gelu();
const Exp2Table kExp2 = make_exp2();

}  // namespace tnt_kernels::cpu::amx
