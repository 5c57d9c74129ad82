// The emulated pixel ops as a Python module.
#include "pixel_kernels.h"
#include "python_arguments.h"

namespace py = pybind11;
using namespace emulation;

namespace {

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
  plan.bytes = args["bytes"].cast<bool>();
  plan.num_patches = integer("num_patches");
  call.images = to_span(args["images"]);
  call.dy = to_span(args["dy"]);
  call.weight = to_weight(args["weight"]);
  call.bias = to_weight(args["bias"]);
  call.pixel_pos = to_weight(args["pixel_pos"]);
  call.mean = to_span(args["mean"]);
  call.std = to_span(args["std"]);
  call.setting = to_setting(args["setting"]);
  return call;
}

PatchKernels patch_kernels(const std::string& dtype) {
  return dtype == "bfloat16"  ? bf16::patch_kernels()
         : dtype == "float16" ? fp16::patch_kernels()
         : dtype == "tf32"    ? tf32::patch_kernels()
                              : fp32::patch_kernels();
}

PatchCall patch_call(const py::dict& args) {
  PatchCall call = {};
  call.num_patches = args["num_patches"].cast<int64_t>();
  call.width = args["width"].cast<int>();
  call.patches_per_image = args["patches_per_image"].cast<int>();
  call.norm1_width = args["norm1_width"].cast<int>();
  call.tokens_type = args["tokens_type"].cast<int>();
  call.eps = args["eps"].cast<float>();
  call.save_projection = args["save_projection"].cast<bool>();
  call.need_dpixels = args["need_dpixels"].cast<bool>();
  call.need_dw = args["need_dw"].cast<bool>();
  call.pixels = to_span(args["pixels"]);
  call.tokens = to_span(args["tokens"]);
  call.dy = to_span(args["dy"]);
  call.projection = to_span(args["projection"]);
  call.drows = to_span(args["drows"]);
  call.norm1_weight = to_weight(args["norm1_weight"]);
  call.norm1_bias = to_weight(args["norm1_bias"]);
  call.proj_weight = to_weight(args["proj_weight"]);
  call.proj_bias = to_weight(args["proj_bias"]);
  call.norm2_weight = to_weight(args["norm2_weight"]);
  call.norm2_bias = to_weight(args["norm2_bias"]);
  call.setting = to_setting(args["setting"]);
  return call;
}

py::dict to_dict(const Outputs& outputs) {
  py::dict y;
  for (const auto& [name, bytes] : outputs) y[name.c_str()] = py::bytes(bytes);
  return y;
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
  m.def("patch_forward", [](const std::string& dtype, const py::dict& args) {
    return to_dict(patch_kernels(dtype).forward(patch_call(args)));
  });
  m.def("patch_normalise", [](const std::string& dtype, const py::dict& args) {
    return to_dict(patch_kernels(dtype).normalise(patch_call(args)));
  });
  m.def("patch_norm2_backward", [](const std::string& dtype, const py::dict& args) {
    return to_dict(patch_kernels(dtype).norm2_backward(patch_call(args)));
  });
  m.def("patch_norm1_backward", [](const std::string& dtype, const py::dict& args) {
    return to_dict(patch_kernels(dtype).norm1_backward(patch_call(args)));
  });
  m.def("executed", [] { return executed(); });
}
