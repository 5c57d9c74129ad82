// pixel_to_patch and its backward: checks, layout of work, products through ATen, registration. The
// kernels around the products are in kernels/pixel_to_patch_{fwd,bwd}.h.

#include <array>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/pixel_tensors.h"

namespace tnt_kernels::cpu {
namespace {

// Weights in the order of the schema; the vectors as contiguous floats, proj as it came.
struct Weights {
  Tensor norm1_weight, norm1_bias, proj;
  OptionalTensor proj_bias, norm2_weight, norm2_bias;
};

struct Sizes {
  int64_t patches, tokens, dim, outer_dim, norm1_width;

  int64_t width() const { return tokens * dim; }
  // Rows that LN1 normalises: patches, or pixel tokens in the legacy dialect.
  int64_t norm1_rows() const { return patches * width() / norm1_width; }
};

OptionalTensor as_floats(const OptionalTensor& t) {
  return t.has_value() ? OptionalTensor(cast_to_float(*t)) : t;
}

const float* data_or_null(const OptionalTensor& t) {
  return t.has_value() ? float_data(*t) : nullptr;
}

Sizes checked_sizes(const char* op, const Tensor& pixels, const Weights& w) {
  STD_TORCH_CHECK(pixels.dim() == 3 && has_dtype(pixels), op,
                  ": pixels must be (P, S, C) float32, bfloat16 or float16");
  STD_TORCH_CHECK(w.proj.dim() == 2 && has_dtype(w.proj), op, ": proj_weight must be (D, S*C)");
  Sizes s = {pixels.size(0), pixels.size(1), pixels.size(2), w.proj.size(0),
             w.norm1_weight.numel()};
  STD_TORCH_CHECK(s.width() > 0 && s.outer_dim > 0 && w.proj.size(1) == s.width(), op,
                  ": proj_weight must be (D, S*C), as wide as a patch of pixels");
  STD_TORCH_CHECK((s.norm1_width == s.width() || s.norm1_width == s.dim) &&
                      w.norm1_bias.numel() == s.norm1_width,
                  op, ": norm1_weight and norm1_bias must be (S*C,) or (C,)");
  STD_TORCH_CHECK(w.norm2_weight.has_value() == w.norm2_bias.has_value(), op,
                  ": norm2_weight and norm2_bias must be given together");
  auto fits = [&](const OptionalTensor& t) { return !t.has_value() || t->numel() == s.outer_dim; };
  STD_TORCH_CHECK(fits(w.proj_bias) && fits(w.norm2_weight) && fits(w.norm2_bias), op,
                  ": proj_bias, norm2_weight and norm2_bias must be (D,)");
  return s;
}

Weights weights_of(const char* op, const Tensor& norm1_weight, const Tensor& norm1_bias,
                   const Tensor& proj_weight, const OptionalTensor& proj_bias,
                   const OptionalTensor& norm2_weight, const OptionalTensor& norm2_bias) {
  auto good = [](const OptionalTensor& t) { return !t.has_value() || has_dtype(*t); };
  STD_TORCH_CHECK(good(norm1_weight) && good(norm1_bias) && good(proj_bias) && good(norm2_weight) &&
                      good(norm2_bias),
                  op, ": weights must be float32, bfloat16 or float16");
  return {cast_to_float(norm1_weight), cast_to_float(norm1_bias), proj_weight,
          as_floats(proj_bias),        as_floats(norm2_weight),   as_floats(norm2_bias)};
}

// The dtype of the products. Half precision is computed in float32, which is as fast on CPUs;
// bfloat16 too where the machine has no instruction for it.
ScalarType product_type(const Tensor& pixels) {
  const bool bfloat16 = pixels.scalar_type() == ScalarType::BFloat16 && has_bfloat16_product();
  return bfloat16 ? ScalarType::BFloat16 : ScalarType::Float;
}

// a b for matrices
Tensor product(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// LN1(Vec(Y)) as (P, S*C) of the products' dtype.
Tensor normalised(const Tensor& pixels, const Sizes& s, const Weights& w, double eps,
                  ScalarType type) {
  Tensor rows = new_tensor(pixels, {s.patches, s.width()}, type);
  const RowNorm call = {
      pixels.const_data_ptr(), rows.mutable_data_ptr(),    dtype_of(pixels),
      dtype_of(rows),          float_data(w.norm1_weight), float_data(w.norm1_bias),
      s.norm1_width,           static_cast<float>(eps)};
  const int64_t scratch_floats = padded_floats(kernels().pixel_to_patch.lanes * s.norm1_width);
  const int64_t unit = s.width() / s.norm1_width, total = s.norm1_rows();
  const Tensor scratch =
      new_tensor(pixels, {num_chunks(total, unit) * scratch_floats}, ScalarType::Float);
  for_chunks(total, unit, [&](int64_t chunk, int64_t first, int64_t last) {
    kernels().pixel_to_patch.norm(call, first, last,
                                  mutable_float_data(scratch) + chunk * scratch_floats);
  });
  return rows;
}

// Patches per image, after checks of the patch tokens.
int64_t checked_tokens(const char* op, const Tensor& tokens, const Sizes& s) {
  STD_TORCH_CHECK(tokens.dim() == 3 && tokens.size(1) >= 1 && tokens.size(2) == s.outer_dim &&
                      has_dtype(tokens),
                  op, ": patch_tokens must be (B, N + 1, D) float32, bfloat16 or float16");
  STD_TORCH_CHECK(tokens.size(0) * (tokens.size(1) - 1) == s.patches, op,
                  ": patch_tokens (B, N + 1, D) must have B * N = P, the patches of pixels");
  return tokens.size(1) - 1;
}

std::tuple<Tensor, Tensor> pixel_to_patch(const Tensor& pixels, const OptionalTensor& patch_tokens,
                                          const Tensor& norm1_weight, const Tensor& norm1_bias,
                                          const Tensor& proj_weight,
                                          const OptionalTensor& proj_bias,
                                          const OptionalTensor& norm2_weight,
                                          const OptionalTensor& norm2_bias, double eps,
                                          bool save_projection) {
  const char* op = "pixel_to_patch";
  const Weights w =
      weights_of(op, norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias);
  const Sizes s = checked_sizes(op, pixels, w);
  int64_t patches_per_image = 0;
  OptionalTensor tokens;
  if (patch_tokens.has_value()) {
    patches_per_image = checked_tokens(op, *patch_tokens, s);
    tokens = torch::stable::contiguous(*patch_tokens);
  }
  const bool save = save_projection && w.norm2_weight.has_value();
  Tensor out = tokens.has_value()
                   ? torch::stable::empty_like(*tokens)
                   : new_tensor(pixels, {s.patches, s.outer_dim}, pixels.scalar_type());
  if (s.patches == 0) {
    // Without patches there may still be class tokens.
    if (tokens.has_value()) torch::stable::copy_(out, *tokens);
    Tensor projection =
        save ? new_tensor(pixels, {0, s.outer_dim}, pixels.scalar_type()) : no_tensor(pixels);
    return {out, projection};
  }
  const ScalarType type = product_type(pixels);
  const Tensor rows = normalised(torch::stable::contiguous(pixels), s, w, eps, type);
  const Tensor z = product(rows, torch::stable::transpose(cast(w.proj, type), 0, 1));
  // The product itself serves as the saved projection if nothing is added or converted.
  const bool product_is_projection = type == pixels.scalar_type() && !w.proj_bias.has_value();
  Tensor projection = no_tensor(pixels);
  if (save) {
    projection = product_is_projection
                     ? z
                     : new_tensor(pixels, {s.patches, s.outer_dim}, pixels.scalar_type());
  }
  const PatchUpdate call = {
      z.const_data_ptr(),
      dtype_of(z),
      data_or_null(w.proj_bias),
      data_or_null(w.norm2_weight),
      data_or_null(w.norm2_bias),
      tokens.has_value() ? tokens->const_data_ptr() : nullptr,
      out.mutable_data_ptr(),
      dtype_of(out),
      save && !product_is_projection ? projection.mutable_data_ptr() : nullptr,
      dtype_of(pixels),
      patches_per_image,
      s.outer_dim,
      static_cast<float>(eps)};
  const int64_t scratch_floats = padded_floats(s.outer_dim);
  const Tensor scratch =
      new_tensor(pixels, {num_chunks(s.patches, 1) * scratch_floats}, ScalarType::Float);
  for_chunks(s.patches, 1, [&](int64_t chunk, int64_t first, int64_t last) {
    kernels().pixel_to_patch.update(call, first, last,
                                    mutable_float_data(scratch) + chunk * scratch_floats);
  });
  return {out, projection};
}

// Runs the backward of a norm (or of the identity) over `rows` rows and adds each thread's sums, in
// a fixed order, into those of `sums` that are not null.
void norm_backward(const Tensor& like, const RowNormBackward& call, int64_t rows, int64_t unit,
                   const RowNormSums& sums) {
  const int64_t width = call.width;
  const int64_t chunk_floats = padded_floats((2 * kernels().pixel_to_patch.lanes + 6) * width);
  const int64_t chunks = num_chunks(rows, unit);
  const Tensor workspace = new_tensor(like, {chunks * chunk_floats}, ScalarType::Float);
  float* base = mutable_float_data(workspace);
  float* const totals[3] = {sums.dgamma, sums.dbeta, sums.dx_sum};
  for_chunks(rows, unit, [&](int64_t chunk, int64_t first, int64_t last) {
    float* partial = base + chunk * chunk_floats;
    std::fill_n(partial, 3 * width, 0.0f);
    const RowNormSums own = {totals[0] ? partial : nullptr, totals[1] ? partial + width : nullptr,
                             totals[2] ? partial + 2 * width : nullptr};
    kernels().pixel_to_patch.norm_bwd(call, first, last, own, partial + 3 * width);
  });
  for (int k = 0; k < 3; ++k) {
    if (totals[k] == nullptr) continue;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* partial = base + chunk * chunk_floats + k * width;
      for (int64_t i = 0; i < width; ++i) totals[k][i] += partial[i];
    }
  }
}

std::tuple<Tensor, Tensor> pixel_to_patch_backward(
    const Tensor& dy, const Tensor& pixels, const Tensor& projection, const Tensor& norm1_weight,
    const Tensor& norm1_bias, const Tensor& proj_weight, const OptionalTensor& proj_bias,
    const OptionalTensor& norm2_weight, const OptionalTensor& norm2_bias, bool has_patch_tokens,
    double eps, bool need_dpixels, bool need_dw) {
  const char* op = "pixel_to_patch_backward";
  const Weights w =
      weights_of(op, norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias);
  const Sizes s = checked_sizes(op, pixels, w);
  const bool has_norm2 = w.norm2_weight.has_value();
  int64_t patches_per_image = 0;
  if (has_patch_tokens) {
    patches_per_image = checked_tokens(op, dy, s);
  } else {
    STD_TORCH_CHECK(
        dy.dim() == 2 && dy.size(0) == s.patches && dy.size(1) == s.outer_dim && has_dtype(dy), op,
        ": dy must be (P, D), as the output");
  }
  STD_TORCH_CHECK(!has_norm2 || (projection.dim() == 2 && projection.size(0) == s.patches &&
                                 projection.size(1) == s.outer_dim && has_dtype(projection)),
                  op, ": projection must be (P, D), from a forward call with save_projection");

  const int64_t proj_size = s.outer_dim * s.width();
  Tensor dw = new_tensor(pixels, {need_dw ? 2 * s.norm1_width + proj_size + 3 * s.outer_dim : 0},
                         ScalarType::Float);
  float* dnorm1 = mutable_float_data(dw);
  float* dproj_bias = dnorm1 + 2 * s.norm1_width + proj_size;
  if (need_dw) torch::stable::zero_(dw);
  Tensor dpixels = no_tensor(pixels);
  if (need_dpixels) {
    dpixels = new_tensor(pixels, {s.patches, s.tokens, s.dim}, pixels.scalar_type());
  }
  if (s.patches == 0) return {dpixels, dw};

  const ScalarType type = product_type(pixels);
  const Tensor source = torch::stable::contiguous(pixels);
  const Tensor grad = torch::stable::contiguous(dy);
  const Tensor saved = torch::stable::contiguous(projection);
  const float eps32 = static_cast<float>(eps);

  Tensor dz = new_tensor(pixels, {s.patches, s.outer_dim}, type);
  const RowNormBackward norm2 = {grad.const_data_ptr(),
                                 dtype_of(grad),
                                 patches_per_image,
                                 has_norm2 ? saved.const_data_ptr() : nullptr,
                                 dtype_of(saved),
                                 dz.mutable_data_ptr(),
                                 type == ScalarType::Float ? DType::kFloat32 : DType::kBFloat16,
                                 data_or_null(w.norm2_weight),
                                 s.outer_dim,
                                 eps32};
  const bool sum_norm2 = need_dw && has_norm2, sum_bias = need_dw && w.proj_bias.has_value();
  norm_backward(
      pixels, norm2, s.patches, 1,
      {sum_norm2 ? dproj_bias + s.outer_dim : nullptr,
       sum_norm2 ? dproj_bias + 2 * s.outer_dim : nullptr, sum_bias ? dproj_bias : nullptr});
  if (need_dw) {
    const Tensor rows = normalised(source, s, w, eps, type);
    const Tensor dproj = product(torch::stable::transpose(dz, 0, 1), rows);
    Tensor slot = torch::stable::narrow(dw, 0, 2 * s.norm1_width, proj_size);
    torch::stable::copy_(slot, torch::stable::reshape(dproj, {&proj_size, 1}));
  }
  const Tensor drows = product(dz, cast(w.proj, type));
  // Without dpixels the sums still need LN1's backward, and that a place for its rows.
  const Tensor dx = need_dpixels
                        ? dpixels
                        : new_tensor(pixels, {s.patches, s.tokens, s.dim}, pixels.scalar_type());
  const RowNormBackward norm1 = {drows.const_data_ptr(),
                                 dtype_of(drows),
                                 0,
                                 source.const_data_ptr(),
                                 dtype_of(source),
                                 dx.mutable_data_ptr(),
                                 dtype_of(dx),
                                 float_data(w.norm1_weight),
                                 s.norm1_width,
                                 eps32};
  norm_backward(pixels, norm1, s.norm1_rows(), s.width() / s.norm1_width,
                {need_dw ? dnorm1 : nullptr, need_dw ? dnorm1 + s.norm1_width : nullptr, nullptr});
  return {dpixels, dw};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CPU, m) {
  m.impl("pixel_to_patch", TORCH_BOX(&pixel_to_patch));
  m.impl("pixel_to_patch_backward", TORCH_BOX(&pixel_to_patch_backward));
}

}  // namespace tnt_kernels::cpu
