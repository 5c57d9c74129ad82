// The bodies of the inner block's backward kernels: which one a configuration takes.
#pragma once

#include <type_traits>

#include "cuda/inner_block/attention_backward_pass.cuh"
#include "cuda/inner_block/attention_backward_plain.cuh"
#include "cuda/inner_block/attention_backward_staged.cuh"
#include "cuda/inner_block/mlp_backward_pass.cuh"
#include "cuda/inner_block/mlp_backward_staged.cuh"

namespace tnt_kernels::cuda {

template <class Config>
constexpr bool kIsMlp =
    std::is_same_v<Config, MlpBackward<typename Config::Dtype, Config::kTokens, Config::kDim>>;

template <class Config>
TNT_DEVICE void inner_bwd_pack_body(const PackParams& params) {
  if constexpr (kIsMlp<Config>) {
    inner_mlp_bwd_pack_body<Config>(params);
  } else if constexpr (Config::kKeep == Keep::kThreads) {
    plain_attention_pack_body<Config>(params);
  } else {
    inner_attention_bwd_pack_body<Config>(params);
  }
}

template <class Config>
TNT_DEVICE void inner_bwd_body(const BackwardParams& params) {
  if constexpr (kIsMlp<Config> && Config::kKeep == Keep::kBlock) {
    mlp_bwd_staged<Config>(params);
  } else if constexpr (kIsMlp<Config>) {
    mlp_bwd_pass<Config>(params);
  } else if constexpr (Config::kKeep == Keep::kThreads) {
    plain_attention_bwd_body<Config>(params);
  } else if constexpr (Config::kKeep == Keep::kBlock) {
    attention_bwd_staged<Config>(params);
  } else {
    attention_bwd_pass<Config>(params);
  }
}

}  // namespace tnt_kernels::cuda
