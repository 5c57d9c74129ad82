// An emulated call of the inner block: the kernels' parameters with plain memory behind them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "buffers.h"

namespace emulation {

struct InnerCall {
  int tokens, dim, heads;
  int64_t num_patches;
  bool has_attention, has_mlp;
  float eps;
  std::vector<Weight> weights;  // 14, in the order of the schema
  Span x, drop_path_attn, drop_path_mlp;
  bool save_mid;
  Setting setting;
};

struct InnerResult {
  std::string out, mid;
  bool left_range;  // of fp16, so that wide_range.cuh ran
};

// Runs pack and forward; the element type is that of the namespace. Throws Fault.
namespace bf16 {
InnerResult run_inner_block(const InnerCall& call);
std::vector<std::string> names();  // of the compiled bodies
}  // namespace bf16
namespace fp16 {
InnerResult run_inner_block(const InnerCall& call);
std::vector<std::string> names();
}  // namespace fp16
namespace fp32 {
InnerResult run_inner_block(const InnerCall& call);
std::vector<std::string> names();
}  // namespace fp32
namespace tf32 {
InnerResult run_inner_block(const InnerCall& call);
std::vector<std::string> names();
}  // namespace tf32

}  // namespace emulation
