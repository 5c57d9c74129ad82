// pixel_embed and its backward: checks, layout of work, registration. The kernels are in
// kernels/pixel_embed_{fwd,bwd}.h.

#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/pixel_embed_plan.h"
#include "cpu/pixel_tensors.h"

namespace tnt_kernels::cpu {
namespace {

PixelEmbedShape checked_shape(const char* op, const Tensor& images, const Tensor& weight,
                              int64_t patch_h, int64_t patch_w, int64_t stride, bool unfold_first) {
  STD_TORCH_CHECK(images.dim() == 4 && weight.dim() == 4, op,
                  ": images must be (B, Cin, H, W) and weight (C, Cin, k, k)");
  STD_TORCH_CHECK(has_dtype(images) && has_dtype(weight), op,
                  ": images and weight must be float32, bfloat16 or float16");
  PixelEmbedShape s = {};
  s.batch = images.size(0);
  s.in_chans = images.size(1);
  s.height = images.size(2);
  s.width = images.size(3);
  s.dim = weight.size(0);
  s.kernel = weight.size(2);
  s.patch_h = patch_h;
  s.patch_w = patch_w;
  s.stride = stride;
  s.unfold_first = unfold_first;
  STD_TORCH_CHECK(weight.size(1) == s.in_chans && weight.size(3) == s.kernel && s.kernel % 2 == 1,
                  op, ": weight must be (C, Cin, k, k) with odd k and the channels of images");
  STD_TORCH_CHECK(s.in_chans > 0 && s.height > 0 && s.width > 0 && s.dim > 0 && stride > 0 &&
                      patch_h > 0 && patch_w > 0,
                  op, ": all sizes but the batch must be positive");
  STD_TORCH_CHECK(patch_h % stride == 0 && patch_w % stride == 0, op,
                  ": stride must divide the patch size");
  STD_TORCH_CHECK(s.height % patch_h == 0 && s.width % patch_w == 0, op,
                  ": height and width of images must be multiples of the patch size");
  pixel_embed_complete(s, dtype_of(images));
  STD_TORCH_CHECK(s.tile_size < (int64_t{1} << 31), op, ": the patch is too large");
  return s;
}

// (S, stride) floats: bias + pixel position of each token, zero beyond C.
void add_offsets(const PixelEmbedShape& s, const OptionalTensor& bias,
                 const OptionalTensor& pixel_pos, int64_t stride, float* offsets) {
  std::fill_n(offsets, s.tokens() * stride, 0.0f);
  if (bias.has_value()) {
    const Tensor values = cast_to_float(*bias);
    const float* from = float_data(values);
    for (int64_t token = 0; token < s.tokens(); ++token) {
      std::copy_n(from, s.dim, offsets + token * stride);
    }
  }
  if (pixel_pos.has_value()) {
    const Tensor values = cast_to_float(*pixel_pos);
    const float* from = float_data(values);
    for (int64_t c = 0; c < s.dim; ++c) {
      for (int64_t token = 0; token < s.tokens(); ++token) offsets[token * stride + c] += *from++;
    }
  }
}

// What the 256 values of a pixel become, by channel, in one of the kernels' types: T has its bits.
template <class T>
void look_up(const Tensor& pixels, const Tensor& table, const Tensor& out) {
  const int64_t planes = pixels.size(0) * pixels.size(1), channels = pixels.size(1);
  const int64_t plane = pixels.size(2) * pixels.size(3);
  const uint8_t* from = static_cast<const uint8_t*>(pixels.const_data_ptr());
  const T* values = static_cast<const T*>(table.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  for_chunks(planes, 1, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T* value = values + i % channels * 256;
      for (int64_t at = i * plane; at < (i + 1) * plane; ++at) to[at] = value[from[at]];
    }
  });
}

// Floating images as they are; uint8 ones normalised, in the type of the weight.
Tensor floating_images(const char* op, const Tensor& images, const Tensor& weight,
                       const OptionalTensor& mean, const OptionalTensor& deviation) {
  STD_TORCH_CHECK(images.dim() == 4, op, ": images must be (B, Cin, H, W)");
  check_normalisation(op, images, "mean", mean);
  check_normalisation(op, images, "std", deviation);
  if (!mean.has_value()) return images;
  check_dtype(op, "weight", weight);
  const int64_t channels = images.size(1);
  const Tensor means = torch::stable::contiguous(*mean),
               stds = torch::stable::contiguous(*deviation);
  const Tensor table = new_tensor(images, {channels, 256}, ScalarType::Float);
  for (int64_t i = 0; i < channels * 256; ++i) {
    const float scaled = static_cast<float>(i % 256) / 255.0f;
    mutable_float_data(table)[i] =
        (scaled - float_data(means)[i / 256]) / float_data(stds)[i / 256];
  }
  const ScalarType type = weight.scalar_type();
  const Tensor out =
      new_tensor(images, {images.size(0), channels, images.size(2), images.size(3)}, type);
  const Tensor pixels = torch::stable::contiguous(images), rounded = cast(table, type);
  if (type == ScalarType::Float) {
    look_up<uint32_t>(pixels, rounded, out);
  } else {
    look_up<uint16_t>(pixels, rounded, out);
  }
  return out;
}

Tensor pixel_embed(const Tensor& given, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& pixel_pos, const OptionalTensor& mean,
                   const OptionalTensor& deviation, int64_t patch_h, int64_t patch_w,
                   int64_t stride, bool unfold_first) {
  const char* op = "pixel_embed";
  const Tensor images = floating_images(op, given, weight, mean, deviation);
  const PixelEmbedShape shape =
      checked_shape(op, images, weight, patch_h, patch_w, stride, unfold_first);
  STD_TORCH_CHECK(!bias.has_value() || (has_dtype(*bias) && bias->numel() == shape.dim), op,
                  ": bias must be (C,)");
  STD_TORCH_CHECK(!pixel_pos.has_value() ||
                      (has_dtype(*pixel_pos) && pixel_pos->numel() == shape.dim * shape.tokens()),
                  op, ": pixel_pos must be (1, C, h, w)");
  const int64_t patches = shape.patches();
  Tensor out = new_tensor(images, {patches, shape.tokens(), shape.dim}, images.scalar_type());
  if (patches == 0) return out;

  const PixelEmbedKernels& table = kernels().pixel_embed;
  const std::vector<int64_t> blocks = pixel_embed_blocks(table, shape.dim);
  const int64_t lanes = (2 * shape.dim + table.lanes - 1) / table.lanes * table.lanes;
  const PixelEmbedClasses plan(shape);
  const int64_t packed_floats = plan.weight_floats(lanes);
  const int64_t offsets_stride = lanes / 2 + table.lanes;
  const int64_t offsets_floats = padded_floats(shape.tokens() * offsets_stride);
  const int64_t scratch_floats = padded_floats(shape.group * shape.tile_size);
  const int64_t chunks = num_chunks(patches, shape.group);
  const Tensor workspace = new_tensor(
      images, {packed_floats + offsets_floats + chunks * scratch_floats}, ScalarType::Float);
  float* packed = mutable_float_data(workspace);
  float* offsets = packed + packed_floats;
  float* scratch = offsets + offsets_floats;

  const Tensor source = torch::stable::contiguous(images);
  const Tensor weights = cast_to_float(weight);
  const auto classes = plan.pack(float_data(weights), blocks, table.lanes, packed);
  add_offsets(shape, bias, pixel_pos, offsets_stride, offsets);
  const PixelEmbedForward call = {shape,
                                  source.const_data_ptr(),
                                  out.mutable_data_ptr(),
                                  classes.data(),
                                  static_cast<int64_t>(classes.size()),
                                  blocks.data(),
                                  static_cast<int64_t>(blocks.size()),
                                  offsets,
                                  offsets_stride};
  const auto kernel = table.fwd[static_cast<int>(dtype_of(images))];
  for_chunks(patches, shape.group, [&](int64_t chunk, int64_t first, int64_t last) {
    kernel(call, first, last, scratch + chunk * scratch_floats);
  });
  return out;
}

// dweight, dbias and dpixel_pos, flat: partial sums of each thread, added in a fixed order.
Tensor weight_gradients(PixelEmbedShape shape, const Tensor& dy, const Tensor& images) {
  const PixelEmbedKernels& table = kernels().pixel_embed;
  const int64_t taps = shape.taps(), k = shape.kernel, tokens = shape.tokens();
  // A group is summed in one go: keep that short, for the sake of its rounding error.
  constexpr int64_t kTokensInOneSum = 128;
  shape.group = std::clamp<int64_t>(kTokensInOneSum / tokens, 1, shape.group);
  Tensor flat = new_tensor(images, {shape.dim * (taps + 1 + tokens)}, ScalarType::Float);
  const std::vector<int64_t> blocks = pixel_embed_blocks(table, shape.dim);
  const int64_t lanes = (2 * shape.dim + table.lanes - 1) / table.lanes * table.lanes;
  std::vector<int32_t> pair_offsets, pair_ky;
  for (int64_t channel = 0; channel < shape.in_chans; ++channel) {
    for (int64_t ky = 0; ky < k; ++ky) {
      for (int64_t kx = 0; kx < k; kx += 2) {
        pair_offsets.push_back((channel * shape.tile_h + ky) * shape.tile_stride + kx);
        pair_ky.push_back(ky);
      }
    }
  }
  const int64_t pairs = static_cast<int64_t>(pair_offsets.size());
  const PixelEmbedWeightGrad call = {shape,
                                     images.const_data_ptr(),
                                     dy.const_data_ptr(),
                                     pair_offsets.data(),
                                     pair_ky.data(),
                                     pairs,
                                     blocks.data(),
                                     static_cast<int64_t>(blocks.size()),
                                     lanes};
  const int64_t patches = shape.patches();
  const int64_t chunks = num_chunks(patches, shape.group);
  const int64_t dw_floats = pairs * lanes, dpos_floats = tokens * lanes / 2;
  const int64_t chunk_floats = padded_floats(dw_floats + dpos_floats + call.scratch_floats());
  const Tensor workspace = new_tensor(images, {chunks * chunk_floats}, ScalarType::Float);
  float* partials = mutable_float_data(workspace);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    std::fill_n(partials + chunk * chunk_floats, dw_floats + dpos_floats, 0.0f);
  }
  const auto kernel = table.dw[static_cast<int>(dtype_of(images))];
  for_chunks(patches, shape.group, [&](int64_t chunk, int64_t first, int64_t last) {
    float* dw = partials + chunk * chunk_floats;
    float* dpos = dw + dw_floats;
    kernel(call, first, last, dw, dpos, dpos + dpos_floats);
  });
  auto total = [&](int64_t at) {
    double value = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) value += partials[chunk * chunk_floats + at];
    return value;
  };
  float* dweight = mutable_float_data(flat);
  float* dbias = dweight + shape.dim * taps;
  float* dpixel_pos = dbias + shape.dim;
  const int64_t row_pairs = (k + 1) / 2;
  for (int64_t c = 0; c < shape.dim; ++c) {
    for (int64_t row = 0; row < shape.in_chans * k; ++row) {
      for (int64_t kx = 0; kx < k; ++kx) {
        *dweight++ = static_cast<float>(total((row * row_pairs + kx / 2) * lanes + 2 * c + kx % 2));
      }
    }
    double sum = 0;
    for (int64_t token = 0; token < tokens; ++token) {
      const double value = total(dw_floats + token * (lanes / 2) + c);
      *dpixel_pos++ = static_cast<float>(value);
      sum += value;
    }
    dbias[c] = static_cast<float>(sum);
  }
  return flat;
}

