// Host side of sum_partials.cuh.
#pragma once

#include <cuda_runtime.h>

#include "cuda/tile/sum_partials.h"

namespace tnt_kernels::cuda {

cudaError_t launch_sum_partials(const SumPartials& params, cudaStream_t stream);

}  // namespace tnt_kernels::cuda
