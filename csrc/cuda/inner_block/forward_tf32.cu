#include "cuda/inner_block/forward.cuh"

namespace tnt_kernels::cuda {

const InnerForward* find_inner_forward_tf32(int tokens, int dim, int heads) {
  return find_inner_forward_of<TensorFloat32>(tokens, dim, heads);
}

}  // namespace tnt_kernels::cuda
