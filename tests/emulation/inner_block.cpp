// Emulator shells of the inner block's kernels, compiled once per element type: TNT_DTYPE is its
// name in csrc/cuda, TNT_NAMESPACE the namespace of these functions. TNT_CONFIGS may name fewer
// configurations than are shipped, for builds that test faults.
#include "inner_block.h"

#include <cstring>
#include <deque>

#include "cuda/inner_block/body.cuh"
#include "cuda/inner_block/instances.cuh"
#include "cuda/inner_block/pack.cuh"

namespace emulation::TNT_NAMESPACE {
namespace {

using namespace tnt_kernels::cuda;
#ifdef TNT_CONFIGS
using Configs = TNT_CONFIGS;
#else
using Configs = InnerConfigs<TNT_DTYPE>;
#endif

// Guarded copies of a call's inputs.
class Inputs {
 public:
  explicit Inputs(bool guard_end) : guard_end_(guard_end) {}

  const void* add(const void* data, size_t bytes) {
    if (bytes == 0) return nullptr;
    buffers_.emplace_back(bytes, guard_end_);
    memcpy(buffers_.back().data(), data, bytes);
    buffers_.back().make_read_only();
    return buffers_.back().data();
  }

  WeightView add(const Weight& weight) {
    return {add(weight.data, weight.bytes),
            {weight.stride[0], weight.stride[1]},
            static_cast<DType>(weight.type)};
  }

 private:
  bool guard_end_;
  std::deque<GuardedBuffer> buffers_;
};

std::vector<char> bytes_of(const GuardedBuffer& buffer, size_t bytes) {
  const char* data = static_cast<const char*>(buffer.data());
  return {data, data + bytes};
}

template <class Config>
InnerResult run_config(const InnerCall& call) {
  Inputs inputs(call.guard_end);
  const auto weight = [&](int i) { return inputs.add(call.weights[i]); };
  GuardedBuffer packed(Config::kBufferWords * 4, call.guard_end);
  memset(packed.data(), 0xff, Config::kBufferWords * 4);
  const PackParams pack = {weight(0),
                           weight(1),
                           weight(2),
                           weight(3),
                           weight(4),
                           weight(5),
                           weight(6),
                           weight(7),
                           weight(8),
                           weight(9),
                           weight(10),
                           weight(11),
                           weight(12),
                           weight(13),
                           call.has_attention,
                           call.has_mlp,
                           static_cast<uint32_t*>(packed.data())};
  run({call.blocks, 2, 0, call.reversed}, [&] { inner_block_pack_body<Config>(pack); });
  packed.make_read_only();

  const size_t bytes = call.x.size();
  GuardedBuffer out(bytes, call.guard_end), mid(call.save_mid ? bytes : 0, call.guard_end);
  memset(out.data(), 0xff, bytes);
  if (call.save_mid) memset(mid.data(), 0xff, bytes);
  const auto factors = [&](const std::vector<float>& values) {
    return static_cast<const float*>(inputs.add(values.data(), values.size() * 4));
  };
  const ForwardParams forward = {inputs.add(call.x.data(), bytes),
                                 call.save_mid ? mid.data() : nullptr,
                                 out.data(),
                                 static_cast<const uint32_t*>(packed.data()),
                                 factors(call.drop_path_attn),
                                 factors(call.drop_path_mlp),
                                 call.num_patches,
                                 call.eps,
                                 call.has_attention,
                                 call.has_mlp,
                                 pack};
  run({call.blocks, Config::kWarps, Config::kSharedBytes, call.reversed},
      [&] { inner_block_fwd_body<Config>(forward); });
  const uint32_t* words = static_cast<const uint32_t*>(packed.data());
  return {bytes_of(out, bytes), bytes_of(mid, call.save_mid ? bytes : 0),
          Config::kMayLeaveRange && words[Config::kPackedWords] != 0};
}

template <class... Configs>
std::vector<std::string> names_of(ConfigList<Configs...>) {
  return {("S" + std::to_string(Configs::kTokens) + "-C" + std::to_string(Configs::kDim) +
           "-heads" + std::to_string(Configs::kHeads))...};
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
