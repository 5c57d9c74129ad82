#pragma once
// Passes over rows of floats and 16-bit floats: what the norms of pixel_to_patch are made of. Lanes
// are neighbouring columns.

#include "cpu/simd/row_sums.h"

namespace tnt_kernels::cpu::TNT_ISA {

// Calls f(T{}) for the element type that `dtype` names.
template <class F>
TNT_INLINE void visit_dtype(DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kBFloat16) return f(BFloat16{});
  return f(Float16{});
}

template <class T>
TNT_INLINE Vec read(const T* p, int n) {
  return n == kLanes ? load(p) : load_n(p, n);
}
template <class T>
TNT_INLINE void write(T* p, Vec a, int n) {
  if (n == kLanes) {
    store(p, a);
  } else {
    store_n(p, a, n);
  }
}

// Calls f(column, lanes) for every vector of a row; lanes is kLanes, or less for the last one.
template <class F>
TNT_INLINE void for_columns(int64_t width, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) f(i, kLanes);
  if (i < width) f(i, static_cast<int>(width - i));
}

// The sum over a row of term(column, lanes); four sums side by side hide the latency of adding.
template <class F>
TNT_INLINE float row_sum(int64_t width, const F& term) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) sums[k] = sums[k] + term(i + k * kLanes, kLanes);
  }
  for (; i + kLanes <= width; i += kLanes) sums[0] = sums[0] + term(i, kLanes);
  if (i < width) {
    const int n = static_cast<int>(width - i);
    sums[1] = sums[1] + keep_n(term(i, n), n);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The same in all lanes.
struct RowStats {
  Vec mean, rstd;
};

TNT_INLINE RowStats stats_from(float total, const float* x, int64_t width, float eps) {
  const Vec mean = splat(total / static_cast<float>(width));
  const float squares = row_sum(width, [&](int64_t i, int n) {
    const Vec centred = read(x + i, n) - mean;
    return centred * centred;
  });
  const float variance = squares / static_cast<float>(width);
  return {mean, splat(1.0f / __builtin_sqrtf(variance + eps))};
}

// A row, wherever it comes from: x(column, lanes) is summed, and kept in `buffer` for later passes.
template <class F>
TNT_INLINE RowStats stage_row(int64_t width, float eps, float* buffer, const F& x) {
  const float total = row_sum(width, [&](int64_t i, int n) {
    const Vec value = x(i, n);
    write(buffer + i, value, n);
    return value;
  });
  return stats_from(total, buffer, width, eps);
}

// The statistics of a row of floats that is there already.
TNT_INLINE RowStats row_stats(const float* x, int64_t width, float eps) {
  return stats_from(row_sum(width, [&](int64_t i, int n) { return read(x + i, n); }), x, width,
                    eps);
}

// Rows so short that summing each by itself would cost more than the rest: kLanes of them together.
// sums(term) is, lane by lane, the sum over row r = 0 ... count - 1 of term(r, column, lanes).
constexpr int64_t kShortRow = 4 * kLanes;

template <class F>
TNT_INLINE Vec short_row_sums(int64_t width, int count, const F& term) {
  alignas(64) float partial[kLanes * kLanes];
  for (int r = 0; r < kLanes; ++r) {
    Vec total = zero();
    if (r < count) {
      for_columns(width, [&](int64_t i, int n) {
        const Vec value = term(r, i, n);
        total = total + (n == kLanes ? value : keep_n(value, n));
      });
    }
    store(partial + r * kLanes, total);
  }
  return sum_each(partial);
}

struct ShortRowStats {
  float mean[kLanes], rstd[kLanes];
};

TNT_INLINE void short_row_stats(const float* x, int64_t width, int count, float eps,
                                ShortRowStats& stats) {
  const Vec inverse_width = splat(1.0f / static_cast<float>(width));
  store(stats.mean, inverse_width * short_row_sums(width, count, [&](int r, int64_t i, int n) {
                      return read(x + r * width + i, n);
                    }));
  const Vec variance = inverse_width * short_row_sums(width, count, [&](int r, int64_t i, int n) {
                         const Vec centred = read(x + r * width + i, n) - splat(stats.mean[r]);
                         return centred * centred;
                       });
  store(stats.rstd, splat(1.0f) / sqrt(variance + splat(eps)));
}

}  // namespace tnt_kernels::cpu::TNT_ISA
