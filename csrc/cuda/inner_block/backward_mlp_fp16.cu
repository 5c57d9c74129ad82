#include "cuda/inner_block/backward.cuh"

namespace tnt_kernels::cuda {

const InnerBackward* find_mlp_backward_fp16(int tokens, int dim) {
  return find_mlp_backward_of<Float16>(tokens, dim);
}

}  // namespace tnt_kernels::cuda
