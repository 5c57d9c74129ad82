// The inner block's forward for bfloat16 activations on AMX.

#include "cpu/inner_block.h"
#include "cpu/kernels/inner_block_amx.h"

namespace tnt_kernels::cpu::amx {
namespace {

Shape<AnyDims> shape_of(const InnerCall& call) {
  // a half of the block that is not run takes no room
  const int heads = call.has_attention ? call.num_heads : 1;
  const int hidden = call.has_mlp ? call.hidden_dim : 1;
  return Shape<AnyDims>({call.num_tokens, call.dim, heads, hidden});
}

bool supports(const InnerCall& call) {
  const bool whole_tiles = call.num_tokens % 16 == 0 || 16 % call.num_tokens == 0;
  const bool whole_chunks = kChunkTokens % call.num_tokens == 0;
  return call.dtype == DType::kBFloat16 && whole_tiles && whole_chunks && call.dim % 2 == 0 &&
         call.dim <= kMaxDim && call.hidden_dim <= kMaxHidden;
}

int64_t packed_floats(const InnerCall& call) { return PackedLayout(shape_of(call)).bytes / 4; }

int64_t scratch_floats(const InnerCall& call) { return ScratchLayout(shape_of(call)).bytes / 4; }

void pack_weights(const InnerCall& call, float* packed) {
  pack(shape_of(call), call, reinterpret_cast<char*>(packed));
}

template <class S>
void run_shape(S s, const InnerCall& call, const InnerSlice& slice) {
  const int64_t chunk = kChunkTokens / call.num_tokens;
  const int64_t end = slice.end * chunk;
  run(s, call, slice.begin * chunk, end < call.num_patches ? end : call.num_patches,
      reinterpret_cast<const char*>(slice.packed), reinterpret_cast<char*>(slice.scratch));
}

template <int kTokens, int kDim, int kHeads, int kHidden>
bool run_if(const InnerCall& call, const InnerSlice& slice) {
  const Shape<AnyDims> s = shape_of(call);
  const bool fits =
      s.tokens() == kTokens && s.dim() == kDim && s.heads() == kHeads && s.hidden() == kHidden;
  if (fits) run_shape(Shape<FixedDims<kTokens, kDim, kHeads, kHidden>>({}), call, slice);
  return fits;
}

void run_slice(const InnerCall& call, const InnerSlice& slice) {
  if (run_if<16, 24, 4, 96>(call, slice)) return;   // TNT-S
  if (run_if<16, 40, 4, 160>(call, slice)) return;  // TNT-B
  run_shape(shape_of(call), call, slice);
}

}  // namespace

InnerPass inner_forward() {
  return {supports, packed_floats, pack_weights, scratch_floats, run_slice};
}

}  // namespace tnt_kernels::cpu::amx
