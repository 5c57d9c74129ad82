// pixel_embed and its backward on CUDA tensors: checks, allocation, launch, registration. The
// schemas are in tnt_kernels/reference/pixel_embed.py.

#include <tuple>

#include "cuda/call.h"
#include "cuda/pixel_embed/kernels.h"
#include "cuda/tile/launch_sum.h"

namespace tnt_kernels::cuda {
namespace {

constexpr int64_t kLargestSide = 1 << 15, kLargestCount = (int64_t{1} << 31) - 1;

class PixelEmbedCall : private Call {
 public:
  PixelEmbedCall(const char* op, const Tensor& images, const Tensor& weight,
                 const OptionalTensor& mean, const OptionalTensor& deviation, int64_t patch_h,
                 int64_t patch_w, int64_t stride, bool unfold_first)
      : Call(op, images), is_uint8_(images.scalar_type() == ScalarType::Byte) {
    STD_TORCH_CHECK(is_uint8_ || has_dtype(images), op,
                    ": images must be float32, bfloat16, float16 or uint8");
    if (is_uint8_) check_dtype(op, "weight", weight);
    scalar_type_ = is_uint8_ ? weight.scalar_type() : images.scalar_type();
    type_ = dtype_of(is_uint8_ ? weight : images);
    STD_TORCH_CHECK(images.dim() == 4 && weight.dim() == 4, op,
                    ": images must be (B, Cin, H, W) and weight (C, Cin, k, k)");
    check_normalisation(op, images, "mean", mean);
    check_normalisation(op, images, "std", deviation);
    if (is_uint8_) {
      check_device("mean", *mean);
      check_device("std", *deviation);
      mean_ = floats(mean);
      deviation_ = floats(deviation);
    }
    const int64_t in_chans = images.size(1), height = images.size(2), width = images.size(3);
    const int64_t dim = weight.size(0), kernel = weight.size(2);
    STD_TORCH_CHECK(weight.size(1) == in_chans && weight.size(3) == kernel && kernel % 2 == 1, op,
                    ": weight must be (C, Cin, k, k) with odd k and the channels of images");
    STD_TORCH_CHECK(in_chans > 0 && height > 0 && width > 0 && dim > 0 && stride > 0 &&
                        patch_h > 0 && patch_w > 0,
                    op, ": all sizes but the batch must be positive");
    STD_TORCH_CHECK(patch_h % stride == 0 && patch_w % stride == 0, op,
                    ": stride must divide the patch size");
    STD_TORCH_CHECK(height % patch_h == 0 && width % patch_w == 0, op,
                    ": height and width of images must be multiples of the patch size");
    STD_TORCH_CHECK(kernel >= 3 && kernel <= kLargestKernel && stride % 2 == 0 &&
                        patch_w % kUnitPixels == 0 && dim % 2 == 0,
                    op, ": no CUDA kernel for a ", kernel, "x", kernel, " window, stride ", stride,
                    ", patches ", patch_w, " wide and ", dim, " channels; use backend='reference'");
    const int64_t patches = images.size(0) * (height / patch_h) * (width / patch_w);
    STD_TORCH_CHECK(height < kLargestSide && width < kLargestSide && dim < kLargestSide &&
                        in_chans * height * width <= kLargestCount && patches <= kLargestCount,
                    op, ": no CUDA kernel for images as large or as many as these");
    plan_.in_chans = static_cast<int>(in_chans);
    plan_.height = static_cast<int>(height);
    plan_.width = static_cast<int>(width);
    plan_.dim = static_cast<int>(dim);
    plan_.kernel = static_cast<int>(kernel);
    plan_.patch_h = static_cast<int>(patch_h);
    plan_.patch_w = static_cast<int>(patch_w);
    plan_.stride = static_cast<int>(stride);
    plan_.unfold_first = unfold_first;
    plan_.bytes = is_uint8_;
    plan_.num_patches = patches;
    check_capability();
  }

  Tensor forward(const Tensor& images, const Tensor& weights, const OptionalTensor& bias,
                 const OptionalTensor& pixel_pos) {
    complete(plan_, element_bytes(), kForwardTokens);
    STD_TORCH_CHECK(!bias.has_value() || bias->numel() == plan_.dim, op(), ": bias must be (C,)");
    STD_TORCH_CHECK(
        !pixel_pos.has_value() || pixel_pos->numel() == int64_t{plan_.dim} * plan_.tokens, op(),
        ": pixel_pos must be (1, C, h, w)");
    Tensor out = new_tensor({plan_.num_patches, plan_.tokens, plan_.dim}, scalar_type_);
    if (plan_.num_patches == 0) return out;
    const int64_t shared = check_shared(forward_shared_bytes(plan_, 1));
    PixelEmbedForward params = {plan_, activation(images), nullptr, out.mutable_data_ptr()};
    params.packed = pack(plan_, &weights, bias, pixel_pos);
    STD_CUDA_CHECK(launch_pixel_embed_forward(type_, params, shared, multiprocessors(), stream()));
    return out;
  }

  void check_gradient(const Tensor& dy) {
    complete_backward(plan_, element_bytes());
    STD_TORCH_CHECK(dy.dim() == 3 && dy.size(0) == plan_.num_patches &&
                        dy.size(1) == plan_.tokens && dy.size(2) == plan_.dim && has_dtype(dy),
                    op(), ": dy must be (P, S, C), as the output");
    check_device("dy", dy);
  }

  void check_image_gradient() const {
    STD_TORCH_CHECK(!is_uint8_, op(), ": uint8 images have no gradient; pass need_dimages=False");
  }

