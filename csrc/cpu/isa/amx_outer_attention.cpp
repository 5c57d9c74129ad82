// The forward of outer_attention for bfloat16 on AMX.

#include "cpu/isa.h"
#include "cpu/kernels/outer_attention_amx.h"

namespace tnt_kernels::cpu::amx {
namespace {

bool supports(const OuterAttention& call) {
  return call.dtype == DType::kBFloat16 && call.head_dim % kStep == 0;
}

int64_t scratch_floats(const OuterAttention& call) { return OuterScratch(call).bytes / 4; }

}  // namespace

OuterAttentionPass outer_attention_forward() { return {supports, scratch_floats, outer_forward}; }

}  // namespace tnt_kernels::cpu::amx
