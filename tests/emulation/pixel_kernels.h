// Emulated calls of the pixel ops; the element type is that of the namespace. They throw Fault.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "buffers.h"
#include "cuda/pixel_embed/plan.h"

namespace emulation {

// A weight: its memory, two strides and its type.
struct Weight {
  Span span;
  int64_t stride[2] = {0, 0};
  int type = 0;
};

struct PixelEmbedCall {
  tnt_kernels::cuda::PixelEmbedPlan plan;
  Span images, dy;
  Weight weight, bias, pixel_pos;
  Setting setting;
};

// The kernels of one element type; each returns its output's bytes.
struct PixelEmbedKernels {
  std::string (*forward)(const PixelEmbedCall&);
  std::string (*weight_grad)(const PixelEmbedCall&);
  std::string (*image_grad)(const PixelEmbedCall&);
  std::pair<int64_t, int64_t> (*shared_bytes)(const PixelEmbedCall&);  // forward, backward
};

namespace bf16 {
PixelEmbedKernels pixel_embed_kernels();
}
namespace fp16 {
PixelEmbedKernels pixel_embed_kernels();
}
namespace fp32 {
PixelEmbedKernels pixel_embed_kernels();
}

#define TNT_STRING_OF(name) #name
#define TNT_STRING(name) TNT_STRING_OF(name)

}  // namespace emulation
