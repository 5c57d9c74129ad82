// Emulated calls of the pixel ops; the element type is that of the namespace. They throw Fault.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "buffers.h"
#include "cuda/pixel_embed/plan.h"
#include "cuda/pixel_to_patch/params.h"

namespace emulation {

struct PixelEmbedCall {
  tnt_kernels::cuda::PixelEmbedPlan plan;
  Span images, dy;
  Weight weight, bias, pixel_pos;
  Span mean, std;
  Setting setting;
};

// Spans that an entry point does not read are empty.
struct PatchCall {
  int64_t num_patches;
  int width, patches_per_image, norm1_width, tokens_type;
  float eps;
  bool save_projection, need_dpixels, need_dw;
  Span pixels, tokens, dy, projection, drows;
  Weight norm1_weight, norm1_bias, proj_weight, proj_bias, norm2_weight, norm2_bias;
  Setting setting;
};

// Outputs by name.
using Outputs = std::map<std::string, std::string>;

// The kernels of one element type; each returns its output's bytes.
struct PixelEmbedKernels {
  std::string (*forward)(const PixelEmbedCall&);
  std::string (*weight_grad)(const PixelEmbedCall&);
  std::string (*image_grad)(const PixelEmbedCall&);
  std::pair<int64_t, int64_t> (*shared_bytes)(const PixelEmbedCall&);  // forward, backward
};

struct PatchKernels {
  Outputs (*forward)(const PatchCall&);
  Outputs (*normalise)(const PatchCall&);
  Outputs (*norm2_backward)(const PatchCall&);
  Outputs (*norm1_backward)(const PatchCall&);
};

namespace bf16 {
PixelEmbedKernels pixel_embed_kernels();
PatchKernels patch_kernels();
}  // namespace bf16
namespace fp16 {
PixelEmbedKernels pixel_embed_kernels();
PatchKernels patch_kernels();
}  // namespace fp16
namespace fp32 {
PixelEmbedKernels pixel_embed_kernels();
PatchKernels patch_kernels();
}  // namespace fp32

namespace tf32 {
PatchKernels patch_kernels();
}

#define TNT_STRING_OF(name) #name
#define TNT_STRING(name) TNT_STRING_OF(name)

}  // namespace emulation
