// Emulator shells of pixel_embed's kernels, compiled once per element type: TNT_DTYPE is its name
// in csrc/cuda, TNT_NAMESPACE the namespace of these functions.
#include "cuda/pixel_embed/backward_body.cuh"
#include "cuda/pixel_embed/forward_body.cuh"
#include "cuda/pixel_embed/image_grad_body.cuh"
#include "cuda/pixel_embed/instances.cuh"
#include "cuda/pixel_embed/pack.cuh"
#include "cuda/tile/sum_partials.cuh"
#include "pixel_kernels.h"

namespace emulation::TNT_NAMESPACE {
namespace {

using namespace tnt_kernels::cuda;
constexpr int kElementBytes = 2 * TNT_DTYPE::kPairWords;

// Runs body(groups as a constant, whether images are uint8) and notes its name.
template <class Body>
void run_groups(const char* name, const PixelEmbedPlan& plan, const Launch& launch,
                const Body& body) {
  executed().insert(std::string(name) + "-" + TNT_STRING(TNT_NAMESPACE) + "-groups" +
                    std::to_string(plan.groups) + (plan.bytes ? "-uint8" : ""));
  const auto with = [&](auto groups) {
    if (plan.bytes) {
      run(launch, [&] { body(groups, std::true_type{}); });
    } else {
      run(launch, [&] { body(groups, std::false_type{}); });
    }
  };
  if (plan.groups == 5) {
    with(std::integral_constant<int, 5>{});
  } else {
    with(std::integral_constant<int, 3>{});
  }
}

const uint32_t* pack(const PixelEmbedCall& call, const PixelEmbedPlan& plan, Buffers& buffers) {
  const WeightView weight = view(buffers, call.weight), bias = view(buffers, call.bias);
  const WeightView pixel_pos = view(buffers, call.pixel_pos);
  uint32_t* packed = static_cast<uint32_t*>(buffers.output(4 * size_t(plan.packed_words)));
  const float* mean = static_cast<const float*>(buffers.input(call.mean));
  const float* std = static_cast<const float*>(buffers.input(call.std));
  const PixelEmbedPack params = {plan, weight, bias, pixel_pos, mean, std, packed};
  run_groups("pixel_embed_pack", plan, {call.setting.blocks, 2, 0, call.setting.reversed},
             [&](auto groups, auto) { pixel_embed_pack_body<TNT_DTYPE, groups>(params); });
  buffers.finished();
  return packed;
}

std::string forward(const PixelEmbedCall& call) {
  PixelEmbedPlan plan = call.plan;
  complete(plan, kElementBytes, kForwardTokens);
  Buffers buffers(call.setting);
  const uint32_t* packed = pack(call, plan, buffers);
  const size_t bytes = size_t(plan.num_patches) * plan.tokens * plan.dim * kElementBytes;
  const void* images = buffers.input(call.images);
  void* out = buffers.output(bytes);
  const PixelEmbedForward params = {plan, images, packed, out};
  const Setting& s = call.setting;
  const size_t shared = static_cast<size_t>(forward_shared_bytes(plan, s.warps));
  run_groups(
      "pixel_embed_fwd", plan, {s.blocks, s.warps, shared, s.reversed},
      [&](auto groups, auto bytes) { pixel_embed_fwd_body<TNT_DTYPE, groups, bytes>(params); });
  return bytes_at(out, bytes);
}

// setting.blocks is how many partial gradients there are.
std::string weight_grad(const PixelEmbedCall& call) {
  PixelEmbedPlan plan = call.plan;
  complete_backward(plan, kElementBytes);
  PixelEmbedPlan tables = plan;
  tables.passes = 0;
  tables.packed_words = tables.first_weight;
  Buffers buffers(call.setting);
  const uint32_t* packed = pack(call, tables, buffers);
  const void* images = buffers.input(call.images);
  const void* dy = buffers.input(call.dy);
  const int parts = call.setting.blocks;
  const size_t bytes = 4 * size_t(plan.flat());
  float* partials = static_cast<float*>(buffers.output(parts * bytes));
  const PixelEmbedBackward params = {plan, images, dy, packed, partials};
  const size_t shared = static_cast<size_t>(backward_shared_bytes(plan, kElementBytes));
  const bool reversed = call.setting.reversed;
  run_groups(
      "pixel_embed_bwd_dw", plan,
      {parts * plan.slices(), kTapWarps * kTokenWarps, shared, reversed},
      [&](auto groups, auto bytes) { pixel_embed_bwd_dw_body<TNT_DTYPE, groups, bytes>(params); });
  buffers.finished();
  float* flat = static_cast<float*>(buffers.output(bytes));
  const SumPartials sum = {partials, flat, plan.flat(), plan.flat(), parts};
  executed().insert("sum_partials");
  run({3, kSumWarps, 128 * kSumWarps, reversed}, [&] { sum_partials_body(sum); });
  return bytes_at(flat, bytes);
}

std::string image_grad(const PixelEmbedCall& call) {
  PixelEmbedPlan plan = call.plan;
  complete_backward(plan, kElementBytes);
  Buffers buffers(call.setting);
  const void* dy = buffers.input(call.dy);
  float* taps = static_cast<float*>(buffers.output(4 * size_t(plan.taps()) * plan.dim));
  const size_t bytes = call.images.bytes;
  const WeightView weight = view(buffers, call.weight);
  void* dimages = buffers.output(bytes);
  const PixelEmbedImageGrad params = {plan, dy, weight, taps, dimages};
  const Launch launch = {call.setting.blocks, call.setting.warps, 0, call.setting.reversed};
  executed().insert("pixel_embed_bwd_pack");
  run(launch, [&] { pixel_embed_bwd_pack_body(params); });
  executed().insert("pixel_embed_bwd_dimages-" TNT_STRING(TNT_NAMESPACE));
  run(launch, [&] { pixel_embed_bwd_dimages_body<TNT_DTYPE>(params); });
  return bytes_at(dimages, bytes);
}

std::pair<int64_t, int64_t> shared_bytes(const PixelEmbedCall& call) {
  PixelEmbedPlan forward = call.plan, backward = call.plan;
  complete(forward, kElementBytes, kForwardTokens);
  complete_backward(backward, kElementBytes);
  return {forward_shared_bytes(forward, 1), backward_shared_bytes(backward, kElementBytes)};
}

}  // namespace

PixelEmbedKernels pixel_embed_kernels() { return {forward, weight_grad, image_grad, shared_bytes}; }

}  // namespace emulation::TNT_NAMESPACE
