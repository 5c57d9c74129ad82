// Emulator shells of pixel_to_patch's kernels, compiled once per element type: TNT_DTYPE is its
// name in csrc/cuda, TNT_NAMESPACE the namespace of these functions.
#include "cuda/pixel_to_patch/backward_body.cuh"
#include "cuda/pixel_to_patch/forward_body.cuh"
#include "cuda/pixel_to_patch/instances.cuh"
#include "cuda/tile/sum_partials.cuh"
#include "pixel_kernels.h"

namespace emulation::TNT_NAMESPACE {
namespace {

using namespace tnt_kernels::cuda;
constexpr int kElementBytes = 2 * TNT_DTYPE::kPairWords;

// Runs body(width as a constant) and notes its name.
template <class Body>
void run_width(const char* name, int width, const Body& body) {
  executed().insert(std::string(name) + "-" + TNT_STRING(TNT_NAMESPACE) + "-" +
                    std::to_string(width));
  if (!visit_patch_width(width, body)) throw std::invalid_argument("no such width");
}

Launch launch(const PatchCall& call, size_t shared_bytes) {
  return {call.setting.blocks, kPatchWarps, shared_bytes, call.setting.reversed};
}

// The sum of a plane of partials, as rows of `width` floats.
std::string summed(const PatchCall& call, const float* partials, int width) {
  Buffers buffers(call.setting);
  float* out = static_cast<float*>(buffers.output(4 * size_t(width)));
  const SumPartials sum = {partials, out, width, width, call.setting.blocks * call.width / width};
  run({2, 4, 128 * 4, call.setting.reversed}, [&] { sum_partials_body(sum); });
  return bytes_at(out, 4 * size_t(width));
}

Outputs forward(const PatchCall& call) {
  Buffers buffers(call.setting);
  const size_t width = call.width;
  PatchPack pack = {view(buffers, call.norm1_weight),
                    view(buffers, call.norm1_bias),
                    view(buffers, call.proj_weight),
                    view(buffers, call.proj_bias),
                    view(buffers, call.norm2_weight),
                    view(buffers, call.norm2_bias),
                    call.norm1_width,
                    nullptr,
                    nullptr};
  pack.weights = static_cast<uint32_t*>(buffers.output(width * width * kElementBytes));
  pack.vectors = static_cast<float*>(buffers.output(3 * width * 4));
  run_width("pixel_to_patch_pack", call.width, [&](auto constant) {
    run({call.setting.blocks, 4, 0, call.setting.reversed},
        [&] { pixel_to_patch_pack_body<PatchConfig<TNT_DTYPE, constant>>(pack); });
  });
  const bool has_tokens = call.tokens.data != nullptr;
  const size_t projection_bytes = call.num_patches * width * kElementBytes;
  const size_t out_bytes = has_tokens ? call.tokens.bytes : projection_bytes;
  const bool has_norm2 = pack.norm2_weight.data != nullptr;
  const bool save = call.save_projection && has_norm2;
  const PatchForward params = {buffers.input(call.pixels),
                               pack.weights,
                               pack.vectors,
                               buffers.input(call.tokens),
                               buffers.output(out_bytes),
                               save ? buffers.output(projection_bytes) : nullptr,
                               call.num_patches,
                               call.patches_per_image,
                               static_cast<DType>(call.tokens_type),
                               call.norm1_width,
                               has_norm2,
                               call.eps};
  run_width("pixel_to_patch_fwd", call.width, [&](auto constant) {
    using Config = PatchConfig<TNT_DTYPE, constant>;
    const int blocks = static_cast<int>((call.num_patches + Config::kRows - 1) / Config::kRows);
    run({blocks, kPatchWarps, Config::kSharedBytes, call.setting.reversed},
        [&] { pixel_to_patch_fwd_body<Config>(params); });
  });
  Outputs outputs = {{"out", bytes_at(params.out, out_bytes)}};
  if (save) outputs["projection"] = bytes_at(params.projection, projection_bytes);
  return outputs;
}

Outputs normalise_rows(const PatchCall& call) {
  Buffers buffers(call.setting);
  const PatchNormalise params = {buffers.input(call.pixels),
                                 buffers.output(call.pixels.bytes),
                                 view(buffers, call.norm1_weight),
                                 view(buffers, call.norm1_bias),
                                 call.num_patches,
                                 call.norm1_width,
                                 call.eps};
  run_width("patch_normalise", call.width, [&](auto constant) {
    run(launch(call, 0), [&] { patch_normalise_body<TNT_DTYPE, constant>(params); });
  });
  return {{"rows", bytes_at(params.rows, call.pixels.bytes)}};
}

Outputs norm2_backward(const PatchCall& call) {
  Buffers buffers(call.setting);
  const size_t bytes = call.num_patches * size_t(call.width) * kElementBytes;
  const size_t plane = size_t(call.setting.blocks) * call.width;
  const PatchNorm2Backward params = {
      buffers.input(call.dy),
      buffers.input(call.projection),
      view(buffers, call.norm2_weight),
      buffers.output(bytes),
      call.need_dw ? static_cast<float*>(buffers.output(3 * plane * 4)) : nullptr,
      call.num_patches,
      call.patches_per_image,
      static_cast<DType>(call.tokens_type),
      call.norm2_weight.span.data != nullptr,
      call.eps};
  run_width("patch_norm2_bwd", call.width, [&](auto constant) {
    run(launch(call, 4 * constant), [&] { patch_norm2_bwd_body<TNT_DTYPE, constant>(params); });
  });
  Outputs outputs = {{"dz", bytes_at(params.dz, bytes)}};
  if (!call.need_dw) return outputs;
  outputs["proj_bias"] = summed(call, params.partials, call.width);
  if (!params.has_norm2) return outputs;
  outputs["norm2_weight"] = summed(call, params.partials + plane, call.width);
  outputs["norm2_bias"] = summed(call, params.partials + 2 * plane, call.width);
  return outputs;
}

Outputs norm1_backward(const PatchCall& call) {
  Buffers buffers(call.setting);
  const size_t plane = size_t(call.setting.blocks) * call.width;
  const PatchNorm1Backward params = {
      buffers.input(call.drows),
      buffers.input(call.pixels),
      view(buffers, call.norm1_weight),
      call.need_dpixels ? buffers.output(call.pixels.bytes) : nullptr,
      call.need_dw ? static_cast<float*>(buffers.output(2 * plane * 4)) : nullptr,
      call.num_patches,
      call.norm1_width,
      call.eps};
  run_width("patch_norm1_bwd", call.width, [&](auto constant) {
    run(launch(call, 4 * constant), [&] { patch_norm1_bwd_body<TNT_DTYPE, constant>(params); });
  });
  Outputs outputs;
  if (call.need_dpixels) outputs["pixels"] = bytes_at(params.dpixels, call.pixels.bytes);
  if (!call.need_dw) return outputs;
  outputs["norm1_weight"] = summed(call, params.partials, call.norm1_width);
  outputs["norm1_bias"] = summed(call, params.partials + plane, call.norm1_width);
  return outputs;
}

}  // namespace

PatchKernels patch_kernels() { return {forward, normalise_rows, norm2_backward, norm1_backward}; }

}  // namespace emulation::TNT_NAMESPACE
