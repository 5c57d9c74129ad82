// What tests/emulation/memory.py passes, in C++.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "buffers.h"

namespace emulation {

// (address, bytes) or None
inline Span to_span(const pybind11::object& given) {
  if (given.is_none()) return {};
  const auto fields = given.cast<std::pair<uintptr_t, size_t>>();
  return {reinterpret_cast<const void*>(fields.first), fields.second};
}

// (address, bytes, strides, type) or None
inline Weight to_weight(const pybind11::object& given) {
  if (given.is_none()) return {};
  const auto fields = given.cast<pybind11::tuple>();
  return {{reinterpret_cast<const void*>(fields[0].cast<uintptr_t>()), fields[1].cast<size_t>()},
          {fields[2].cast<int64_t>(), fields[3].cast<int64_t>()},
          fields[4].cast<int>()};
}

inline std::vector<Weight> to_weights(const std::vector<pybind11::object>& given) {
  std::vector<Weight> weights;
  for (const auto& weight : given) weights.push_back(to_weight(weight));
  return weights;
}

inline Setting to_setting(const pybind11::dict& given) {
  Setting setting;
  for (const auto& [key, value] : given) {
    const std::string name = key.cast<std::string>();
    if (name == "blocks") {
      setting.blocks = value.cast<int>();
    } else if (name == "warps") {
      setting.warps = value.cast<int>();
    } else if (name == "reversed") {
      setting.reversed = value.cast<bool>();
    } else if (name == "guard_end") {
      setting.guard_end = value.cast<bool>();
    } else {
      throw std::invalid_argument("no setting is called " + name);
    }
  }
  return setting;
}

}  // namespace emulation
