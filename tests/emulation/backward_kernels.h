// An emulated backward of one half of the inner block; the element type is that of the namespace.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "buffers.h"

namespace emulation {

struct BackwardCall {
  int tokens, dim, heads;
  int64_t num_patches;
  bool is_mlp, need_dx, need_dw;
  float eps;
  std::vector<Weight> weights;  // 14, in the order of the schema
  Span x, dy, drop_path;
  Setting setting;
};

// The bytes of dx and dw; empty where not asked for. Throws Fault.
using Gradients = std::pair<std::string, std::string>;

namespace bf16 {
Gradients run_backward(const BackwardCall& call);
std::vector<std::string> names();  // of the compiled bodies
}  // namespace bf16
namespace fp16 {
Gradients run_backward(const BackwardCall& call);
std::vector<std::string> names();
}  // namespace fp16
namespace fp32 {
Gradients run_backward(const BackwardCall& call);
std::vector<std::string> names();
}  // namespace fp32

}  // namespace emulation
