// pixel_embed on CUDA tensors: checks, allocation, launch, registration. The schema is in
// tnt_kernels/reference/pixel_embed.py.

#include "cuda/call.h"
#include "cuda/pixel_embed/kernels.h"

namespace tnt_kernels::cuda {
namespace {

constexpr int64_t kLargestSide = 1 << 15, kLargestCount = (int64_t{1} << 31) - 1;

class PixelEmbedCall : private Call {
 public:
  PixelEmbedCall(const char* op, const Tensor& images, const Tensor& weight, int64_t patch_h,
                 int64_t patch_w, int64_t stride, bool unfold_first)
      : Call(op, images), type_(dtype_of(images)) {
    STD_TORCH_CHECK(has_dtype(images), op, ": images must be float32, bfloat16 or float16");
    STD_TORCH_CHECK(images.dim() == 4 && weight.dim() == 4, op,
                    ": images must be (B, Cin, H, W) and weight (C, Cin, k, k)");
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
    Tensor out = new_tensor({plan_.num_patches, plan_.tokens, plan_.dim}, images.scalar_type());
    if (plan_.num_patches == 0) return out;
    const int64_t shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    STD_TORCH_CHECK(forward_shared_bytes(plan_, 1) <= shared, op(),
                    ": no CUDA kernel for patches and weights as large as these, which take ",
                    forward_shared_bytes(plan_, 1),
                    " bytes of shared memory; use "
                    "backend='reference'");
    PixelEmbedForward params = {plan_, activation(images), nullptr, out.mutable_data_ptr()};
    params.packed = pack(weights, bias, pixel_pos);
    STD_CUDA_CHECK(launch_pixel_embed_forward(type_, params, shared, multiprocessors(), stream()));
    return out;
  }

 private:
  int element_bytes() const { return type_ == DType::kFloat32 ? 4 : 2; }

  const uint32_t* pack(const Tensor& weights, const OptionalTensor& bias,
                       const OptionalTensor& pixel_pos) {
    PixelEmbedPack params = {plan_, {}, {}, {}, nullptr};
    params.weight = matrix("weight", weights, plan_.taps());
    if (bias.has_value()) params.bias = matrix("bias", *bias, 1);
    if (pixel_pos.has_value()) {
      params.pixel_pos = matrix("pixel_pos", *pixel_pos, plan_.tokens);
    }
    packed_ = new_tensor({plan_.packed_words}, ScalarType::Float);
    params.packed = static_cast<uint32_t*>(packed_.mutable_data_ptr());
    STD_CUDA_CHECK(launch_pixel_embed_pack(type_, params, stream()));
    return params.packed;
  }

  DType type_;
  PixelEmbedPlan plan_ = {};
  Tensor packed_;
};

Tensor pixel_embed(const Tensor& images, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& pixel_pos, int64_t patch_h, int64_t patch_w,
                   int64_t stride, bool unfold_first) {
  PixelEmbedCall call("pixel_embed", images, weight, patch_h, patch_w, stride, unfold_first);
  return call.forward(images, weight, bias, pixel_pos);
}

}  // namespace
}  // namespace tnt_kernels::cuda

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CUDA, m) {
  m.impl("pixel_embed", TORCH_BOX(&tnt_kernels::cuda::pixel_embed));
}
