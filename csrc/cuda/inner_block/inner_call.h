// What the operators of the inner block have in common on CUDA tensors: x, weights, drop path.
#pragma once

#include "cuda/call.h"
#include "cuda/inner_block/params.h"

namespace tnt_kernels::cuda {

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

class InnerCall : protected Call {
 public:
  InnerCall(const char* op, const Tensor& x, double eps)
      : Call(op, x), x_(x), eps_(static_cast<float>(eps)) {
    check_inner_x(op, x);
    dim_ = x.size(2);
  }

  void add(const Attention& a, int64_t num_heads, const OptionalTensor& drop_path) {
    check_heads(op(), num_heads, dim_);
    num_heads_ = num_heads;
    pack_.has_attention = true;
    pack_.norm1_weight = weight("norm1_weight", a.norm1_weight, dim_);
    pack_.norm1_bias = weight("norm1_bias", a.norm1_bias, dim_);
    pack_.qk_weight = weight("qk_weight", a.qk_weight, 2 * dim_, dim_);
    pack_.qk_bias = weight("qk_bias", a.qk_bias, 2 * dim_);
    pack_.v_weight = weight("v_weight", a.v_weight, dim_, dim_);
    pack_.v_bias = weight("v_bias", a.v_bias, dim_);
    pack_.proj_weight = weight("proj_weight", a.proj_weight, dim_, dim_);
    pack_.proj_bias = weight("proj_bias", a.proj_bias, dim_);
    drop_path_attn_ = factors(drop_path);
  }

  void add(const Mlp& m, const OptionalTensor& drop_path) {
    const int64_t hidden = 4 * dim_;
    pack_.has_mlp = true;
    pack_.norm2_weight = weight("norm2_weight", m.norm2_weight, dim_);
    pack_.norm2_bias = weight("norm2_bias", m.norm2_bias, dim_);
    pack_.fc1_weight = weight("fc1_weight", m.fc1_weight, hidden, dim_);
    pack_.fc1_bias = weight("fc1_bias", m.fc1_bias, hidden);
    pack_.fc2_weight = weight("fc2_weight", m.fc2_weight, dim_, hidden);
    pack_.fc2_bias = weight("fc2_bias", m.fc2_bias, dim_);
    drop_path_mlp_ = factors(drop_path);
  }

 protected:
  Tensor like_x() const {
    return new_tensor({x_.size(0), x_.size(1), x_.size(2)}, x_.scalar_type());
  }
  Tensor nothing(ScalarType type) const { return new_tensor({0}, type); }
  int tokens() const { return static_cast<int>(x_.size(1)); }
  int dim() const { return static_cast<int>(dim_); }
  int num_heads() const { return static_cast<int>(num_heads_); }

  // `kernel`, or an error where there is none.
  template <class Kernel>
  const Kernel* found(const Kernel* kernel) const {
    STD_TORCH_CHECK(kernel != nullptr, op(), ": no CUDA kernel for S=", tokens(), ", C=", dim(),
                    ", ", num_heads(), " heads; use backend='reference'");
    return kernel;
  }

  const Tensor& x_;
  const float eps_;
  PackParams pack_ = {};
  const float *drop_path_attn_ = nullptr, *drop_path_mlp_ = nullptr;

 private:
  const float* factors(const OptionalTensor& t) {
    if (!t.has_value()) return nullptr;
    check_weight(op(), "drop_path", *t, x_.size(0));
    check_device("drop_path", *t);
    return floats(t);
  }

  int64_t dim_ = 0;
  int64_t num_heads_ = 1;  // inner_mlp: any kernel of its sizes will do
};

}  // namespace tnt_kernels::cuda
