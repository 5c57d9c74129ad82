// Emulator shells of the inner block's backward kernels, compiled once per element type: TNT_DTYPE
// is its name in csrc/cuda, TNT_NAMESPACE the namespace of these functions. TNT_CONFIGS may name
// fewer configurations than are shipped, for builds that test faults.
#include "backward_kernels.h"
#include "cuda/inner_block/backward_body.cuh"
#include "cuda/inner_block/backward_finish.cuh"
#include "cuda/inner_block/backward_instances.cuh"
#include "cuda/tile/sum_partials.cuh"
#include "inner_weights.h"

namespace emulation::TNT_NAMESPACE {
namespace {

using namespace tnt_kernels::cuda;
#ifdef TNT_CONFIGS
using Configs = TNT_CONFIGS;
#else
using Configs = AttentionBackwardConfigs<TNT_DTYPE>;
#endif

// What a launcher does: pack, passes over the tokens, sum, finish.
template <class Config>
Gradients run_half(const BackwardCall& call) {
  const Setting& setting = call.setting;
  Buffers buffers(setting);
  const PackParams weights =
      pack_params(buffers, call.weights, !call.is_mlp, call.is_mlp, Config::kPackedWords);
  const auto launch = [&](int blocks, int warps, size_t shared_bytes, const auto& body) {
    run({blocks, warps, shared_bytes, setting.reversed}, body);
  };
  launch(setting.blocks, 2, 0, [&] { inner_bwd_pack_body<Config>(weights); });
  BackwardParams params = {};
  params.weights = static_cast<const uint32_t*>(buffers.finished());
  params.x = buffers.input(call.x);
  params.dy = buffers.input(call.dy);
  params.drop_path = static_cast<const float*>(buffers.input(call.drop_path));
  params.num_rows = call.num_patches * call.tokens;
  params.eps = call.eps;
  params.num_heads = call.heads;

  const int64_t num_dw = call.is_mlp ? mlp_gradients(call.dim) : attention_gradients(call.dim);
  void* dx = call.need_dx ? buffers.output(call.x.bytes) : nullptr;
  float* partials = call.need_dw
                        ? static_cast<float*>(buffers.output(setting.blocks * Config::kSums * 4))
                        : nullptr;
  for_each_pass<Config>(call.need_dx, call.need_dw, [&](bool want_dx, bool want_dw) {
    params.dx = want_dx ? dx : nullptr;
    params.partials = want_dw ? partials : nullptr;
    params.workers = setting.blocks;
    launch(setting.blocks * (want_dw ? Config::kSlices : 1), Config::kWarps, Config::kSharedBytes,
           [&] { inner_bwd_body<Config>(params); });
  });
  std::string dx_bytes = bytes_at(dx, call.need_dx ? call.x.bytes : 0);
  if (!call.need_dw) return {dx_bytes, ""};
  FinishParams finish = {};
  finish.weights = weights;
  finish.num_sums = Config::kSums;
  finish.dim = call.dim;
  finish.num_heads = call.heads;
  finish.sums = static_cast<float*>(buffers.output(Config::kSums * 4));
  finish.dw = static_cast<float*>(buffers.output(num_dw * 4));
  const SumPartials sums = {partials, finish.sums, Config::kSums, Config::kSums, setting.blocks};
  launch(setting.blocks, kSumWarps, 128 * kSumWarps, [&] { sum_partials_body(sums); });
  launch(setting.blocks, 2, 2 * call.dim * 4, [&] { inner_bwd_finish_body(finish); });
  return {dx_bytes, bytes_at(finish.dw, num_dw * 4)};
}

}  // namespace

Gradients run_backward(const BackwardCall& call) {
  Gradients result;
  const auto run_it = [&](auto config) {
    using Attention = decltype(config);
    result =
        call.is_mlp ? run_half<MlpOf<Attention>>(call) : run_half<AttentionOf<Attention>>(call);
  };
  if (!visit_config(Configs{}, call.tokens, call.dim, call.heads, run_it)) {
    throw std::invalid_argument("no such configuration");
  }
  return result;
}

std::vector<std::string> names() { return names_of(Configs{}); }

}  // namespace emulation::TNT_NAMESPACE