  // [weight | bias | pixel_pos], flat
  Tensor weight_gradients(const Tensor& dy, const Tensor& images) {
    Tensor flat = new_tensor({plan_.flat()}, ScalarType::Float);
    if (plan_.num_patches == 0) return torch::stable::zero_(flat);
    check_shared(backward_shared_bytes(plan_, element_bytes()));
    PixelEmbedPlan tables = plan_;
    tables.passes = 0;  // no weights
    tables.packed_words = tables.first_weight;
    const int parts = pixel_embed_parts(plan_, multiprocessors());
    const Tensor partials = new_tensor({parts, plan_.flat()}, ScalarType::Float);
    const PixelEmbedBackward params = {plan_, activation(images), gradient(dy),
                                       pack(tables, nullptr, std::nullopt, std::nullopt),
                                       static_cast<float*>(partials.mutable_data_ptr())};
    STD_CUDA_CHECK(launch_pixel_embed_weight_grad(type_, params, parts, stream()));
    const SumPartials sum = {params.partials, static_cast<float*>(flat.mutable_data_ptr()),
                             plan_.flat(), plan_.flat(), parts};
    STD_CUDA_CHECK(launch_sum_partials(sum, stream()));
    return flat;
  }

  Tensor image_gradient(const Tensor& dy, const Tensor& images, const Tensor& weights) {
    Tensor dimages = new_tensor({images.size(0), images.size(1), images.size(2), images.size(3)},
                                images.scalar_type());
    if (plan_.num_patches == 0) return dimages;
    const Tensor taps = new_tensor({plan_.taps(), plan_.dim}, ScalarType::Float);
    const PixelEmbedImageGrad params = {
        plan_, gradient(dy), matrix("weight", weights, plan_.taps()),
        static_cast<float*>(taps.mutable_data_ptr()), dimages.mutable_data_ptr()};
    STD_CUDA_CHECK(launch_pixel_embed_image_grad(type_, params, stream()));
    return dimages;
  }

  Tensor nothing(ScalarType type) const { return new_tensor({0}, type); }

 private:
  int element_bytes() const { return type_ == DType::kFloat32 ? 4 : 2; }

  const void* gradient(const Tensor& dy) {
    const bool same = dy.scalar_type() == scalar_type_;
    return activation(same ? dy : torch::stable::to(dy, scalar_type_));
  }

  // What a block may have; fails if that is less than `needed`.
  int64_t check_shared(int64_t needed) const {
    const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    STD_TORCH_CHECK(needed <= most, op(), ": no CUDA kernel for patches and weights as large as ",
                    "these, which take ", needed, " bytes of shared memory of ", most,
                    "; use backend='reference'");
    return most;
  }

  // Without `weights` only the tables.
  const uint32_t* pack(const PixelEmbedPlan& plan, const Tensor* weights,
                       const OptionalTensor& bias, const OptionalTensor& pixel_pos) {
    PixelEmbedPack params = {plan, {}, {}, {}, mean_, deviation_, nullptr};
    if (weights != nullptr) params.weight = matrix("weight", *weights, plan.taps());
    if (bias.has_value()) params.bias = matrix("bias", *bias, 1);
    if (pixel_pos.has_value()) params.pixel_pos = matrix("pixel_pos", *pixel_pos, plan.tokens);
    packed_.push_back(new_tensor({plan.packed_words}, ScalarType::Float));
    params.packed = static_cast<uint32_t*>(packed_.back().mutable_data_ptr());
    STD_CUDA_CHECK(launch_pixel_embed_pack(type_, params, stream()));
    return params.packed;
  }

  bool is_uint8_;
  ScalarType scalar_type_;  // of the output and of all products
  DType type_;
  const float* mean_ = nullptr;  // (Cin,) of uint8 images
  const float* deviation_ = nullptr;
  PixelEmbedPlan plan_ = {};
  std::vector<Tensor> packed_;
};

Tensor pixel_embed(const Tensor& images, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& pixel_pos, const OptionalTensor& mean,
                   const OptionalTensor& deviation, int64_t patch_h, int64_t patch_w,
                   int64_t stride, bool unfold_first) {
  PixelEmbedCall call("pixel_embed", images, weight, mean, deviation, patch_h, patch_w, stride,
                      unfold_first);
  return call.forward(images, weight, bias, pixel_pos);
}

std::tuple<Tensor, Tensor> pixel_embed_backward(const Tensor& dy, const Tensor& images,
                                                const Tensor& weight, const OptionalTensor& mean,
                                                const OptionalTensor& deviation, int64_t patch_h,
                                                int64_t patch_w, int64_t stride, bool unfold_first,
                                                bool need_dimages, bool need_dw) {
  PixelEmbedCall call("pixel_embed_backward", images, weight, mean, deviation, patch_h, patch_w,
                      stride, unfold_first);
  call.check_gradient(dy);
  if (need_dimages) call.check_image_gradient();
  Tensor dimages =
      need_dimages ? call.image_gradient(dy, images, weight) : call.nothing(images.scalar_type());
  Tensor dw = need_dw ? call.weight_gradients(dy, images) : call.nothing(ScalarType::Float);
  return {dimages, dw};
}

}  // namespace
}  // namespace tnt_kernels::cuda

TNT_CUDA_OPERATORS(m) {
  m.impl("pixel_embed", TORCH_BOX(&tnt_kernels::cuda::pixel_embed));
  m.impl("pixel_embed_backward", TORCH_BOX(&tnt_kernels::cuda::pixel_embed_backward));
}
