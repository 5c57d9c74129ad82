// The emulator as a Python module.
#include "inner_block.h"
#include "python_arguments.h"
#include "self_test.h"

namespace py = pybind11;

namespace {

using namespace emulation;

py::tuple inner_block(const std::string& dtype, const py::dict& args) {
  InnerCall call = {};
  std::tie(call.num_patches, call.tokens, call.dim, call.heads) =
      args["sizes"].cast<std::tuple<int64_t, int, int, int>>();
  std::tie(call.has_attention, call.has_mlp) = args["halves"].cast<std::pair<bool, bool>>();
  call.weights = to_weights(args["weights"].cast<std::vector<py::object>>());
  call.x = to_span(args["x"]);
  call.drop_path_attn = to_span(args["drop_path_attn"]);
  call.drop_path_mlp = to_span(args["drop_path_mlp"]);
  call.eps = args["eps"].cast<float>();
  call.save_mid = args["save_mid"].cast<bool>();
  call.setting = to_setting(args["setting"]);
  const auto run = dtype == "bfloat16"  ? bf16::run_inner_block
                   : dtype == "float16" ? fp16::run_inner_block
                   : dtype == "tf32"    ? tf32::run_inner_block
                                        : fp32::run_inner_block;
  const InnerResult result = run(call);
  return py::make_tuple(py::bytes(result.out), py::bytes(result.mid), result.left_range);
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, m) {
  py::register_local_exception<Fault>(m, "Fault", PyExc_RuntimeError);
  m.def("inner_block", &inner_block);
  m.def("misuses", [] {
    std::vector<std::string> names;
    for (const auto& [name, body] : misuses()) names.push_back(name);
    return names;
  });
  m.def("run_misuse",
        [](const std::string& name) { emulation::run({1, 2, 64, false}, misuses().at(name)); });
  m.def("neighbours", &neighbours);
  m.def("shared_memory_works",
        [](int warps, bool reversed) { return shared_memory_works({3, warps, 64, reversed}); });
  m.def("names", [] {
    return py::dict(py::arg("bfloat16") = bf16::names(), py::arg("float16") = fp16::names(),
                    py::arg("float32") = fp32::names(), py::arg("tf32") = tf32::names());
  });
}
