// Starting a kernel. tests/emulation/cuda has the twin that runs it on a CPU.
#pragma once

#include <cuda_runtime.h>

namespace tnt_kernels::cuda {

// Lets a block of `kernel` have so much dynamic shared memory.
template <class Params>
cudaError_t allow_shared(void (*kernel)(Params), int bytes) {
  constexpr int kAlwaysAllowed = 48 * 1024;
  if (bytes <= kAlwaysAllowed) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <class Params>
cudaError_t launch(void (*kernel)(Params), int blocks, int threads, int shared_bytes,
                   cudaStream_t stream, const Params& params) {
  const cudaError_t error = allow_shared(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, threads, shared_bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace tnt_kernels::cuda
