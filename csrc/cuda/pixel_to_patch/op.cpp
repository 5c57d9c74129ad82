// pixel_to_patch and its backward on CUDA tensors: checks, allocation, launch, registration. The
// schemas are in tnt_kernels/reference/pixel_to_patch.py.

#include <algorithm>
#include <array>
#include <tuple>

#include "cuda/call.h"
#include "cuda/pixel_to_patch/kernels.h"
#include "cuda/tf32.h"
#include "cuda/tile/launch_sum.h"

namespace tnt_kernels::cuda {
namespace {

constexpr int64_t kMostPatches = (int64_t{1} << 31) - 1;

struct Weights {
  const Tensor &norm1_weight, &norm1_bias, &proj_weight;
  const OptionalTensor &proj_bias, &norm2_weight, &norm2_bias;
};

// a b for matrices, by PyTorch, which asks its own settings about TF32
Tensor product(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

float* float_data(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

class PatchCall : private Call {
 public:
  PatchCall(const char* op, const Tensor& pixels, const Weights& w, double eps)
      : Call(op, pixels), pixels_(pixels), w_(w), eps_(static_cast<float>(eps)) {
    STD_TORCH_CHECK(pixels.dim() == 3 && has_dtype(pixels), op,
                    ": pixels must be (P, S, C) float32, bfloat16 or float16");
    STD_TORCH_CHECK(w.proj_weight.dim() == 2 && w.norm1_weight.dim() == 1, op,
                    ": proj_weight must be (D, S*C), norm1_weight (S*C,) or (C,)");
    patches_ = pixels.size(0);
    width_ = pixels.size(1) * pixels.size(2);
    norm1_width_ = w.norm1_weight.size(0);
    STD_TORCH_CHECK(w.proj_weight.size(1) == width_, op,
                    ": proj_weight must be (D, S*C), as wide as a patch of pixels");
    STD_TORCH_CHECK(norm1_width_ == width_ || norm1_width_ == pixels.size(2), op,
                    ": norm1_weight must be (S*C,) or (C,)");
    STD_TORCH_CHECK(w.norm2_weight.has_value() == w.norm2_bias.has_value(), op,
                    ": norm2_weight and norm2_bias must be given together");
    const bool has_width = width_ == 384 || width_ == 640;
    const int64_t half_lanes = has_width ? 64 * norm1_width_ / width_ : 0;  // of a LayerNorm group
    const bool has_group = half_lanes * width_ == 64 * norm1_width_ && half_lanes > 0 &&
                           (half_lanes & (half_lanes - 1)) == 0;
    STD_TORCH_CHECK(has_group && w.proj_weight.size(0) == width_ && patches_ <= kMostPatches, op,
                    ": no CUDA kernel for S*C=", width_, ", D=", w.proj_weight.size(0),
                    " and a norm over ", norm1_width_, "; use backend='reference'");
    // all of them, also for backward, whose gradient is as long as they are
    norm1_weight_ = weight("norm1_weight", w.norm1_weight, norm1_width_);
    norm1_bias_ = weight("norm1_bias", w.norm1_bias, norm1_width_);
    proj_weight_ = weight("proj_weight", w.proj_weight, width_, width_);
    proj_bias_ = weight("proj_bias", w.proj_bias, width_);
    norm2_weight_ = weight("norm2_weight", w.norm2_weight, width_);
    norm2_bias_ = weight("norm2_bias", w.norm2_bias, width_);
    check_capability();
  }

  bool has_norm2() const { return w_.norm2_weight.has_value(); }

  // (out, projection); the latter is empty unless it is to be kept.
  std::tuple<Tensor, Tensor> forward(const OptionalTensor& tokens, bool save_projection) {
    const bool save = save_projection && has_norm2();
    const ScalarType type = pixels_.scalar_type();
    Tensor projection = save ? new_tensor({patches_, width_}, type) : new_tensor({0}, type);
    Tensor out = tokens.has_value() ? new_tensor({tokens->size(0), tokens->size(1), width_},
                                                 checked(*tokens, "patch_tokens"))
                                    : new_tensor({patches_, width_}, type);
    if (patches_ == 0) {
      // Without patches there may still be class tokens.
      if (tokens.has_value()) torch::stable::copy_(out, *tokens);
      return {out, projection};
    }
    const bool tf32 = dtype() == DType::kFloat32 && allows_tf32(/*convolution=*/false);
    const Tensor weights =
        new_tensor({width_, width_}, type == ScalarType::Float ? type : ScalarType::Half);
    const Tensor vectors = new_tensor({3, width_}, ScalarType::Float);
    const PatchPack pack = {norm1_weight_,
                            norm1_bias_,
                            proj_weight_,
                            proj_bias_,
                            norm2_weight_,
                            norm2_bias_,
                            static_cast<int>(norm1_width_),
                            static_cast<uint32_t*>(weights.mutable_data_ptr()),
                            float_data(vectors)};
    STD_CUDA_CHECK(launch_pixel_to_patch_pack(dtype(), tf32, width(), pack, stream()));
    const PatchForward params = {activation(pixels_),
                                 pack.weights,
                                 pack.vectors,
                                 tokens.has_value() ? activation(*tokens) : nullptr,
                                 out.mutable_data_ptr(),
                                 save ? projection.mutable_data_ptr() : nullptr,
                                 patches_,
                                 tokens.has_value() ? static_cast<int>(tokens->size(1) - 1) : 0,
                                 dtype_of(out),
                                 static_cast<int>(norm1_width_),
                                 has_norm2(),
                                 eps_};
    STD_CUDA_CHECK(launch_pixel_to_patch_forward(dtype(), tf32, width(), params, stream()));
    return {out, projection};
  }

  std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& projection, bool has_tokens,
                                      bool need_dpixels, bool need_dw) {
    check_gradient(dy, projection, has_tokens);
    const ScalarType type = pixels_.scalar_type();
    const int64_t proj_size = width_ * width_, proj_bias = 2 * norm1_width_ + proj_size;
    Tensor dw = new_tensor({need_dw ? proj_bias + 3 * width_ : 0}, ScalarType::Float);
    Tensor dpixels = need_dpixels ? new_tensor({patches_, pixels_.size(1), pixels_.size(2)}, type)
                                  : new_tensor({0}, type);
    if (need_dw) torch::stable::zero_(dw);
    if (patches_ == 0 || !(need_dpixels || need_dw)) return {dpixels, dw};

    const int blocks = static_cast<int>(
        std::min<int64_t>((patches_ + kPatchWarps - 1) / kPatchWarps,
                          int64_t{multiprocessors()} * kPatchBlocksPerMultiprocessor));
    const Tensor partials =
        new_tensor({need_dw ? 3 : 0, need_dw ? blocks : 0, width_}, ScalarType::Float);
    float* const sums = need_dw ? float_data(partials) : nullptr;
    const void* source = activation(pixels_);

    const Tensor dz = new_tensor({patches_, width_}, type);
    const PatchNorm2Backward norm2 = {activation(dy),
                                      has_norm2() ? activation(projection) : nullptr,
                                      norm2_weight_,
                                      dz.mutable_data_ptr(),
                                      sums,
                                      patches_,
                                      has_tokens ? static_cast<int>(dy.size(1) - 1) : 0,
                                      dtype_of(dy),
                                      has_norm2(),
                                      eps_};
    STD_CUDA_CHECK(launch_patch_norm2_backward(dtype(), width(), norm2, blocks, stream()));
    float* const flat = need_dw ? float_data(dw) : nullptr;
    if (need_dw) {
      const int64_t plane = int64_t{blocks} * width_;
      if (w_.proj_bias.has_value()) add_partials(sums, flat + proj_bias, blocks, width_);
      if (has_norm2()) {
        add_partials(sums + plane, flat + proj_bias + width_, blocks, width_);
        add_partials(sums + 2 * plane, flat + proj_bias + 2 * width_, blocks, width_);
      }
      const Tensor rows = new_tensor({patches_, width_}, type);
      const PatchNormalise call = {
          source,   rows.mutable_data_ptr(),        norm1_weight_, norm1_bias_,
          patches_, static_cast<int>(norm1_width_), eps_};
      STD_CUDA_CHECK(launch_patch_normalise(dtype(), width(), call, blocks, stream()));
      const Tensor dproj = product(torch::stable::transpose(dz, 0, 1), rows);
      Tensor slot = torch::stable::narrow(dw, 0, 2 * norm1_width_, proj_size);
      torch::stable::copy_(slot, torch::stable::reshape(dproj, {&proj_size, 1}));
    }
    // contiguous: the order of sums in a product may depend on layouts
    const bool same = w_.proj_weight.scalar_type() == type;
    const Tensor proj_weight =
        torch::stable::contiguous(same ? w_.proj_weight : torch::stable::to(w_.proj_weight, type));
    const Tensor drows = product(dz, proj_weight);
    const PatchNorm1Backward norm1 = {activation(drows),
                                      source,
                                      norm1_weight_,
                                      need_dpixels ? dpixels.mutable_data_ptr() : nullptr,
                                      sums,
                                      patches_,
                                      static_cast<int>(norm1_width_),
                                      eps_};
    STD_CUDA_CHECK(launch_patch_norm1_backward(dtype(), width(), norm1, blocks, stream()));
    if (need_dw) {
      // Where LN1 spans tokens, a row of sums is that of S tokens.
      const int64_t count = blocks * (width_ / norm1_width_), plane = int64_t{blocks} * width_;
      add_partials(sums, flat, count, norm1_width_);
      add_partials(sums + plane, flat + norm1_width_, count, norm1_width_);
    }
    return {dpixels, dw};
  }

 private:
  DType dtype() const { return dtype_of(pixels_); }
  int width() const { return static_cast<int>(width_); }

  // The type of tokens (B, N + 1, D) or of their gradient.
  ScalarType checked(const Tensor& tokens, const char* name) const {
    STD_TORCH_CHECK(
        tokens.dim() == 3 && tokens.size(1) >= 1 && tokens.size(2) == width_ && has_dtype(tokens),
        op(), ": ", name, " must be (B, N + 1, D) float32, bfloat16 or float16");
    STD_TORCH_CHECK(tokens.size(0) * (tokens.size(1) - 1) == patches_, op(), ": ", name,
                    " (B, N + 1, D) must have B * N = P, the patches of pixels");
    check_device(name, tokens);
    return tokens.scalar_type();
  }

  void check_gradient(const Tensor& dy, const Tensor& projection, bool has_tokens) const {
    if (has_tokens) {
      checked(dy, "dy");
    } else {
      STD_TORCH_CHECK(
          dy.dim() == 2 && dy.size(0) == patches_ && dy.size(1) == width_ && has_dtype(dy), op(),
          ": dy must be (P, D), as the output");
    }
    STD_TORCH_CHECK(!has_norm2() || (projection.dim() == 2 && projection.size(0) == patches_ &&
                                     projection.size(1) == width_ &&
                                     projection.scalar_type() == pixels_.scalar_type()),
                    op(), ": projection must be (P, D), from a forward call with save_projection");
  }

  void add_partials(const float* partials, float* out, int64_t count, int64_t width) const {
    const SumPartials sum = {partials, out, width, width, static_cast<int>(count)};
    STD_CUDA_CHECK(launch_sum_partials(sum, stream()));
  }

  const Tensor& pixels_;
  const Weights& w_;
  WeightView norm1_weight_, norm1_bias_, proj_weight_, proj_bias_, norm2_weight_, norm2_bias_;
  int64_t patches_ = 0, width_ = 0, norm1_width_ = 0;
  float eps_;
};

std::tuple<Tensor, Tensor> pixel_to_patch(const Tensor& pixels, const OptionalTensor& patch_tokens,
                                          const Tensor& norm1_weight, const Tensor& norm1_bias,
                                          const Tensor& proj_weight,
                                          const OptionalTensor& proj_bias,
                                          const OptionalTensor& norm2_weight,
                                          const OptionalTensor& norm2_bias, double eps,
                                          bool save_projection) {
  const Weights w = {norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias};
  PatchCall call("pixel_to_patch", pixels, w, eps);
  return call.forward(patch_tokens, save_projection);
}

std::tuple<Tensor, Tensor> pixel_to_patch_backward(
    const Tensor& dy, const Tensor& pixels, const Tensor& projection, const Tensor& norm1_weight,
    const Tensor& norm1_bias, const Tensor& proj_weight, const OptionalTensor& proj_bias,
    const OptionalTensor& norm2_weight, const OptionalTensor& norm2_bias, bool has_patch_tokens,
    double eps, bool need_dpixels, bool need_dw) {
  const Weights w = {norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias};
  PatchCall call("pixel_to_patch_backward", pixels, w, eps);
  return call.backward(dy, projection, has_patch_tokens, need_dpixels, need_dw);
}

}  // namespace
}  // namespace tnt_kernels::cuda

TNT_CUDA_OPERATORS(m) {
  m.impl("pixel_to_patch", TORCH_BOX(&tnt_kernels::cuda::pixel_to_patch));
  m.impl("pixel_to_patch_backward", TORCH_BOX(&tnt_kernels::cuda::pixel_to_patch_backward));
}
