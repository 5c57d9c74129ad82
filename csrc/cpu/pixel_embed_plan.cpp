#include "cpu/pixel_embed_plan.h"

#include <algorithm>

namespace tnt_kernels::cpu {
namespace {

// Positions along one axis of a patch whose windows meet it in the same taps [first, last).
struct AxisClass {
  int64_t first, last;
  std::vector<int64_t> positions;
};

std::vector<AxisClass> axis_classes(int64_t positions, int64_t patch_size,
                                    const PixelEmbedShape& shape) {
  std::vector<AxisClass> classes;
  for (int64_t i = 0; i < positions; ++i) {
    int64_t first = 0, last = shape.kernel;
    if (shape.unfold_first) {
      const int64_t start = i * shape.stride - shape.padding;
      first = std::max<int64_t>(0, -start);
      last = std::min<int64_t>(shape.kernel, patch_size - start);
    }
    auto same = [&](const AxisClass& c) { return c.first == first && c.last == last; };
    auto found = std::find_if(classes.begin(), classes.end(), same);
    if (found == classes.end()) found = classes.insert(found, {first, last, {}});
    found->positions.push_back(i);
  }
  return classes;
}

}  // namespace

std::vector<int64_t> pixel_embed_blocks(const PixelEmbedKernels& kernels, int64_t dim) {
  const int64_t vectors = (2 * dim + kernels.lanes - 1) / kernels.lanes;
  if (kernels.wide && vectors == 5) return {5};  // C = 40 in one sweep
  const int64_t most = kernels.wide ? 3 : 2;
  const int64_t count = (vectors + most - 1) / most;
  std::vector<int64_t> blocks(count, vectors / count);
  for (int64_t i = 0; i < vectors % count; ++i) ++blocks[i];
  return blocks;
}

void pixel_embed_complete(PixelEmbedShape& s, DType dtype) {
  constexpr int64_t kTileFloats = 10 * 1024;  // of a group: most of a first-level cache
  s.padding = s.kernel / 2;
  s.grid_h = s.height / s.patch_h;
  s.grid_w = s.width / s.patch_w;
  s.rows = s.patch_h / s.stride;
  s.cols = s.patch_w / s.stride;
  s.tile_h = (s.rows - 1) * s.stride + s.kernel;
  // one more column, for the pair that begins at the last one
  s.tile_stride = (s.cols - 1) * s.stride + s.kernel + 1;
  s.tile_size = s.in_chans * s.tile_h * s.tile_stride;
  const int64_t plane = s.height * s.width;
  s.in_place = s.unfold_first && dtype == DType::kFloat32 && s.in_chans * plane < INT32_MAX;
  s.row_stride = s.in_place ? s.width : s.tile_stride;
  s.channel_stride = s.in_place ? plane : s.tile_h * s.tile_stride;
  s.group = std::clamp<int64_t>(kTileFloats / s.tile_size, 1, kMaxPixelGroup);
}

PixelEmbedClasses::PixelEmbedClasses(const PixelEmbedShape& shape) : shape_(shape) {
  const auto vertical = axis_classes(shape.rows, shape.patch_h, shape);
  const auto horizontal = axis_classes(shape.cols, shape.patch_w, shape);
  for (const AxisClass& y : vertical) {
    for (const AxisClass& x : horizontal) {
      Class c{y.first, y.last, x.first, x.last, {}, {}, {}};
      for (int64_t channel = 0; channel < shape.in_chans; ++channel) {
        for (int64_t ky = y.first; ky < y.last; ++ky) {
          c.row_offsets.push_back(channel * shape.channel_stride +
                                  (ky - shape.padding) * shape.row_stride + x.first -
                                  shape.padding);
        }
      }
      for (int64_t row : y.positions) {
        for (int64_t col : x.positions) {
          c.token_offsets.push_back((row * shape.row_stride + col) * shape.stride);
          c.tokens.push_back(row * shape.cols + col);
        }
      }
      classes_.push_back(std::move(c));
    }
  }
}

std::vector<PixelEmbedClasses::TapPair> PixelEmbedClasses::tap_pairs(const Class& c) const {
  const int64_t k = shape_.kernel, last = c.kx_end - 1;
  std::vector<int64_t> rows;  // first tap of each window row
  for (int64_t channel = 0; channel < shape_.in_chans; ++channel) {
    for (int64_t ky = c.ky; ky < c.ky_end; ++ky) rows.push_back((channel * k + ky) * k);
  }
  std::vector<TapPair> pairs;
  for (size_t row = 0; row < rows.size(); row += 2) {
    const bool has_lower = row + 1 < rows.size();
    for (size_t r = row; r < row + 1 + has_lower; ++r) {
      for (int64_t i = 0; i < c.pairs(); ++i) {
        const int64_t tap = rows[r] + c.kx + 2 * i;
        pairs.push_back({tap, tap + 1});
      }
    }
    if (c.odd()) pairs.push_back({rows[row] + last, has_lower ? rows[row + 1] + last : -1});
  }
  return pairs;
}

int64_t PixelEmbedClasses::weight_floats(int64_t lanes) const {
  int64_t steps = 0;
  for (const Class& c : classes_) steps += c.steps();
  return steps * lanes;
}

std::vector<PixelEmbedClass> PixelEmbedClasses::pack(const float* weight,
                                                     const std::vector<int64_t>& blocks,
                                                     int64_t vector_lanes, float* packed) const {
  const int64_t taps = shape_.taps();
  std::vector<PixelEmbedClass> result;
  for (const Class& c : classes_) {
    result.push_back({c.row_offsets.data(), c.token_offsets.data(), c.tokens.data(),
                      static_cast<int64_t>(c.row_offsets.size()), c.pairs(),
                      static_cast<int64_t>(c.tokens.size()), c.odd(), packed});
    const std::vector<TapPair> pairs = tap_pairs(c);
    int64_t first_channel = 0;
    for (int64_t block : blocks) {
      const int64_t channels = block * vector_lanes / 2;
      const int64_t used = std::min(channels, shape_.dim - first_channel);
      for (const TapPair& pair : pairs) {
        for (int64_t i = 0; i < channels; ++i) {
          const float* row = weight + (first_channel + i) * taps;
          *packed++ = i < used ? row[pair.even] : 0.0f;
          *packed++ = i < used && pair.odd >= 0 ? row[pair.odd] : 0.0f;
        }
      }
      first_channel += channels;
    }
  }
  return result;
}

}  // namespace tnt_kernels::cpu
