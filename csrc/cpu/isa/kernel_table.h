// Included once per instruction set, by <isa>.cpp: compiles every kernel for it.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels/inner_kernels.h"
#include "cpu/kernels/outer_attention_bwd.h"
#include "cpu/kernels/outer_attention_fwd.h"
#include "cpu/kernels/pixel_embed_bwd.h"
#include "cpu/kernels/pixel_embed_fwd.h"
#include "cpu/kernels/pixel_to_patch_bwd.h"
#include "cpu/kernels/pixel_to_patch_fwd.h"
#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

KernelTable table() {
  KernelTable table = {};
  table.name = TNT_ISA_NAME;
  table.inner = inner_kernels();
  table.outer_attention = outer_attention_kernels();
  table.pixel_embed = pixel_embed_kernels();
  table.pixel_to_patch = pixel_to_patch_kernels();
  return table;
}

}  // namespace tnt_kernels::cpu::TNT_ISA
