// Constants and tables of the AMX inner block's vector arithmetic.
#pragma once

#include <stdint.h>

namespace tnt_kernels::cpu::amx {

// Truncating fp32 to bf16 costs fewer instructions than rounding. What is truncated is first made
// larger by the mean relative loss, 2^-8 E[1 / m] = 2^-8 * 0.72 for mantissas m that are uniform in
// log m. The rms error is then 1.06 times that of rounding. The factor hides in constants.
constexpr float kCentred = 1 + 0.7213f / 256;

// 1.5 * 2^23: a number below 2^22 added to it is rounded, and sits in the lowest bits of the sum.
constexpr float kRoundMagic = 12582912.0f;

// gelu(kGeluUnit * x) * kCentred for x within half a unit of the integer i, as a quadratic in x
// whose coefficients are at i mod 32.
constexpr double kGeluUnit = 0.28125;
constexpr float kGeluClamp = 15.25f;  // rounds to the last interval
struct GeluTable {
  alignas(64) float coefficient[3][32];
};
extern const GeluTable kGelu;

constexpr float kScoreBound = 100;
constexpr float kScoreUnits = 128;
constexpr float kScoreBias = 127 * 128;
struct Exp2Table {
  alignas(64) uint8_t mantissa[128];  // at f: that of 2^(f / 128), 7 bits
};
extern const Exp2Table kExp2;

// 2^f on [0, 1), with the least relative error
constexpr float kExp2Polynomial[4] = {0.99992508f, 0.69583425f, 0.22606693f, 0.07802387f};

}  // namespace tnt_kernels::cpu::amx
