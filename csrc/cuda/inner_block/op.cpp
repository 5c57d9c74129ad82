// inner_attention (Eq. 6), inner_mlp (Eq. 7) and inner_block (both) on CUDA tensors: checks,
// allocation, stream, launch, registration. Schemas are in tnt_kernels/reference/inner_block.py.

#include <tuple>

#include "cuda/call.h"
#include "cuda/inner_block/forward.h"
#include "cuda/tf32.h"

namespace tnt_kernels::cuda {
namespace {

struct Attention {
  const Tensor &norm1_weight, &norm1_bias, &qk_weight;
  const OptionalTensor& qk_bias;
  const Tensor& v_weight;
  const OptionalTensor& v_bias;
  const Tensor &proj_weight, &proj_bias;
};

struct Mlp {
  const Tensor &norm2_weight, &norm2_bias, &fc1_weight, &fc1_bias, &fc2_weight, &fc2_bias;
};

class Problem : private Call {
 public:
  Problem(const char* op, const Tensor& x, double eps) : Call(op, x), x_(x) {
    check_inner_x(op, x);
    dim_ = x.size(2);
    forward_.x = activation(x);
    forward_.num_patches = x.size(0);
    forward_.eps = static_cast<float>(eps);
  }

  void add(const Attention& a, int64_t num_heads, const OptionalTensor& drop_path) {
    check_heads(op(), num_heads, dim_);
    num_heads_ = num_heads;
    pack_.has_attention = forward_.has_attention = true;
    pack_.norm1_weight = weight("norm1_weight", a.norm1_weight, dim_);
    pack_.norm1_bias = weight("norm1_bias", a.norm1_bias, dim_);
    pack_.qk_weight = weight("qk_weight", a.qk_weight, 2 * dim_, dim_);
    pack_.qk_bias = weight("qk_bias", a.qk_bias, 2 * dim_);
    pack_.v_weight = weight("v_weight", a.v_weight, dim_, dim_);
    pack_.v_bias = weight("v_bias", a.v_bias, dim_);
    pack_.proj_weight = weight("proj_weight", a.proj_weight, dim_, dim_);
    pack_.proj_bias = weight("proj_bias", a.proj_bias, dim_);
    forward_.drop_path_attn = factors(drop_path);
  }

  void add(const Mlp& m, const OptionalTensor& drop_path) {
    const int64_t hidden = 4 * dim_;
    pack_.has_mlp = forward_.has_mlp = true;
    pack_.norm2_weight = weight("norm2_weight", m.norm2_weight, dim_);
    pack_.norm2_bias = weight("norm2_bias", m.norm2_bias, dim_);
    pack_.fc1_weight = weight("fc1_weight", m.fc1_weight, hidden, dim_);
    pack_.fc1_bias = weight("fc1_bias", m.fc1_bias, hidden);
    pack_.fc2_weight = weight("fc2_weight", m.fc2_weight, dim_, hidden);
    pack_.fc2_bias = weight("fc2_bias", m.fc2_bias, dim_);
    forward_.drop_path_mlp = factors(drop_path);
  }

  // (out, mid); mid is empty unless it is to be kept.
  std::tuple<Tensor, Tensor> run(bool save_mid) {
    const InnerForward* kernel = find();
    Tensor out = new_tensor({x_.size(0), x_.size(1), x_.size(2)}, x_.scalar_type());
    Tensor mid = save_mid ? new_tensor({x_.size(0), x_.size(1), x_.size(2)}, x_.scalar_type())
                          : new_tensor({0}, x_.scalar_type());
    if (forward_.num_patches == 0) return {out, mid};
    const Tensor packed = new_tensor({kernel->packed_words}, ScalarType::Float);
    pack_.packed = static_cast<uint32_t*>(packed.mutable_data_ptr());
    forward_.weights = pack_.packed;
    forward_.unpacked = pack_;
    forward_.out = out.mutable_data_ptr();
    forward_.mid = save_mid ? mid.mutable_data_ptr() : nullptr;
    STD_CUDA_CHECK(kernel->launch(pack_, forward_, multiprocessors(), stream()));
    return {out, mid};
  }

 private:
  const InnerForward* find() const {
    check_capability();
    const int64_t tokens = x_.size(1);
    const DType dtype = dtype_of(x_);
    const bool tf32 = dtype == DType::kFloat32 && allows_tf32(/*convolution=*/false);
    const InnerForward* kernel =
        find_inner_forward(dtype, tf32, static_cast<int>(tokens), static_cast<int>(dim_),
                           static_cast<int>(num_heads_));
    STD_TORCH_CHECK(kernel != nullptr, op(), ": no CUDA kernel for S=", tokens, ", C=", dim_, ", ",
                    num_heads_, " heads; use backend='reference'");
    return kernel;
  }

  const float* factors(const OptionalTensor& t) {
    if (!t.has_value()) return nullptr;
    check_weight(op(), "drop_path", *t, forward_.num_patches);
    check_device("drop_path", *t);
    return floats(t);
  }

  const Tensor& x_;
  int64_t dim_ = 0;
  int64_t num_heads_ = 1;  // inner_mlp: any kernel of its sizes will do
  PackParams pack_ = {};
  ForwardParams forward_ = {};
};

Tensor inner_attention(const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias,
                       const Tensor& qk_weight, const OptionalTensor& qk_bias,
                       const Tensor& v_weight, const OptionalTensor& v_bias,
                       const Tensor& proj_weight, const Tensor& proj_bias,
                       const OptionalTensor& drop_path, int64_t num_heads, double eps) {
  Problem problem("inner_attention", x, eps);
  problem.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                        proj_bias},
              num_heads, drop_path);
  return std::get<0>(problem.run(false));
}

Tensor inner_mlp(const Tensor& x, const Tensor& norm2_weight, const Tensor& norm2_bias,
                 const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                 const Tensor& fc2_bias, const OptionalTensor& drop_path, double eps) {
  Problem problem("inner_mlp", x, eps);
  problem.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias}, drop_path);
  return std::get<0>(problem.run(false));
}

std::tuple<Tensor, Tensor> inner_block(
    const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias, const Tensor& qk_weight,
    const OptionalTensor& qk_bias, const Tensor& v_weight, const OptionalTensor& v_bias,
    const Tensor& proj_weight, const Tensor& proj_bias, const Tensor& norm2_weight,
    const Tensor& norm2_bias, const Tensor& fc1_weight, const Tensor& fc1_bias,
    const Tensor& fc2_weight, const Tensor& fc2_bias, const OptionalTensor& drop_path_attn,
    const OptionalTensor& drop_path_mlp, int64_t num_heads, double eps, bool save_mid) {
  Problem problem("inner_block", x, eps);
  problem.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                        proj_bias},
              num_heads, drop_path_attn);
  problem.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias},
              drop_path_mlp);
  return problem.run(save_mid);
}

}  // namespace
}  // namespace tnt_kernels::cuda

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CUDA, m) {
  m.impl("inner_attention", TORCH_BOX(&tnt_kernels::cuda::inner_attention));
  m.impl("inner_mlp", TORCH_BOX(&tnt_kernels::cuda::inner_mlp));
  m.impl("inner_block", TORCH_BOX(&tnt_kernels::cuda::inner_block));
}
