// The one list of inner-block backward kernels that are compiled.
#pragma once

#include "cuda/inner_block/backward_config.cuh"
#include "cuda/inner_block/instances.cuh"

namespace tnt_kernels::cuda {

// Those of forward.
template <class... Forward>
constexpr auto backward_of(ConfigList<Forward...>) {
  return ConfigList<AttentionBackward<typename Forward::Dtype, Forward::kTokens, Forward::kDim,
                                      Forward::kHeads>...>{};
}
template <class Dtype>
using AttentionBackwardConfigs = decltype(backward_of(InnerConfigs<Dtype>{}));

// The kernel that serves it.
template <class Attention>
using AttentionOf = std::conditional_t<
    Attention::kTokens == 16, Attention,
    PlainAttentionBackward<typename Attention::Dtype, Attention::kTokens, Attention::kDim>>;

// The MLP knows no heads.
template <class Attention>
using MlpOf = MlpBackward<typename Attention::Dtype, Attention::kTokens, Attention::kDim>;

// Calls pass(want_dx, want_dw) for each launch over the tokens.
template <class Config, class Pass>
void for_each_pass(bool need_dx, bool need_dw, const Pass& pass) {
  if (Config::kKeep != Keep::kSlices) {
    pass(need_dx, need_dw);
    return;
  }
  if (need_dw) pass(false, true);
  if (need_dx) pass(true, false);
}

}  // namespace tnt_kernels::cuda
