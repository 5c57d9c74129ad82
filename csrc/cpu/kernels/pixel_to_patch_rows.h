#pragma once
// Z = Z + LN2(FC(LN1(Vec(Y)))), Eq. 8: everything but the product, row by row.
//
// row_norm_kernel is LN1, patch_update_kernel all that follows the product, row_norm_bwd_kernel the
// backward of either norm. One thread computes a range of rows; lanes are neighbouring columns. A
// row is a few KB, so the passes over it run in the first-level cache: mean and variance take one
// each, which keeps the variance exact where the mean dwarfs it.

#include "cpu/kernels/pixel_to_patch.h"
#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

// The row as floats: itself, or converted into `buffer`.
TNT_INLINE const float* row_floats(const void* base, DType dtype, int64_t row, int64_t width,
                                   float* buffer) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(base) + row * width;
  if (dtype == DType::kBFloat16) {
    to_floats(static_cast<const BFloat16*>(base) + row * width, buffer, width);
  } else {
    to_floats(static_cast<const Float16*>(base) + row * width, buffer, width);
  }
  return buffer;
}

// Where to write a row as floats: in place, or `buffer`, which finish_row then converts.
TNT_INLINE float* row_target(void* base, DType dtype, int64_t row, int64_t width, float* buffer) {
  return dtype == DType::kFloat32 ? static_cast<float*>(base) + row * width : buffer;
}
TNT_INLINE void finish_row(void* base, DType dtype, int64_t row, int64_t width,
                           const float* buffer) {
  if (dtype == DType::kBFloat16) {
    from_floats(buffer, static_cast<BFloat16*>(base) + row * width, width);
  } else if (dtype == DType::kFloat16) {
    from_floats(buffer, static_cast<Float16*>(base) + row * width, width);
  }
}

// Calls f(column, lanes) for every vector of a row; lanes is kLanes, or less for the last one.
template <class F>
TNT_INLINE void for_columns(int64_t width, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) f(i, kLanes);
  if (i < width) f(i, static_cast<int>(width - i));
}
TNT_INLINE Vec read(const float* p, int n) { return n == kLanes ? load(p) : load_n(p, n); }
TNT_INLINE void write(float* p, Vec a, int n) {
  if (n == kLanes) {
    store(p, a);
  } else {
    store_n(p, a, n);
  }
}

// The sum over a row of term(column, lanes); four sums side by side hide the latency of an
// addition.
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

struct RowStats {
  Vec mean, rstd;  // the same in all lanes
};

TNT_INLINE RowStats row_stats(const float* x, int64_t width, float eps) {
  const float total = row_sum(width, [&](int64_t i, int n) { return read(x + i, n); });
  const Vec mean = splat(total / static_cast<float>(width));
  const float squares = row_sum(width, [&](int64_t i, int n) {
    const Vec centred = read(x + i, n) - mean;
    return centred * centred;
  });
  const float variance = squares / static_cast<float>(width);
  return {mean, splat(1.0f / __builtin_sqrtf(variance + eps))};
}

inline void row_norm_kernel(const RowNorm& p, int64_t first, int64_t last, float* scratch) {
  for (int64_t row = first; row < last; ++row) {
    const float* x = row_floats(p.x, p.x_dtype, row, p.width, scratch);
    float* y = row_target(p.y, p.y_dtype, row, p.width, scratch);
    const RowStats stats = row_stats(x, p.width, p.eps);
    for_columns(p.width, [&](int64_t i, int n) {
      const Vec scaled = (read(x + i, n) - stats.mean) * stats.rstd;
      write(y + i, fma(scaled, read(p.gamma + i, n), read(p.beta + i, n)), n);
    });
    finish_row(p.y, p.y_dtype, row, p.width, y);
  }
}

// Copies the class token's row of an image.
TNT_INLINE void copy_class_token(const PatchUpdate& p, int64_t row) {
  const int64_t bytes = p.width * element_size(p.out_dtype);
  __builtin_memcpy(static_cast<char*>(p.out) + row * bytes,
                   static_cast<const char*>(p.tokens) + row * bytes, bytes);
}

