#pragma once
// Gradients of Z = Z + LN2(FC(LN1(Vec(Y)))), Eq. 8: the norms, row by row; the products are ATen's.
//
// dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = gamma dy, and the sums over rows of dy xhat,
// dy and dx. One thread computes a range of rows, in stretches that are summed by themselves first:
// that keeps the sums' error small, and a fixed division of the rows keeps them reproducible.

#include "cpu/kernels/pixel_to_patch_fwd.h"

namespace tnt_kernels::cpu::TNT_ISA {

// `rows` rows from `row` on as floats: where they are, or converted into `buffer`.
TNT_INLINE const float* rows_as_floats(const void* base, DType dtype, int64_t row, int64_t rows,
                                       int64_t width, float* buffer) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(base) + row * width;
  visit_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    to_floats(static_cast<const T*>(base) + row * width, buffer, rows * width);
  });
  return buffer;
}

// Sums of the current stretch.
struct StretchSums {
  float *dgamma, *dbeta, *dx;
};

// One vector of a row's gradient, given the row's statistics; adds to the sums.
struct NormGradient {
  RowStats stats;
  Vec mean_g, mean_g_xhat;

  TNT_INLINE Vec at(const RowNormBackward& p, const float* dy, const float* x, int64_t i, int n,
                    const StretchSums& sums) const {
    const Vec xhat = (read(x + i, n) - stats.mean) * stats.rstd;
    const Vec dyv = read(dy + i, n);
    const Vec g = dyv * read(p.gamma + i, n);
    const Vec dx = stats.rstd * fnma(xhat, mean_g_xhat, g - mean_g);
    write(sums.dgamma + i, fma(dyv, xhat, read(sums.dgamma + i, n)), n);
    write(sums.dbeta + i, read(sums.dbeta + i, n) + dyv, n);
    if (sums.dx != nullptr) write(sums.dx + i, read(sums.dx + i, n) + dx, n);
    return dx;
  }
};

template <class T>
TNT_INLINE void norm_bwd_row(const RowNormBackward& p, const float* dy, const float* x, T* dx,
                             const StretchSums& sums) {
  NormGradient gradient;
  gradient.stats = row_stats(x, p.width, p.eps);
  const RowStats& stats = gradient.stats;
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  gradient.mean_g = splat(inverse_width * row_sum(p.width, [&](int64_t i, int n) {
                            return read(dy + i, n) * read(p.gamma + i, n);
                          }));
  gradient.mean_g_xhat = splat(inverse_width * row_sum(p.width, [&](int64_t i, int n) {
                                 const Vec xhat = (read(x + i, n) - stats.mean) * stats.rstd;
                                 return read(dy + i, n) * read(p.gamma + i, n) * xhat;
                               }));
  for_columns(p.width,
              [&](int64_t i, int n) { write(dx + i, gradient.at(p, dy, x, i, n, sums), n); });
}

template <class T>
TNT_INLINE void norm_bwd_short_rows(const RowNormBackward& p, const float* dy, const float* x,
                                    T* dx, int count, const StretchSums& sums) {
  const int64_t width = p.width;
  ShortRowStats stats;
  short_row_stats(x, width, count, p.eps, stats);
  const Vec inverse_width = splat(1.0f / static_cast<float>(width));
  float mean_g[kLanes], mean_g_xhat[kLanes];
  auto g = [&](int r, int64_t i, int n) {
    return read(dy + r * width + i, n) * read(p.gamma + i, n);
  };
  store(mean_g, inverse_width * short_row_sums(width, count, g));
  store(mean_g_xhat, inverse_width * short_row_sums(width, count, [&](int r, int64_t i, int n) {
                       const Vec centred = read(x + r * width + i, n) - splat(stats.mean[r]);
                       return g(r, i, n) * (centred * splat(stats.rstd[r]));
                     }));
  for (int r = 0; r < count; ++r) {
    const NormGradient gradient = {
        {splat(stats.mean[r]), splat(stats.rstd[r])}, splat(mean_g[r]), splat(mean_g_xhat[r])};
    const int64_t row = r * width;
    for_columns(width, [&](int64_t i, int n) {
      write(dx + row + i, gradient.at(p, dy + row, x + row, i, n, sums), n);
    });
  }
}

// dx = dy, and its sum over rows.
template <class T>
TNT_INLINE void identity_bwd_row(int64_t width, const float* dy, T* dx, const StretchSums& sums) {
  for_columns(width, [&](int64_t i, int n) {
    const Vec g = read(dy + i, n);
    write(dx + i, g, n);
    if (sums.dx != nullptr) write(sums.dx + i, read(sums.dx + i, n) + g, n);
  });
}

// Rows [first, last) of one stretch; scratch holds a row of dy and of x, or kLanes short ones.
template <class T>
TNT_INLINE void norm_bwd_stretch(const RowNormBackward& p, int64_t first, int64_t last,
                                 const StretchSums& sums, float* scratch) {
  const int64_t width = p.width;
  T* dx = static_cast<T*>(p.dx);
  const bool together = width <= kShortRow && p.gamma != nullptr && p.patches_per_image == 0;
  const int64_t step = together ? kLanes : 1;
  for (int64_t row = first; row < last; row += step) {
    const int64_t count = last - row < step ? last - row : step;
    const int64_t skipped = p.patches_per_image > 0 ? row / p.patches_per_image + 1 : 0;
    const float* dy = rows_as_floats(p.dy, p.dy_dtype, row + skipped, count, width, scratch);
    if (p.gamma == nullptr) {
      identity_bwd_row(width, dy, dx + row * width, sums);
      continue;
    }
    const float* x = rows_as_floats(p.x, p.x_dtype, row, count, width, scratch + step * width);
    if (together) {
      norm_bwd_short_rows(p, dy, x, dx + row * width, static_cast<int>(count), sums);
    } else {
      norm_bwd_row(p, dy, x, dx + row * width, sums);
    }
  }
}

inline void row_norm_bwd_kernel(const RowNormBackward& p, int64_t first, int64_t last,
                                const RowNormSums& sums, float* scratch) {
  const int64_t width = p.width;
  const int64_t stretch_rows = width <= kShortRow ? 8 * kLanes : 32;
  float* const partial = scratch + 2 * kLanes * width;
  const StretchSums own = {partial, partial + width,
                           sums.dx_sum == nullptr ? nullptr : partial + 2 * width};
  float* const totals[3] = {sums.dgamma, sums.dbeta, sums.dx_sum};
  for (int64_t row = first; row < last; row += stretch_rows) {
    const int64_t end = row + stretch_rows < last ? row + stretch_rows : last;
    for (int64_t i = 0; i < 3 * width; ++i) partial[i] = 0;
    visit_dtype(p.dx_dtype, [&](auto element) {
      norm_bwd_stretch<decltype(element)>(p, row, end, own, scratch);
    });
    for (int k = 0; k < 3; ++k) {
      if (totals[k] == nullptr) continue;
      for_columns(width, [&](int64_t i, int n) {
        write(totals[k] + i, read(totals[k] + i, n) + read(partial + k * width + i, n), n);
      });
    }
  }
}

inline PixelToPatchKernels pixel_to_patch_kernels() {
  PixelToPatchKernels table = {};
  table.lanes = kLanes;
  table.norm = row_norm_kernel;
  table.update = patch_update_kernel;
  table.norm_bwd = row_norm_bwd_kernel;
  return table;
}

}  // namespace tnt_kernels::cpu::TNT_ISA
