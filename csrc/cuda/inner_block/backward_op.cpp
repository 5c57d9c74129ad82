// Gradients of inner_attention, inner_mlp and inner_block on CUDA tensors: checks, allocation,
// stream, launch, registration. Schemas are in tnt_kernels/reference/inner_block.py.

#include <tuple>

#include "cuda/inner_block/backward.h"
#include "cuda/inner_block/inner_call.h"
#include "cuda/tile/launch_sum.h"

namespace tnt_kernels::cuda {
namespace {

class BackwardCall : public InnerCall {
 public:
  BackwardCall(const char* op, const Tensor& dy, const Tensor& x, double eps)
      : InnerCall(op, x, eps), dy_(activation_like_x("dy", dy)), rows_(x.size(0) * x.size(1)) {}

  // (dx, dw); what is not wanted is empty. The block goes back through the MLP, whose input was
  // mid, then through attention; a half alone has been given x.
  std::tuple<Tensor, Tensor> run(const Tensor& mid, bool need_dx, bool need_dw) {
    check_capability();
    const InnerBackward* mlp = pack_.has_mlp ? found(find_mlp()) : nullptr;
    const InnerBackward* attention = pack_.has_attention ? found(find_attention()) : nullptr;
    const int64_t attention_dw = attention != nullptr ? attention_gradients(dim()) : 0;
    const int64_t mlp_dw = mlp != nullptr ? mlp_gradients(dim()) : 0;
    Tensor dx = need_dx ? like_x() : nothing(x_.scalar_type());
    Tensor dw = need_dw ? new_tensor({attention_dw + mlp_dw}, ScalarType::Float)
                        : nothing(ScalarType::Float);
    if (x_.size(0) == 0) return {dx, need_dw ? torch::stable::zero_(dw) : dw};
    float* dw_data = need_dw ? static_cast<float*>(dw.mutable_data_ptr()) : nullptr;

    const void* dy = dy_;
    // attention wants the gradient of its result also where dx is not wanted
    const Tensor dmid =
        mlp != nullptr && attention != nullptr && !need_dx && need_dw ? like_x() : dx;
    if (mlp != nullptr && (need_dx || need_dw)) {
      const bool need_dmid = need_dx || attention != nullptr;
      void* out = need_dmid ? dmid.mutable_data_ptr() : nullptr;
      const Half half = {activation_like_x("mid", mid), dy, out, drop_path_mlp_};
      run_half(*mlp, half, {false, true}, need_dw ? dw_data + attention_dw : nullptr);
      dy = out;
    }
    if (attention != nullptr && (need_dx || need_dw)) {
      void* out = need_dx ? dx.mutable_data_ptr() : nullptr;  // in place of dmid
      const Half half = {activation(x_), dy, out, drop_path_attn_};
      run_half(*attention, half, {true, false}, dw_data);
    }
    return {dx, dw};
  }

 private:
  struct Half {
    const void *x, *dy;
    void* dx;
    const float* drop_path;
  };
  struct Which {
    bool attention, mlp;
  };

  const InnerBackward* find_mlp() const { return find_mlp_backward(dtype_of(x_), tokens(), dim()); }
  const InnerBackward* find_attention() const {
    return find_attention_backward(dtype_of(x_), tokens(), dim(), num_heads());
  }

  const void* activation_like_x(const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.scalar_type() == x_.scalar_type() && t.dim() == 3 &&
                        t.size(0) == x_.size(0) && t.size(1) == x_.size(1) &&
                        t.size(2) == x_.size(2),
                    op(), ": ", name, " must have the shape and dtype of x");
    check_device(name, t);
    return activation(t);
  }

  float* buffer(int64_t floats) {
    buffers_.push_back(new_tensor({floats}, ScalarType::Float));
    return static_cast<float*>(buffers_.back().mutable_data_ptr());
  }

