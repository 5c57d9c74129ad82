// The emulated pixel ops as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pixel_kernels.h"

namespace py = pybind11;
using namespace emulation;

namespace {

// (address, bytes) or None
Span to_span(const py::object& given) {
  if (given.is_none()) return {};
  const auto fields = given.cast<std::pair<uintptr_t, size_t>>();
  return {reinterpret_cast<const void*>(fields.first), fields.second};
}

// (address, bytes, strides, type) or None
Weight to_weight(const py::object& given) {
  if (given.is_none()) return {};
  const auto fields = given.cast<py::tuple>();
  return {{reinterpret_cast<const void*>(fields[0].cast<uintptr_t>()), fields[1].cast<size_t>()},
          {fields[2].cast<int64_t>(), fields[3].cast<int64_t>()},
          fields[4].cast<int>()};
}

Setting to_setting(const py::dict& given) {
  Setting setting;
  for (const auto& [key, value] : given) {
    const std::string name = key.cast<std::string>();
    if (name == "blocks") setting.blocks = value.cast<int>();
    if (name == "warps") setting.warps = value.cast<int>();
    if (name == "reversed") setting.reversed = value.cast<bool>();
    if (name == "guard_end") setting.guard_end = value.cast<bool>();
  }
  return setting;
}

PixelEmbedKernels embed_kernels(const std::string& dtype) {
  return dtype == "bfloat16"  ? bf16::pixel_embed_kernels()
         : dtype == "float16" ? fp16::pixel_embed_kernels()
                              : fp32::pixel_embed_kernels();
}

PixelEmbedCall embed_call(const py::dict& args) {
  PixelEmbedCall call = {};
  const auto integer = [&](const char* name) { return args[name].cast<int>(); };
  auto& plan = call.plan;
  plan.in_chans = integer("in_chans");
  plan.height = integer("height");
  plan.width = integer("width");
  plan.dim = integer("dim");
  plan.kernel = integer("kernel");
  plan.patch_h = integer("patch_h");
  plan.patch_w = integer("patch_w");
  plan.stride = integer("stride");
  plan.unfold_first = args["unfold_first"].cast<bool>();
  plan.num_patches = integer("num_patches");
  call.images = to_span(args["images"]);
  call.dy = to_span(args["dy"]);
  call.weight = to_weight(args["weight"]);
  call.bias = to_weight(args["bias"]);
  call.pixel_pos = to_weight(args["pixel_pos"]);
  call.setting = to_setting(args["setting"]);
  return call;
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, m) {
  py::register_local_exception<Fault>(m, "Fault", PyExc_RuntimeError);
  m.def("pixel_embed", [](const std::string& dtype, const py::dict& args) {
    return py::bytes(embed_kernels(dtype).forward(embed_call(args)));
  });
  m.def("pixel_embed_weight_grad", [](const std::string& dtype, const py::dict& args) {
    return py::bytes(embed_kernels(dtype).weight_grad(embed_call(args)));
  });
  m.def("pixel_embed_image_grad", [](const std::string& dtype, const py::dict& args) {
    return py::bytes(embed_kernels(dtype).image_grad(embed_call(args)));
  });
  m.def("pixel_embed_shared_bytes", [](const std::string& dtype, const py::dict& args) {
    return embed_kernels(dtype).shared_bytes(embed_call(args));
  });
  m.def("executed", [] { return executed(); });
}
