// The one list of inner-block kernels that are compiled, and how each uses the machine.
#pragma once

#include <type_traits>

#include "cuda/inner_block/config.cuh"

namespace tnt_kernels::cuda {

// Tiles a warp takes at once (more reuse of weights, more registers), warps of a block, and blocks
// that registers must allow on a multiprocessor.
struct Tuning {
  int tiles, warps, blocks_per_sm;
};

template <class Dtype>
constexpr Tuning tuning(int tokens, int dim, int heads) {
  const bool bf16 = std::is_same_v<Dtype, BFloat16>, fp16 = std::is_same_v<Dtype, Float16>;
  const bool fp32 = std::is_same_v<Dtype, Float32>;
  if (tokens == 64) return {4, 4, 2};
  if (dim == 24 && bf16) return {2, 8, 2};
  if (dim == 24 && fp16 && heads == 8) return {1, 4, 3};  // one register too many for 16 warps
  if (dim == 24) return fp32 ? Tuning{1, 8, 1} : Tuning{1, 8, 2};
  if (dim == 40) return bf16 ? Tuning{3, 8, 1} : fp16 ? Tuning{2, 8, 1} : Tuning{1, 8, 1};
  return {1, 8, 1};
}

template <class Dtype, int kTokens, int kDim, int kHeads>
using TunedConfig =
    InnerConfig<Dtype, kTokens, kDim, kHeads, tuning<Dtype>(kTokens, kDim, kHeads).tiles,
                tuning<Dtype>(kTokens, kDim, kHeads).warps,
                tuning<Dtype>(kTokens, kDim, kHeads).blocks_per_sm>;

template <class... Configs>
struct ConfigList {};

// (S, C) of the paper's models and of its Table 7, with the heads of Table 6 that divide C.
template <class Dtype>
using InnerConfigs = ConfigList<
    TunedConfig<Dtype, 16, 24, 1>, TunedConfig<Dtype, 16, 24, 2>, TunedConfig<Dtype, 16, 24, 4>,
    TunedConfig<Dtype, 16, 24, 8>, TunedConfig<Dtype, 16, 40, 1>, TunedConfig<Dtype, 16, 40, 2>,
    TunedConfig<Dtype, 16, 40, 4>, TunedConfig<Dtype, 16, 40, 8>, TunedConfig<Dtype, 64, 6, 1>,
    TunedConfig<Dtype, 64, 6, 2>, TunedConfig<Dtype, 4, 96, 1>, TunedConfig<Dtype, 4, 96, 2>,
    TunedConfig<Dtype, 4, 96, 4>, TunedConfig<Dtype, 4, 96, 8>>;

// Calls visit(Config{}) for the configuration of these sizes; false if it is not in the list.
template <class Visit, class... Configs>
bool visit_config(ConfigList<Configs...>, int tokens, int dim, int heads, const Visit& visit) {
  const auto visit_if_same = [&](auto config) {
    using Config = decltype(config);
    if (Config::kTokens != tokens || Config::kDim != dim || Config::kHeads != heads) return false;
    visit(config);
    return true;
  };
  return (visit_if_same(Configs{}) || ...);
}

}  // namespace tnt_kernels::cuda
