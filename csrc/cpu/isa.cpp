#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(TNT_HAVE_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Does this machine have AMX for bfloat16, and may this process use it?
bool has_amx() {
#if defined(TNT_HAVE_AMX) && defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if ((edx & kBf16) == 0 || (edx & kTile) == 0) return false;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) return false;
  // Linux saves the tiles only of processes that asked for it (since 5.16).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

KernelTable choose() {
#if defined(TNT_HAVE_AVX512)
  // __builtin_cpu_supports also asks the operating system whether it saves the registers
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")) {
    KernelTable table = avx512::table();
#if defined(TNT_HAVE_AMX)
    if (has_amx()) {
      table.name = "avx512+amx";
      table.inner.bfloat16_forward = amx::inner_forward();
      table.outer_attention.bfloat16_forward = amx::outer_attention_forward();
      table.outer_attention.bfloat16_backward = amx::outer_attention_backward();
    }
#endif
    return table;
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

// For Python, see tnt_kernels/backends/native.py.
extern "C" __attribute__((visibility("default"))) const char* tnt_kernels_cpu_isa() {
  return kernels().name;
}

bool has_bfloat16_product() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace tnt_kernels::cpu
