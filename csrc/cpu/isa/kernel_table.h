// Included once per instruction set, by <isa>.cpp: compiles every kernel for it.
#pragma once

#include "cpu/isa.h"
#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

KernelTable table() {
  KernelTable table = {};
  table.name = TNT_ISA_NAME;
  return table;
}

}  // namespace tnt_kernels::cpu::TNT_ISA
