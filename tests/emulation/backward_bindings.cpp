// The emulated backward of the inner block as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "backward_kernels.h"

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

py::tuple backward(const std::string& dtype, const py::dict& args) {
  BackwardCall call = {};
  std::tie(call.num_patches, call.tokens, call.dim, call.heads) =
      args["sizes"].cast<std::tuple<int64_t, int, int, int>>();
  call.is_mlp = args["is_mlp"].cast<bool>();
  call.need_dx = args["need_dx"].cast<bool>();
  call.need_dw = args["need_dw"].cast<bool>();
  call.eps = args["eps"].cast<float>();
  for (const auto& w : args["weights"].cast<std::vector<py::object>>()) {
    call.weights.push_back(to_weight(w));
  }
  call.x = to_span(args["x"]);
  call.dy = to_span(args["dy"]);
  call.drop_path = to_span(args["drop_path"]);
  call.setting.blocks = args["blocks"].cast<int>();
  call.setting.reversed = args["reversed_order"].cast<bool>();
  call.setting.guard_end = args["guard_end"].cast<bool>();
  const auto run = dtype == "bfloat16"  ? bf16::run_backward
                   : dtype == "float16" ? fp16::run_backward
                                        : fp32::run_backward;
  const Gradients result = run(call);
  return py::make_tuple(py::bytes(result.first), py::bytes(result.second));
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, m) {
  py::register_local_exception<Fault>(m, "Fault", PyExc_RuntimeError);
  m.def("backward", &backward);
  m.def("names", [] {
    return py::dict(py::arg("bfloat16") = bf16::names(), py::arg("float16") = fp16::names(),
                    py::arg("float32") = fp32::names());
  });
}
