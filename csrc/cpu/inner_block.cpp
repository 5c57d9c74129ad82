// inner_attention (Eq. 6), inner_mlp (Eq. 7), inner_block (both) and their backward on the CPU:
// checks, float32 weights, buffers, threads, registration. The kernels are in kernels/inner_*.h.

#include "cpu/inner_block.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "cpu/isa.h"
#include "cpu/pixel_tensors.h"

namespace tnt_kernels::cpu {
namespace {

struct Attention {
  Tensor norm1_weight, norm1_bias, qk_weight;
  OptionalTensor qk_bias;
  Tensor v_weight;
  OptionalTensor v_bias;
  Tensor proj_weight, proj_bias;
};

struct Mlp {
  Tensor norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
};

// A call and the contiguous float32 tensors that its pointers point into.
struct Problem {
  const char* op;
  InnerCall call = {};
  std::vector<Tensor> kept;

  Problem(const char* op, const Tensor& x, double eps) : op(op) {
    check_inner_x(op, x);
    call.num_patches = x.size(0);
    call.num_tokens = static_cast<int>(x.size(1));
    call.dim = static_cast<int>(x.size(2));
    call.dtype = dtype_of(x);
    call.eps = static_cast<float>(eps);
    call.x = activation(x);
  }

  // A tensor of x's shape and dtype.
  const void* activation_like_x(const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == call.num_patches && t.size(1) == call.num_tokens &&
                        t.size(2) == call.dim,
                    op, ": ", name, " must have the shape of x");
    STD_TORCH_CHECK(has_dtype(t) && dtype_of(t) == call.dtype, op, ": ", name,
                    " must have the dtype of x");
    return activation(t);
  }

  const void* activation(const Tensor& t) {
    kept.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return kept.back().const_data_ptr();
  }

  const float* weight(const char* name, const Tensor& t, int64_t rows, int64_t columns = 0) {
    check_weight(op, name, t, rows, columns);
    const bool ready = t.scalar_type() == ScalarType::Float && t.is_contiguous();
    kept.push_back(ready ? t : cast_to_float(t));
    return float_data(kept.back());
  }

  const float* weight(const char* name, const OptionalTensor& t, int64_t rows) {
    return t.has_value() ? weight(name, *t, rows) : nullptr;
  }

  const float* drop_path(const char* name, const OptionalTensor& t) {
    return t.has_value() ? weight(name, *t, call.num_patches) : nullptr;
  }

  void add(const Attention& a, int64_t num_heads, const OptionalTensor& drop) {
    const int64_t dim = call.dim;
    check_heads(op, num_heads, dim);
    InnerWeights& w = call.weights;
    call.has_attention = true;
    call.num_heads = static_cast<int>(num_heads);
    w.norm1_weight = weight("norm1_weight", a.norm1_weight, dim);
    w.norm1_bias = weight("norm1_bias", a.norm1_bias, dim);
    w.qk_weight = weight("qk_weight", a.qk_weight, 2 * dim, dim);
    w.qk_bias = weight("qk_bias", a.qk_bias, 2 * dim);
    w.v_weight = weight("v_weight", a.v_weight, dim, dim);
    w.v_bias = weight("v_bias", a.v_bias, dim);
    w.proj_weight = weight("proj_weight", a.proj_weight, dim, dim);
    w.proj_bias = weight("proj_bias", a.proj_bias, dim);
    call.drop_path_attn = drop_path("drop_path", drop);
  }

  void add(const Mlp& m, const OptionalTensor& drop) {
    STD_TORCH_CHECK(
        m.fc1_weight.dim() == 2 && m.fc1_weight.size(0) > 0 && m.fc1_weight.size(0) <= kMaxWidth,
        op, ": fc1_weight must be (H, C) with H in 1 .. ", kMaxWidth);
    const int64_t dim = call.dim, hidden = m.fc1_weight.size(0);
    InnerWeights& w = call.weights;
    call.has_mlp = true;
    call.hidden_dim = static_cast<int>(hidden);
    w.norm2_weight = weight("norm2_weight", m.norm2_weight, dim);
    w.norm2_bias = weight("norm2_bias", m.norm2_bias, dim);
    w.fc1_weight = weight("fc1_weight", m.fc1_weight, hidden, dim);
    w.fc1_bias = weight("fc1_bias", m.fc1_bias, hidden);
    w.fc2_weight = weight("fc2_weight", m.fc2_weight, dim, hidden);
    w.fc2_bias = weight("fc2_bias", m.fc2_bias, dim);
    call.drop_path_mlp = drop_path("drop_path", drop);
  }
};

// ---- Buffers and threads ----

struct Free {
  void operator()(float* p) const { std::free(p); }
};

// Memory of one thread that outlives a call: fresh memory would cost a page fault per 4 KiB.
class ThreadBuffer {
 public:
  float* at_least(int64_t floats) {
    if (floats > size_) {
      buffer_.reset();
      size_ = 0;
      buffer_.reset(allocate(floats));
      size_ = floats;
    }
    return buffer_.get();
  }

