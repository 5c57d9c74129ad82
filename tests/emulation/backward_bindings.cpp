// The emulated backward of the inner block as a Python module.
#include "backward_kernels.h"
#include "python_arguments.h"

namespace py = pybind11;
using namespace emulation;

namespace {

py::tuple backward(const std::string& dtype, const py::dict& args) {
  BackwardCall call = {};
  std::tie(call.num_patches, call.tokens, call.dim, call.heads) =
      args["sizes"].cast<std::tuple<int64_t, int, int, int>>();
  call.is_mlp = args["is_mlp"].cast<bool>();
  call.need_dx = args["need_dx"].cast<bool>();
  call.need_dw = args["need_dw"].cast<bool>();
  call.eps = args["eps"].cast<float>();
  call.weights = to_weights(args["weights"].cast<std::vector<py::object>>());
  call.x = to_span(args["x"]);
  call.dy = to_span(args["dy"]);
  call.drop_path = to_span(args["drop_path"]);
  call.setting = to_setting(args["setting"]);
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
