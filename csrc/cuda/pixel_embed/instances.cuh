// Which kernels of pixel_embed are compiled: element types by groups of channels.
#pragma once

#include <type_traits>

#include "cuda/tile/rows.cuh"
#include "cuda/weight_view.h"

namespace tnt_kernels::cuda {

// Calls visit(Dtype{}, integral constant of the groups of 8 channels).
template <class Visit>
void visit_pixel_embed(DType dtype, int groups, const Visit& visit) {
  const auto with = [&](auto element) {
    if (groups == 5) {
      visit(element, std::integral_constant<int, 5>{});
    } else {
      visit(element, std::integral_constant<int, 3>{});
    }
  };
  if (dtype == DType::kBFloat16) {
    with(BFloat16{});
  } else if (dtype == DType::kFloat16) {
    with(Float16{});
  } else {
    with(Float32{});
  }
}

}  // namespace tnt_kernels::cuda
