// inner_attention (Eq. 6), inner_mlp (Eq. 7) and inner_block (both) on CUDA tensors: checks,
// allocation, stream, launch, registration. Schemas are in tnt_kernels/reference/inner_block.py.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/inner_block/forward.h"

namespace tnt_kernels::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

bool has_dtype(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

DType dtype_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::BFloat16) return DType::kBFloat16;
  return t.scalar_type() == ScalarType::Half ? DType::kFloat16 : DType::kFloat32;
}

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

// A call, and the tensors that were made for it.
class Problem {
 public:
  Problem(const char* op, const Tensor& x, double eps)
      : op_(op), device_(x.get_device_index()), guard_(device_), x_(x) {
    STD_TORCH_CHECK(has_dtype(x), op, ": x must be float32, bfloat16 or float16");
    STD_TORCH_CHECK(x.dim() == 3, op, ": x must be (P, S, C), got ", x.dim(), " axes");
    dim_ = x.size(2);
    forward_.x = activation(x);
    forward_.num_patches = x.size(0);
    forward_.eps = static_cast<float>(eps);
  }

  void add(const Attention& a, int64_t num_heads, const OptionalTensor& drop_path) {
    STD_TORCH_CHECK(num_heads > 0 && dim_ % num_heads == 0, op_, ": num_heads must divide the ",
                    dim_, " channels of x, got ", num_heads);
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
    forward_.out = out.mutable_data_ptr();
    forward_.mid = save_mid ? mid.mutable_data_ptr() : nullptr;
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    STD_CUDA_CHECK(kernel->launch(pack_, forward_, attribute(cudaDevAttrMultiProcessorCount),
                                  static_cast<cudaStream_t>(stream)));
    return {out, mid};
  }

 private:
  int attribute(cudaDeviceAttr name) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device_));
    return value;
  }

  const InnerForward* find() const {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor);
    STD_TORCH_CHECK(major >= 8, op_, ": the CUDA kernels need compute capability 8.0 or later, ",
                    "this GPU has ", major, ".", attribute(cudaDevAttrComputeCapabilityMinor),
                    "; use backend='reference'");
    const int64_t tokens = x_.size(1);
    constexpr int64_t kLargest = 1 << 14;
    const bool small = tokens < kLargest && dim_ < kLargest;
    const InnerForward* kernel =
        small ? find_inner_forward(dtype_of(x_), static_cast<int>(tokens), static_cast<int>(dim_),
                                   static_cast<int>(num_heads_))
              : nullptr;
    STD_TORCH_CHECK(kernel != nullptr, op_, ": no CUDA kernel for S=", tokens, ", C=", dim_, ", ",
                    num_heads_, " heads; use backend='reference'");
    return kernel;
  }

  Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type) const {
    return torch::stable::new_empty(x_, {sizes.begin(), sizes.size()}, type);
  }

  // Contiguous and aligned for 16-byte accesses, which a view into a tensor need not be.
  const void* activation(const Tensor& t) {
    kept_.push_back(torch::stable::contiguous(t));
    if (reinterpret_cast<uintptr_t>(kept_.back().const_data_ptr()) % 16 != 0) {
      kept_.push_back(torch::stable::clone(kept_.back()));
    }
    return kept_.back().const_data_ptr();
  }

  void check_device(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == device_, op_, ": ", name,
                    " must be on x's device, cuda:", device_);
  }

  WeightView weight(const char* name, const Tensor& t, int64_t rows, int64_t columns = 0) {
    const bool fits = columns == 0 ? t.dim() == 1 && t.size(0) == rows
                                   : t.dim() == 2 && t.size(0) == rows && t.size(1) == columns;
    STD_TORCH_CHECK(fits, op_, ": ", name, " must be (", rows, columns == 0 ? "" : ", ",
                    columns == 0 ? "" : std::to_string(columns), ") for x of width ", dim_);
    check_device(name, t);
    kept_.push_back(has_dtype(t) ? t : torch::stable::to(t, ScalarType::Float));
    const Tensor& held = kept_.back();
    return {
        held.const_data_ptr(), {held.stride(0), columns == 0 ? 0 : held.stride(1)}, dtype_of(held)};
  }

  WeightView weight(const char* name, const OptionalTensor& t, int64_t rows) {
    return t.has_value() ? weight(name, *t, rows) : WeightView{};
  }

  const float* factors(const OptionalTensor& t) {
    if (!t.has_value()) return nullptr;
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == forward_.num_patches, op_,
                    ": drop_path must be (P,)");
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, op_, ": drop_path must be float32");
    check_device("drop_path", *t);
    kept_.push_back(torch::stable::contiguous(*t));
    return static_cast<const float*>(kept_.back().const_data_ptr());
  }

  const char* op_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  const Tensor& x_;
  int64_t dim_ = 0;
  int64_t num_heads_ = 1;  // inner_mlp: any kernel of its sizes will do
  PackParams pack_ = {};
  ForwardParams forward_ = {};
  std::vector<Tensor> kept_;
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