  static float* allocate(int64_t floats) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes + 64);  // kernels may prefetch past the end
    STD_TORCH_CHECK(p != nullptr, "tnt_kernels: out of memory for ", bytes, " bytes of scratch");
    return static_cast<float*>(p);
  }

 private:
  std::unique_ptr<float, Free> buffer_;
  int64_t size_ = 0;
};

thread_local ThreadBuffer packed_buffer;
thread_local ThreadBuffer scratch_buffer;

const InnerPass& check_supported(const Problem& problem, const InnerPass& pass) {
  STD_TORCH_CHECK(pass.supports(problem.call), problem.op,
                  ": the CPU kernels take S = 4, 16 or 64 ", "tokens per patch, got ",
                  problem.call.num_tokens);
  return pass;
}

const float* pack(const InnerPass& pass, const InnerCall& call) {
  float* packed = packed_buffer.at_least(pass.packed_floats(call));
  pass.pack(call, packed);
  return packed;
}

const InnerPass& forward_pass(const InnerCall& call) {
  const InnerKernels& inner = kernels().inner;
  const InnerPass& bfloat16 = inner.bfloat16_forward;
  return bfloat16.supports != nullptr && bfloat16.supports(call) ? bfloat16 : inner.forward;
}

void run_forward(const Problem& problem) {
  const InnerCall& call = problem.call;
  const InnerPass& pass = check_supported(problem, forward_pass(call));
  if (call.num_patches == 0) return;
  const float* packed = pack(pass, call);
  torch::stable::parallel_for(0, num_chunks(call), 1, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_buffer.at_least(pass.scratch_floats(call));
    pass.run(call, {begin, end, packed, scratch, nullptr});
  });
}

// One slice per thread, each with its own partial weight gradients, summed in the order of slices:
// the same result at every call with that many threads.
void run_backward(const Problem& problem, float* dw) {
  const InnerCall& call = problem.call;
  const InnerKernels& inner = kernels().inner;
  const InnerPass& pass = check_supported(problem, inner.backward);
  const int64_t chunks = num_chunks(call);
  const int64_t slices =
      std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(chunks, 1));
  const int64_t partial_floats = call.need_dw ? inner.dw_partial_floats(call) : 0;
  std::unique_ptr<float, Free> partials(ThreadBuffer::allocate(slices * partial_floats));
  if (chunks > 0) {
    const float* packed = pack(pass, call);
    torch::stable::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
      float* scratch = scratch_buffer.at_least(pass.scratch_floats(call));
      for (int64_t slice = begin; slice < end; ++slice) {
        float* partial = partials.get() + slice * partial_floats;
        std::memset(partial, 0, partial_floats * sizeof(float));
        pass.run(call, {chunks * slice / slices, chunks * (slice + 1) / slices, packed, scratch,
                        call.need_dw ? partial : nullptr});
      }
    });
  }
  if (call.need_dw) {
    std::vector<double> norm(2 * call.dim);
    inner.finish_dw(call, partials.get(), chunks > 0 ? slices : 0, norm.data(), dw);
  }
}

int64_t num_weights(const InnerCall& call) {
  const int64_t c = call.dim, h = call.hidden_dim;
  const int64_t attention = 2 * c + 3 * c * c + 3 * c + c * c + c;
  const int64_t mlp = 2 * c + h * c + h + c * h + c;
  return (call.has_attention ? attention : 0) + (call.has_mlp ? mlp : 0);
}

