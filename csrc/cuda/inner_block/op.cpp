// inner_attention (Eq. 6), inner_mlp (Eq. 7) and inner_block (both) on CUDA tensors: checks,
// allocation, stream, launch, registration. Schemas are in tnt_kernels/reference/inner_block.py.

#include <tuple>

#include "cuda/inner_block/forward.h"
#include "cuda/inner_block/inner_call.h"
#include "cuda/tf32.h"

namespace tnt_kernels::cuda {
namespace {

class ForwardCall : public InnerCall {
 public:
  using InnerCall::InnerCall;

  // (out, mid); mid is empty unless it is to be kept.
  std::tuple<Tensor, Tensor> run(bool save_mid) {
    check_capability();
    const DType dtype = dtype_of(x_);
    const bool tf32 = dtype == DType::kFloat32 && allows_tf32(/*convolution=*/false);
    const InnerForward* kernel =
        found(find_inner_forward(dtype, tf32, tokens(), dim(), num_heads()));
    Tensor out = like_x(), mid = save_mid ? like_x() : nothing(x_.scalar_type());
    if (x_.size(0) == 0) return {out, mid};
    const Tensor packed = new_tensor({kernel->packed_words}, ScalarType::Float);
    pack_.packed = static_cast<uint32_t*>(packed.mutable_data_ptr());
    ForwardParams params = {};
    params.x = activation(x_);
    params.mid = save_mid ? mid.mutable_data_ptr() : nullptr;
    params.out = out.mutable_data_ptr();
    params.weights = pack_.packed;
    params.drop_path_attn = drop_path_attn_;
    params.drop_path_mlp = drop_path_mlp_;
    params.num_patches = x_.size(0);
    params.eps = eps_;
    params.has_attention = pack_.has_attention;
    params.has_mlp = pack_.has_mlp;
    params.unpacked = pack_;
    STD_CUDA_CHECK(kernel->launch(pack_, params, multiprocessors(), stream()));
    return {out, mid};
  }
};

Tensor inner_attention(const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias,
                       const Tensor& qk_weight, const OptionalTensor& qk_bias,
                       const Tensor& v_weight, const OptionalTensor& v_bias,
                       const Tensor& proj_weight, const Tensor& proj_bias,
                       const OptionalTensor& drop_path, int64_t num_heads, double eps) {
  ForwardCall call("inner_attention", x, eps);
  call.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                     proj_bias},
           num_heads, drop_path);
  return std::get<0>(call.run(false));
}

Tensor inner_mlp(const Tensor& x, const Tensor& norm2_weight, const Tensor& norm2_bias,
                 const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                 const Tensor& fc2_bias, const OptionalTensor& drop_path, double eps) {
  ForwardCall call("inner_mlp", x, eps);
  call.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias}, drop_path);
  return std::get<0>(call.run(false));
}

std::tuple<Tensor, Tensor> inner_block(
    const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias, const Tensor& qk_weight,
    const OptionalTensor& qk_bias, const Tensor& v_weight, const OptionalTensor& v_bias,
    const Tensor& proj_weight, const Tensor& proj_bias, const Tensor& norm2_weight,
    const Tensor& norm2_bias, const Tensor& fc1_weight, const Tensor& fc1_bias,
    const Tensor& fc2_weight, const Tensor& fc2_bias, const OptionalTensor& drop_path_attn,
    const OptionalTensor& drop_path_mlp, int64_t num_heads, double eps, bool save_mid) {
  ForwardCall call("inner_block", x, eps);
  call.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                     proj_bias},
           num_heads, drop_path_attn);
  call.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias},
           drop_path_mlp);
  return call.run(save_mid);
}

}  // namespace
}  // namespace tnt_kernels::cuda

TNT_CUDA_OPERATORS(m) {
  m.impl("inner_attention", TORCH_BOX(&tnt_kernels::cuda::inner_attention));
  m.impl("inner_mlp", TORCH_BOX(&tnt_kernels::cuda::inner_mlp));
  m.impl("inner_block", TORCH_BOX(&tnt_kernels::cuda::inner_block));
}
