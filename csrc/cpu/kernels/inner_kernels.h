// The inner-block entries of this instruction set's kernel table.
#pragma once

#include "cpu/kernels/inner_dw.h"

namespace tnt_kernels::cpu::TNT_ISA {

InnerKernels inner_kernels() {
  InnerKernels kernels;
  kernels.forward = {inner_supports, inner_fwd_packed_floats, inner_fwd_pack,
                     inner_fwd_scratch_floats, inner_fwd};
  kernels.backward = {inner_supports, inner_bwd_packed_floats, inner_bwd_pack,
                      inner_bwd_scratch_floats, inner_bwd};
  kernels.dw_partial_floats = inner_dw_partial_floats;
  kernels.finish_dw = inner_finish_dw;
  return kernels;
}

}  // namespace tnt_kernels::cpu::TNT_ISA