Tensor image_gradient(const PixelEmbedShape& shape, const Tensor& dy, const Tensor& images,
                      const Tensor& weight) {
  Tensor dimages = new_tensor(images, {shape.batch, shape.in_chans, shape.height, shape.width},
                              images.scalar_type());
  const int64_t patches = shape.patches(), taps = shape.taps();
  if (patches == 0) return dimages;
  const PixelEmbedKernels& table = kernels().pixel_embed;
  const int64_t taps_stride = (taps + 2 * table.lanes - 1) / (2 * table.lanes) * (2 * table.lanes);
  PixelEmbedImageGrad call = {shape, dy.const_data_ptr(), dimages.mutable_data_ptr(), nullptr,
                              taps_stride};
  const int64_t chunk_floats = padded_floats(call.scratch_floats());
  const int64_t packed_floats = shape.dim * taps_stride;
  const Tensor workspace = new_tensor(
      images, {packed_floats + num_chunks(patches, 1) * chunk_floats}, ScalarType::Float);
  float* packed = mutable_float_data(workspace);
  float* scratch = packed + packed_floats;
  std::fill_n(packed, packed_floats, 0.0f);
  const Tensor weights = cast_to_float(weight);
  for (int64_t c = 0; c < shape.dim; ++c) {
    std::copy_n(float_data(weights) + c * taps, taps, packed + c * taps_stride);
  }
  call.weights = packed;
  const auto kernel = table.dx[static_cast<int>(dtype_of(images))];
  for_chunks(patches, 1, [&](int64_t chunk, int64_t first, int64_t last) {
    kernel(call, first, last, scratch + chunk * chunk_floats);
  });
  return dimages;
}

