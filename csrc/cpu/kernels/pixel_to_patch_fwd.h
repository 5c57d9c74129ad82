#pragma once
// Z = Z + LN2(FC(LN1(Vec(Y)))), Eq. 8: all but the product, row by row.
//
// row_norm_kernel is LN1, patch_update_kernel all that follows the product. One thread computes a
// range of rows. A row is a few KB, so the passes over it run in the first-level cache: mean and
// variance take one each, which keeps the variance exact where the mean dwarfs it.

#include "cpu/kernels/pixel_rows.h"
#include "cpu/kernels/pixel_to_patch.h"

namespace tnt_kernels::cpu::TNT_ISA {

// y = LN(x) of one row: the patch, in the published dialect.
template <class T, class U>
TNT_INLINE void norm_row(const RowNorm& p, const T* x, U* y, float* buffer) {
  const RowStats stats =
      stage_row(p.width, p.eps, buffer, [&](int64_t i, int n) { return read(x + i, n); });
  for_columns(p.width, [&](int64_t i, int n) {
    const Vec scaled = (read(buffer + i, n) - stats.mean) * stats.rstd;
    write(y + i, fma(scaled, read(p.gamma + i, n), read(p.beta + i, n)), n);
  });
}

template <class U>
TNT_INLINE void norm_row(const RowNorm& p, const float* x, U* y, float*) {
  const RowStats stats = row_stats(x, p.width, p.eps);
  for_columns(p.width, [&](int64_t i, int n) {
    const Vec scaled = (read(x + i, n) - stats.mean) * stats.rstd;
    write(y + i, fma(scaled, read(p.gamma + i, n), read(p.beta + i, n)), n);
  });
}

// y = LN(x) of up to kLanes short rows: pixel tokens, in the legacy dialect.
template <class U>
TNT_INLINE void norm_short_rows(const RowNorm& p, const float* x, U* y, int count) {
  ShortRowStats stats;
  short_row_stats(x, p.width, count, p.eps, stats);
  for (int r = 0; r < count; ++r) {
    const Vec mean = splat(stats.mean[r]), rstd = splat(stats.rstd[r]);
    for_columns(p.width, [&](int64_t i, int n) {
      const Vec scaled = (read(x + r * p.width + i, n) - mean) * rstd;
      write(y + r * p.width + i, fma(scaled, read(p.gamma + i, n), read(p.beta + i, n)), n);
    });
  }
}

template <class T, class U>
void norm_rows(const RowNorm& p, int64_t first, int64_t last, float* scratch) {
  const T* x = static_cast<const T*>(p.x);
  U* y = static_cast<U*>(p.y);
  if (p.width > kShortRow) {
    for (int64_t row = first; row < last; ++row) {
      norm_row(p, x + row * p.width, y + row * p.width, scratch);
    }
    return;
  }
  for (int64_t row = first; row < last; row += kLanes) {
    const int count = last - row < kLanes ? static_cast<int>(last - row) : kLanes;
    to_floats(x + row * p.width, scratch, count * p.width);
    norm_short_rows(p, scratch, y + row * p.width, count);
  }
}

// y is float, or bfloat16 where x is.
inline void row_norm_kernel(const RowNorm& p, int64_t first, int64_t last, float* scratch) {
  if (p.y_dtype == DType::kBFloat16) {
    return norm_rows<BFloat16, BFloat16>(p, first, last, scratch);
  }
  visit_dtype(p.x_dtype, [&](auto x) { norm_rows<decltype(x), float>(p, first, last, scratch); });
}

// out = tokens + LN2(z) of one row, where z(column, lanes) = product + bias. z goes to `buffer`,
// and to `projection` where that is wanted.
template <class U, class F>
TNT_INLINE void update_row(const PatchUpdate& p, int64_t patch, const U* tokens, U* out,
                           float* buffer, const F& z) {
  auto add = [&](int64_t i, int n, Vec y) {
    write(out + i, tokens == nullptr ? y : read(tokens + i, n) + y, n);
  };
  if (p.gamma == nullptr) {
    for_columns(p.width, [&](int64_t i, int n) { add(i, n, z(i, n)); });
    return;
  }
  const RowStats stats = stage_row(p.width, p.eps, buffer, z);
  for_columns(p.width, [&](int64_t i, int n) {
    const Vec scaled = (read(buffer + i, n) - stats.mean) * stats.rstd;
    add(i, n, fma(scaled, read(p.gamma + i, n), read(p.beta + i, n)));
  });
  if (p.projection == nullptr) return;
  visit_dtype(p.projection_dtype, [&](auto element) {
    using W = decltype(element);
    from_floats(buffer, static_cast<W*>(p.projection) + patch * p.width, p.width);
  });
}

// Product of type T, tokens and output of type U.
template <class T, class U>
void update_patches(const PatchUpdate& p, int64_t first, int64_t last, float* buffer) {
  for (int64_t patch = first; patch < last; ++patch) {
    const U* tokens = nullptr;
    U* out = static_cast<U*>(p.out) + patch * p.width;
    if (p.tokens != nullptr) {
      const int64_t skipped = (patch / p.patches_per_image + 1) * p.width;
      tokens = static_cast<const U*>(p.tokens) + patch * p.width + skipped;
      out += skipped;
      if (patch % p.patches_per_image == 0) {
        __builtin_memcpy(out - p.width, tokens - p.width, p.width * sizeof(U));  // class token
      }
    }
    const T* product = static_cast<const T*>(p.product) + patch * p.width;
    if (p.bias == nullptr) {
      update_row(p, patch, tokens, out, buffer,
                 [&](int64_t i, int n) { return read(product + i, n); });
    } else {
      update_row(p, patch, tokens, out, buffer,
                 [&](int64_t i, int n) { return read(product + i, n) + read(p.bias + i, n); });
    }
  }
}

// The product is float or bfloat16.
inline void patch_update_kernel(const PatchUpdate& p, int64_t first, int64_t last, float* scratch) {
  visit_dtype(p.out_dtype, [&](auto out) {
    if (p.product_dtype == DType::kBFloat16) {
      update_patches<BFloat16, decltype(out)>(p, first, last, scratch);
    } else {
      update_patches<float, decltype(out)>(p, first, last, scratch);
    }
  });
}

}  // namespace tnt_kernels::cpu::TNT_ISA
