// Which kernels of pixel_to_patch are compiled: element types by widths.
#pragma once

#include <type_traits>

#include "cuda/tile/rows.cuh"
#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

template <class Visit>
bool visit_patch_width(int width, const Visit& visit) {
  if (width == 384) {
    visit(std::integral_constant<int, 384>{});
  } else if (width == 640) {
    visit(std::integral_constant<int, 640>{});
  } else {
    return false;
  }
  return true;
}

// Calls visit(Dtype{}, integral constant of the width); false if there is no such kernel.
template <class Visit>
bool visit_patch(DType dtype, int width, const Visit& visit) {
  return visit_patch_width(width, [&](auto constant) {
    if (dtype == DType::kBFloat16) {
      visit(BFloat16{}, constant);
    } else if (dtype == DType::kFloat16) {
      visit(Float16{}, constant);
    } else {
      visit(Float32{}, constant);
    }
  });
}

// The same for kernels that multiply matrices: products of fp32 tensors may be in TF32.
template <class Visit>
bool visit_patch_product(DType dtype, bool tf32, int width, const Visit& visit) {
  if (dtype != DType::kFloat32 || !tf32) return visit_patch(dtype, width, visit);
  return visit_patch_width(width, [&](auto constant) { visit(TensorFloat32{}, constant); });
}

}  // namespace tnt_kernels::cuda
