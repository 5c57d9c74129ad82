// The vector type of the CPU kernels. A kernel is written once against this file and compiled once
// per instruction set, in csrc/cpu/isa/<isa>.cpp; the compiler's flags pick the implementation.
//
//   Vec              kLanes floats: 16 (AVX-512), 8 (AVX2 + FMA) or 4 (any machine)
//   load, store      of float, BFloat16 and Float16, whole or the first n lanes; no alignment
//   splat            one float in all lanes
//   + - * /          the compiler's own vector arithmetic
//   fma(a, b, c)     a * b + c;  fnma(a, b, c) = c - a * b
//   min, max, abs, sqrt, floor; sum and largest over the lanes
//   exp2_nonpositive, gelu, gelu_and_slope
//   transpose and its kin, for changing between token-major and channel-major
//
// Errors with all roundings, held by tests/cpp/test_simd_math.py: exp2_nonpositive 1.8e-7
// relative; gelu(x) 2.9e-7 |x|, and 9.5e-8 absolute for x < 0; its slope 2.7e-7 absolute.
//
// Everything lives in the namespace TNT_ISA, so that no symbol of one instruction set can be merged
// with that of another at link time. For the same reason kernels include no C++ library header.
#pragma once

#include "cpu/types.h"

#define TNT_INLINE inline __attribute__((always_inline))

// csrc/cpu/isa/{generic,avx2}.cpp set an upper bound, lest a -march in CXXFLAGS raise them all.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && !defined(TNT_AT_MOST_AVX2) && !defined(TNT_AT_MOST_GENERIC)
#define TNT_SIMD_AVX512
#if defined(__AMX_BF16__)
#define TNT_ISA amx
#else
#define TNT_ISA avx512
#endif
#define TNT_ISA_NAME "avx512"
#include "cpu/simd/avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(TNT_AT_MOST_GENERIC)
#define TNT_SIMD_AVX2
#define TNT_ISA avx2
#define TNT_ISA_NAME "avx2"
#include "cpu/simd/avx2.h"
#else
#define TNT_ISA generic
#define TNT_ISA_NAME "generic"
#include "cpu/simd/generic.h"
#endif

#include "cpu/simd/common.h"
