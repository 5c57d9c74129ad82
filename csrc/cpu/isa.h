// The table of CPU kernels, one per instruction set, and the choice among them at run time.
#pragma once

#include "cpu/inner_block.h"
#include "cpu/kernels/outer_attention.h"
#include "cpu/kernels/pixel_embed.h"
#include "cpu/kernels/pixel_to_patch.h"

namespace tnt_kernels::cpu {

// Each op adds its kernels here, and fills them in csrc/cpu/isa/kernel_table.h.
struct KernelTable {
  const char* name;
  InnerKernels inner;
  OuterAttentionKernels outer_attention;
  PixelEmbedKernels pixel_embed;
  PixelToPatchKernels pixel_to_patch;
};

// The table of the best instruction set that was compiled in, that this machine and its operating
// system offer, and that ATEN_CPU_CAPABILITY (default | avx2 | avx512, as PyTorch reads it) allows.
const KernelTable& kernels();

// Does this machine multiply bfloat16 matrices faster than float32 ones?
bool has_bfloat16_product();

// Defined by csrc/cpu/isa/<isa>.cpp.
namespace generic {
KernelTable table();
}
namespace avx2 {
KernelTable table();
}
namespace avx512 {
KernelTable table();
}
namespace amx {
// added to the table of avx512
InnerPass inner_forward();
OuterAttentionPass outer_attention_forward();
OuterAttentionPass outer_attention_backward();
}  // namespace amx

}  // namespace tnt_kernels::cpu
