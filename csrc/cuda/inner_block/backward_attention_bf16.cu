#include "cuda/inner_block/backward.cuh"

namespace tnt_kernels::cuda {

const InnerBackward* find_attention_backward_bf16(int tokens, int dim, int heads) {
  return find_attention_backward_of<BFloat16>(tokens, dim, heads);
}

}  // namespace tnt_kernels::cuda
