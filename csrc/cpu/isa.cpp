#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace tnt_kernels::cpu {
namespace {

// Does ATEN_CPU_CAPABILITY, if it names a level, allow this one?
bool allowed(const char* level) {
  constexpr const char* kLevels[] = {"default", "avx2", "avx512"};
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  if (limit == nullptr) return true;
  bool reached = false;
  for (const char* known : kLevels) {
    reached = reached || std::strcmp(known, level) == 0;
    if (std::strcmp(known, limit) == 0) return reached;
  }
  return true;  // PyTorch ignores other names too
}

KernelTable choose() {
#if defined(TNT_HAVE_AVX512)
  // __builtin_cpu_supports also asks the operating system whether it saves the registers
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
    return avx512::table();
  }
#endif
#if defined(TNT_HAVE_AVX2)
  // every processor with AVX2 and FMA has F16C, which older compilers cannot ask for
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::table();
  }
#endif
  return generic::table();
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable table = choose();
  return table;
}

bool has_bfloat16_product() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace tnt_kernels::cpu