std::tuple<Tensor, Tensor> pixel_embed_backward(const Tensor& dy, const Tensor& given,
                                                const Tensor& weight, const OptionalTensor& mean,
                                                const OptionalTensor& deviation, int64_t patch_h,
                                                int64_t patch_w, int64_t stride, bool unfold_first,
                                                bool need_dimages, bool need_dw) {
  const char* op = "pixel_embed_backward";
  STD_TORCH_CHECK(!need_dimages || !mean.has_value(), op,
                  ": uint8 images have no gradient; pass need_dimages=False");
  const Tensor images = floating_images(op, given, weight, mean, deviation);
  const PixelEmbedShape shape =
      checked_shape(op, images, weight, patch_h, patch_w, stride, unfold_first);
  STD_TORCH_CHECK(dy.dim() == 3 && dy.size(0) == shape.patches() && dy.size(1) == shape.tokens() &&
                      dy.size(2) == shape.dim && has_dtype(dy),
                  op, ": dy must be (P, S, C), as the output");
  const Tensor grad = cast(dy, images.scalar_type());
  Tensor dimages = no_tensor(given);
  if (need_dimages) dimages = image_gradient(shape, grad, images, weight);
  Tensor dw = new_tensor(images, {0}, ScalarType::Float);
  if (need_dw) dw = weight_gradients(shape, grad, torch::stable::contiguous(images));
  return {dimages, dw};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tnt_kernels, CPU, m) {
  m.impl("pixel_embed", TORCH_BOX(&pixel_embed));
  m.impl("pixel_embed_backward", TORCH_BOX(&pixel_embed_backward));
}

}  // namespace tnt_kernels::cpu
