// outer_attention and its backward: checks, scratch and threads, registration. The kernels are in
// kernels/outer_attention_{fwd,bwd}.h.

#include <algorithm>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/pixel_tensors.h"

namespace tnt_kernels::cpu {
namespace {

OuterAttention checked(const char* op, const Tensor& qkv, int64_t num_heads, double scale) {
  STD_TORCH_CHECK(qkv.dim() == 3 && has_dtype(qkv), op,
                  ": qkv must be (B, N, 3D) float32, bfloat16 or float16");
  STD_TORCH_CHECK(num_heads > 0 && qkv.size(2) > 0 && qkv.size(2) % (3 * num_heads) == 0, op,
                  ": the last axis of qkv must be q, k and v of num_heads heads");
  OuterAttention call = {};
  call.dtype = dtype_of(qkv);
  call.num_tokens = qkv.size(1);
  call.num_heads = num_heads;
  call.head_dim = qkv.size(2) / (3 * num_heads);
  call.scale = static_cast<float>(scale);
  return call;
}

// Runs a pass over all heads, each cut into `parts` ranges of queries.
void run(const OuterAttentionPass& pass, const OuterAttention& call, const Tensor& like,
         int64_t heads) {
  const int64_t total = heads * call.parts;
  if (total == 0 || call.num_tokens == 0) return;
  const int64_t floats = padded_floats(pass.scratch_floats(call));
  const Tensor scratch = new_tensor(like, {num_chunks(total, 1) * floats}, ScalarType::Float);
  for_chunks(total, 1, [&](int64_t chunk, int64_t first, int64_t last) {
    pass.run(call, first, last, mutable_float_data(scratch) + chunk * floats);
  });
}

const OuterAttentionPass& chosen(const OuterAttentionPass& preferred,
                                 const OuterAttentionPass& otherwise, const OuterAttention& call) {
  return preferred.run != nullptr && preferred.supports(call) ? preferred : otherwise;
}

Tensor outer_attention(const Tensor& qkv, int64_t num_heads, double scale) {
  OuterAttention call = checked("outer_attention", qkv, num_heads, scale);
  const Tensor source = torch::stable::contiguous(qkv);
  Tensor out = new_tensor(qkv, {qkv.size(0), qkv.size(1), qkv.size(2) / 3}, qkv.scalar_type());
  call.qkv = source.const_data_ptr();
  call.out = out.mutable_data_ptr();
  // Few images on many threads: threads share a head, and each copies its keys and values.
  const int64_t heads = qkv.size(0) * num_heads;
  const int64_t threads = torch::stable::get_num_threads();
  call.parts = std::clamp<int64_t>(threads / std::max<int64_t>(heads, 1), 1, 8);
  const OuterAttentionKernels& outer = kernels().outer_attention;
  run(chosen(outer.bfloat16_forward, outer.forward, call), call, qkv, heads);
  return out;
}

std::tuple<Tensor, Tensor> outer_attention_backward(const Tensor& dy, const Tensor& qkv,
                                                    int64_t num_heads, double scale, bool need_dqkv,
                                                    bool need_dw) {
  const char* op = "outer_attention_backward";
  OuterAttention call = checked(op, qkv, num_heads, scale);
  STD_TORCH_CHECK(dy.dim() == 3 && dy.size(0) == qkv.size(0) && dy.size(1) == qkv.size(1) &&
                      dy.size(2) * 3 == qkv.size(2) && dy.scalar_type() == qkv.scalar_type(),
                  op, ": dy must be (B, N, D) of qkv's dtype, as the output");
  (void)need_dw;  // there are no weights
  const Tensor dw = new_tensor(qkv, {0}, ScalarType::Float);
  if (!need_dqkv) return {no_tensor(qkv), dw};
  const Tensor source = torch::stable::contiguous(qkv), grad = torch::stable::contiguous(dy);
  Tensor dqkv = new_tensor(qkv, {qkv.size(0), qkv.size(1), qkv.size(2)}, qkv.scalar_type());
  call.qkv = source.const_data_ptr();
  call.dy = grad.const_data_ptr();
  call.out = dqkv.mutable_data_ptr();
  call.parts = 1;
  const OuterAttentionKernels& outer = kernels().outer_attention;
  const OuterAttentionPass& pass = chosen(outer.bfloat16_backward, outer.backward, call);
  run(pass, call, qkv, qkv.size(0) * num_heads);
  return {dqkv, dw};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CPU, m) {
  m.impl("outer_attention", TORCH_BOX(&outer_attention));
  m.impl("outer_attention_backward", TORCH_BOX(&outer_attention_backward));
}

}  // namespace tnt_kernels::cpu
