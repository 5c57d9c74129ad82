// The twin of csrc/cuda/launch.cuh: kernels run on a CPU, before launch returns.
#pragma once

#include <cuda_runtime.h>

#include "device.h"

namespace tnt_kernels::cuda {

inline cudaError_t error_unless(bool good) { return good ? cudaSuccess : cudaErrorInvalidValue; }

template <class Params>
cudaError_t allow_shared(void (*kernel)(Params), int bytes) {
  if (bytes <= emulation::kSharedBytesWithoutAsking) return cudaSuccess;
  return error_unless(emulation::allow_shared(reinterpret_cast<const void*>(kernel), bytes));
}

template <class Params>
cudaError_t launch(void (*kernel)(Params), int blocks, int threads, int shared_bytes, cudaStream_t,
                   const Params& params) {
  const cudaError_t error = allow_shared(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  return error_unless(emulation::run_kernel(reinterpret_cast<const void*>(kernel), blocks, threads,
                                            shared_bytes, [&] { kernel(params); }));
}

}  // namespace tnt_kernels::cuda
