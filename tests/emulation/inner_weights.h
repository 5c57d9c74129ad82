// The weights of an emulated call of the inner block, as its kernels take them.
#pragma once

#include <vector>

#include "buffers.h"
#include "cuda/inner_block/params.h"

namespace emulation {

// `weights` are the 14 of the schema, in its order.
inline tnt_kernels::cuda::PackParams pack_params(Buffers& buffers,
                                                 const std::vector<Weight>& weights,
                                                 bool has_attention, bool has_mlp,
                                                 size_t packed_words) {
  const auto w = [&](int i) { return view(buffers, weights[i]); };
  return {w(0),
          w(1),
          w(2),
          w(3),
          w(4),
          w(5),
          w(6),
          w(7),
          w(8),
          w(9),
          w(10),
          w(11),
          w(12),
          w(13),
          has_attention,
          has_mlp,
          static_cast<uint32_t*>(buffers.output(packed_words * 4))};
}

// `S16-C24-heads4` of every configuration of a list.
template <template <class...> class List, class... Configs>
std::vector<std::string> names_of(List<Configs...>) {
  return {("S" + std::to_string(Configs::kTokens) + "-C" + std::to_string(Configs::kDim) +
           "-heads" + std::to_string(Configs::kHeads))...};
}

}  // namespace emulation
