// outer_attention for bfloat16 on AMX.

#include "cpu/isa.h"
#include "cpu/kernels/outer_attention_amx_bwd.h"

namespace tnt_kernels::cpu::amx {
namespace {

bool supports(const OuterAttention& call) {
  return call.dtype == DType::kBFloat16 && call.head_dim % kStep == 0;
}

int64_t scratch_floats(const OuterAttention& call) { return OuterScratch(call).bytes / 4; }

bool supports_backward(const OuterAttention& call) {
  return supports(call) && call.num_tokens <= kMaxBackwardTokens;
}

int64_t backward_scratch_floats(const OuterAttention& call) {
  return OuterBackwardLayout(call).bytes / 4;
}

}  // namespace

OuterAttentionPass outer_attention_forward() { return {supports, scratch_floats, outer_forward}; }

OuterAttentionPass outer_attention_backward() {
  return {supports_backward, backward_scratch_floats, outer_backward};
}

}  // namespace tnt_kernels::cpu::amx