Tensor forward(Problem& problem, const Tensor& x) {
  Tensor out = new_tensor(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type());
  problem.call.out = out.mutable_data_ptr();
  run_forward(problem);
  return out;
}

std::tuple<Tensor, Tensor> backward(Problem& problem, const Tensor& dy, const Tensor& x,
                                    bool need_dx, bool need_dw) {
  InnerCall& call = problem.call;
  call.dy = problem.activation_like_x("dy", dy);
  Tensor dx =
      need_dx ? new_tensor(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type()) : no_tensor(x);
  Tensor dw = new_tensor(x, {need_dw ? num_weights(call) : 0}, ScalarType::Float);
  call.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
  call.need_dw = need_dw;
  if (need_dx || need_dw) run_backward(problem, mutable_float_data(dw));
  return {dx, dw};
}

// ---- Operators; the schemas are in tnt_kernels/reference/inner_block.py ----

Tensor inner_attention(const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias,
                       const Tensor& qk_weight, const OptionalTensor& qk_bias,
                       const Tensor& v_weight, const OptionalTensor& v_bias,
                       const Tensor& proj_weight, const Tensor& proj_bias,
                       const OptionalTensor& drop_path, int64_t num_heads, double eps) {
  Problem problem("inner_attention", x, eps);
  problem.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                        proj_bias},
              num_heads, drop_path);
  return forward(problem, x);
}

std::tuple<Tensor, Tensor> inner_attention_backward(
    const Tensor& dy, const Tensor& x, const Tensor& norm1_weight, const Tensor& norm1_bias,
    const Tensor& qk_weight, const OptionalTensor& qk_bias, const Tensor& v_weight,
    const OptionalTensor& v_bias, const Tensor& proj_weight, const Tensor& proj_bias,
    const OptionalTensor& drop_path, int64_t num_heads, double eps, bool need_dx, bool need_dw) {
  Problem problem("inner_attention_backward", x, eps);
  problem.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                        proj_bias},
              num_heads, drop_path);
  return backward(problem, dy, x, need_dx, need_dw);
}

Tensor inner_mlp(const Tensor& x, const Tensor& norm2_weight, const Tensor& norm2_bias,
                 const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                 const Tensor& fc2_bias, const OptionalTensor& drop_path, double eps) {
  Problem problem("inner_mlp", x, eps);
  problem.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias}, drop_path);
  return forward(problem, x);
}

std::tuple<Tensor, Tensor> inner_mlp_backward(const Tensor& dy, const Tensor& x,
                                              const Tensor& norm2_weight, const Tensor& norm2_bias,
                                              const Tensor& fc1_weight, const Tensor& fc1_bias,
                                              const Tensor& fc2_weight, const Tensor& fc2_bias,
                                              const OptionalTensor& drop_path, double eps,
                                              bool need_dx, bool need_dw) {
  Problem problem("inner_mlp_backward", x, eps);
  problem.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias}, drop_path);
  return backward(problem, dy, x, need_dx, need_dw);
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
  Tensor mid =
      save_mid ? new_tensor(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type()) : no_tensor(x);
  problem.call.mid = save_mid ? mid.mutable_data_ptr() : nullptr;
  Tensor out = forward(problem, x);
  return {out, mid};
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
  Problem problem("inner_block_backward", x, eps);
  problem.add(Attention{norm1_weight, norm1_bias, qk_weight, qk_bias, v_weight, v_bias, proj_weight,
                        proj_bias},
              num_heads, drop_path_attn);
  problem.add(Mlp{norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias},
              drop_path_mlp);
  problem.call.mid = const_cast<void*>(problem.activation_like_x("mid", mid));
  return backward(problem, dy, x, need_dx, need_dw);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CPU, m) {
  m.impl("inner_attention", TORCH_BOX(&inner_attention));
  m.impl("inner_attention_backward", TORCH_BOX(&inner_attention_backward));
  m.impl("inner_mlp", TORCH_BOX(&inner_mlp));
  m.impl("inner_mlp_backward", TORCH_BOX(&inner_mlp_backward));
  m.impl("inner_block", TORCH_BOX(&inner_block));
  m.impl("inner_block_backward", TORCH_BOX(&inner_block_backward));
}

}  // namespace tnt_kernels::cpu
