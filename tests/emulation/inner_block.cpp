// Emulator shells of the inner block's kernels, compiled once per element type: TNT_DTYPE is its
// name in csrc/cuda, TNT_NAMESPACE the namespace of these functions. TNT_CONFIGS may name fewer
// configurations than are shipped, for builds that test faults.
#include "inner_block.h"

#include "cuda/inner_block/body.cuh"
#include "cuda/inner_block/instances.cuh"
#include "cuda/inner_block/pack.cuh"
#include "inner_weights.h"

namespace emulation::TNT_NAMESPACE {
namespace {

using namespace tnt_kernels::cuda;
#ifdef TNT_CONFIGS
using Configs = TNT_CONFIGS;
#else
using Configs = InnerConfigs<TNT_DTYPE>;
#endif

template <class Config>
InnerResult run_config(const InnerCall& call) {
  const Setting& setting = call.setting;
  Buffers buffers(setting);
  const PackParams pack =
      pack_params(buffers, call.weights, call.has_attention, call.has_mlp, Config::kBufferWords);
  run({setting.blocks, 2, 0, setting.reversed}, [&] { inner_block_pack_body<Config>(pack); });
  ForwardParams forward = {};
  forward.weights = static_cast<const uint32_t*>(buffers.finished());
  forward.x = buffers.input(call.x);
  forward.drop_path_attn = static_cast<const float*>(buffers.input(call.drop_path_attn));
  forward.drop_path_mlp = static_cast<const float*>(buffers.input(call.drop_path_mlp));
  forward.out = buffers.output(call.x.bytes);
  forward.mid = call.save_mid ? buffers.output(call.x.bytes) : nullptr;
  forward.num_patches = call.num_patches;
  forward.eps = call.eps;
  forward.has_attention = call.has_attention;
  forward.has_mlp = call.has_mlp;
  forward.unpacked = pack;
  run({setting.blocks, Config::kWarps, Config::kSharedBytes, setting.reversed},
      [&] { inner_block_fwd_body<Config>(forward); });
  return {bytes_at(forward.out, call.x.bytes),
          bytes_at(forward.mid, call.save_mid ? call.x.bytes : 0),
          Config::kMayLeaveRange && forward.weights[Config::kPackedWords] != 0};
}

}  // namespace

InnerResult run_inner_block(const InnerCall& call) {
  InnerResult result;
  const auto run_it = [&](auto config) { result = run_config<decltype(config)>(call); };
  if (!visit_config(Configs{}, call.tokens, call.dim, call.heads, run_it)) {
    throw std::invalid_argument("no such configuration");
  }
  return result;
}

std::vector<std::string> names() { return names_of(Configs{}); }

}  // namespace emulation::TNT_NAMESPACE
