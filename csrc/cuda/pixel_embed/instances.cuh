// Which kernels of pixel_embed are compiled: element types by groups of channels by whether images
// are uint8.
#pragma once

#include <type_traits>

#include "cuda/pixel_embed/plan.h"
#include "cuda/tile/rows.cuh"

namespace tnt_kernels::cuda {

// Calls visit(Dtype{}, integral constant of the groups of 8 channels, that of uint8 images).
template <class Visit>
void visit_pixel_embed(DType dtype, const PixelEmbedPlan& plan, const Visit& visit) {
  const auto with_groups = [&](auto element, auto groups) {
    if (plan.bytes) {
      visit(element, groups, std::true_type{});
    } else {
      visit(element, groups, std::false_type{});
    }
  };
  const auto with = [&](auto element) {
    if (plan.groups == 5) {
      with_groups(element, std::integral_constant<int, 5>{});
    } else {
      with_groups(element, std::integral_constant<int, 3>{});
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