inline void patch_update_kernel(const PatchUpdate& p, int64_t first, int64_t last, float* scratch) {
  float* product_buffer = scratch;
  float* tokens_buffer = scratch + p.width;
  for (int64_t patch = first; patch < last; ++patch) {
    int64_t row = patch;
    if (p.tokens != nullptr) {
      row += patch / p.patches_per_image + 1;
      if (patch % p.patches_per_image == 0) copy_class_token(p, row - 1);
    }
    const float* z = row_floats(p.product, p.product_dtype, patch, p.width, product_buffer);
    if (p.bias != nullptr) {
      for_columns(p.width, [&](int64_t i, int n) {
        write(product_buffer + i, read(z + i, n) + read(p.bias + i, n), n);
      });
      z = product_buffer;
    }
    if (p.projection != nullptr) {
      float* saved = row_target(p.projection, p.projection_dtype, patch, p.width, nullptr);
      if (saved != nullptr) __builtin_memcpy(saved, z, p.width * sizeof(float));
      finish_row(p.projection, p.projection_dtype, patch, p.width, z);
    }
    const float* tokens = nullptr;
    if (p.tokens != nullptr)
      tokens = row_floats(p.tokens, p.out_dtype, row, p.width, tokens_buffer);
    float* out = row_target(p.out, p.out_dtype, row, p.width, tokens_buffer);
    RowStats stats = {};
    if (p.gamma != nullptr) stats = row_stats(z, p.width, p.eps);
    for_columns(p.width, [&](int64_t i, int n) {
      Vec y = read(z + i, n);
      if (p.gamma != nullptr) {
        y = fma((y - stats.mean) * stats.rstd, read(p.gamma + i, n), read(p.beta + i, n));
      }
      if (tokens != nullptr) y = y + read(tokens + i, n);
      write(out + i, y, n);
    });
    finish_row(p.out, p.out_dtype, row, p.width, out);
  }
}

// dx = rstd (g - mean(g) - xhat mean(g xhat)), g = gamma dy, and the sums over rows of dy xhat, dy
// and dx. Rows are summed in stretches of kSumRows into `scratch`, then into `sums`: two levels
// keep the error small.
constexpr int64_t kSumRows = 32;

inline void row_norm_bwd_kernel(const RowNormBackward& p, int64_t first, int64_t last,
                                const RowNormSums& sums, float* scratch) {
  const int64_t width = p.width;
  float* dy_buffer = scratch;
  float* x_buffer = scratch + width;
  float* dx_buffer = scratch + 2 * width;
  float* partial[3] = {scratch + 3 * width, scratch + 4 * width, scratch + 5 * width};
  float* const total[3] = {sums.dgamma, sums.dbeta, sums.dx_sum};
  const float inverse_width = 1.0f / static_cast<float>(width);
  for (int64_t stretch = first; stretch < last; stretch += kSumRows) {
    const int64_t end = stretch + kSumRows < last ? stretch + kSumRows : last;
    for (int64_t i = 0; i < 3 * width; ++i) partial[0][i] = 0;
    for (int64_t row = stretch; row < end; ++row) {
      const int64_t skipped = p.patches_per_image > 0 ? row / p.patches_per_image + 1 : 0;
      const float* dy = row_floats(p.dy, p.dy_dtype, row + skipped, width, dy_buffer);
      float* dx = row_target(p.dx, p.dx_dtype, row, width, dx_buffer);
      if (p.gamma == nullptr) {
        for_columns(width, [&](int64_t i, int n) {
          const Vec g = read(dy + i, n);
          write(dx + i, g, n);
          write(partial[2] + i, read(partial[2] + i, n) + g, n);
        });
        finish_row(p.dx, p.dx_dtype, row, width, dx);
        continue;
      }
      const float* x = row_floats(p.x, p.x_dtype, row, width, x_buffer);
      const RowStats stats = row_stats(x, width, p.eps);
      const float sum_g =
          row_sum(width, [&](int64_t i, int n) { return read(dy + i, n) * read(p.gamma + i, n); });
      const float sum_g_xhat = row_sum(width, [&](int64_t i, int n) {
        const Vec xhat = (read(x + i, n) - stats.mean) * stats.rstd;
        return read(dy + i, n) * read(p.gamma + i, n) * xhat;
      });
      const Vec mean_g = splat(sum_g * inverse_width);
      const Vec mean_g_xhat = splat(sum_g_xhat * inverse_width);
      for_columns(width, [&](int64_t i, int n) {
        const Vec xhat = (read(x + i, n) - stats.mean) * stats.rstd;
        const Vec dyv = read(dy + i, n);
        const Vec g = dyv * read(p.gamma + i, n);
        const Vec dxv = stats.rstd * fnma(xhat, mean_g_xhat, g - mean_g);
        write(dx + i, dxv, n);
        write(partial[0] + i, fma(dyv, xhat, read(partial[0] + i, n)), n);
        write(partial[1] + i, read(partial[1] + i, n) + dyv, n);
        if (total[2] != nullptr) write(partial[2] + i, read(partial[2] + i, n) + dxv, n);
      });
      finish_row(p.dx, p.dx_dtype, row, width, dx);
    }
    for (int k = 0; k < 3; ++k) {
      if (total[k] == nullptr) continue;
      for_columns(width, [&](int64_t i, int n) {
        write(total[k] + i, read(total[k] + i, n) + read(partial[k] + i, n), n);
      });
    }
  }
}

inline PixelToPatchKernels pixel_to_patch_kernels() {
  return {row_norm_kernel, patch_update_kernel, row_norm_bwd_kernel};
}

}  // namespace tnt_kernels::cpu::TNT_ISA
