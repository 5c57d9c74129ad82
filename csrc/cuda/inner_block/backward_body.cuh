// The bodies of the inner block's backward kernels: which pass a configuration takes.
#pragma once

#include "cuda/inner_block/attention_backward_pass.cuh"
#include "cuda/inner_block/attention_backward_staged.cuh"
#include "cuda/inner_block/mlp_backward_pass.cuh"
#include "cuda/inner_block/mlp_backward_staged.cuh"

namespace tnt_kernels::cuda {

template <class Config>
TNT_DEVICE void inner_mlp_bwd_body(const BackwardParams& params) {
  if constexpr (Config::kKeep == Keep::kBlock) {
    mlp_bwd_staged<Config>(params);
  } else {
    mlp_bwd_pass<Config>(params);
  }
}

template <class Config>
TNT_DEVICE void inner_attention_bwd_body(const BackwardParams& params) {
  if constexpr (Config::kKeep == Keep::kBlock) {
    attention_bwd_staged<Config>(params);
  } else {
    attention_bwd_pass<Config>(params);
  }
}

}  // namespace tnt_kernels::cuda