  // One half: packs its weights, runs over the rows, and turns the sums into `dw`, if that is not
  // null.
  void run_half(const InnerBackward& kernel, const Half& half, Which which, float* dw) {
    PackParams pack = pack_;
    pack.has_attention = which.attention;
    pack.has_mlp = which.mlp;
    pack.packed = reinterpret_cast<uint32_t*>(buffer(kernel.packed_words));
    BackwardParams params = {};
    params.x = half.x;
    params.dy = half.dy;
    params.dx = half.dx;
    params.num_heads = num_heads();
    params.weights = pack.packed;
    params.drop_path = half.drop_path;
    params.num_rows = rows_;
    params.eps = eps_;
    params.workers = kernel.workers(rows_, multiprocessors());
    if (dw != nullptr) params.partials = buffer(params.workers * kernel.num_sums);
    STD_CUDA_CHECK(kernel.launch(pack, params, multiprocessors(), stream()));
    if (dw == nullptr) return;
    const SumPartials sum = {params.partials, buffer(kernel.num_sums), kernel.num_sums,
                             kernel.num_sums, params.workers};
    STD_CUDA_CHECK(launch_sum_partials(sum, stream()));
    const FinishParams finish = {pack, sum.out, dw, kernel.num_sums, dim(), num_heads()};
    STD_CUDA_CHECK(launch_inner_backward_finish(finish, stream()));
  }

  const void* dy_;
  const int64_t rows_;
  std::vector<Tensor> buffers_;
};

std::tuple<Tensor, Tensor> inner_attention_backward(
    const Tensor& dy, const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias,
    const Tensor& qk_weight, const OptionalTensor& qk_bias, const Tensor& v_weight,
    const OptionalTensor& v_bias, const Tensor& proj_weight, const Tensor& proj_bias,
    const OptionalTensor& drop_path, int64_t num_heads, double eps, bool need_dx, bool need_dw) {
  BackwardCall call("inner_attention_backward", dy, x, eps);
  call.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                     proj_bias},
           num_heads, drop_path);
  return call.run(x, need_dx, need_dw);
}

std::tuple<Tensor, Tensor> inner_mlp_backward(const Tensor& dy, const Tensor& x,
                                              const Tensor& norm2_weight, const Tensor& norm2_bias,
                                              const Tensor& fc1_weight, const Tensor& fc1_bias,
                                              const Tensor& fc2_weight, const Tensor& fc2_bias,
                                              const OptionalTensor& drop_path, double eps,
                                              bool need_dx, bool need_dw) {
  BackwardCall call("inner_mlp_backward", dy, x, eps);
  call.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias}, drop_path);
  return call.run(x, need_dx, need_dw);
}

std::tuple<Tensor, Tensor> inner_block_backward(
    const Tensor& dy, const Tensor& x, const Tensor& mid, const Tensor& norm1_weight,
    const Tensor& norm1_bias, const Tensor& qk_weight, const OptionalTensor& qk_bias,
    const Tensor& v_weight, const OptionalTensor& v_bias, const Tensor& proj_weight,
    const Tensor& proj_bias, const Tensor& norm2_weight, const Tensor& norm2_bias,
    const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
    const Tensor& fc2_bias, const OptionalTensor& drop_path_attn,
    const OptionalTensor& drop_path_mlp, int64_t num_heads, double eps, bool need_dx,
    bool need_dw) {
  BackwardCall call("inner_block_backward", dy, x, eps);
  call.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                     proj_bias},
           num_heads, drop_path_attn);
  call.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias},
           drop_path_mlp);
  return call.run(mid, need_dx, need_dw);
}

}  // namespace
}  // namespace tnt_kernels::cuda

TNT_CUDA_OPERATORS(m) {
  m.impl("inner_attention_backward", TORCH_BOX(&tnt_kernels::cuda::inner_attention_backward));
  m.impl("inner_mlp_backward", TORCH_BOX(&tnt_kernels::cuda::inner_mlp_backward));
  m.impl("inner_block_backward", TORCH_BOX(&tnt_kernels::cuda::inner_block_backward));
}
