// The emulator as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "inner_block.h"
#include "self_test.h"

namespace py = pybind11;

namespace {

using emulation::InnerCall;
using emulation::Weight;

// (address, bytes, strides, type) or None
Weight to_weight(const py::object& given) {
  Weight weight;
  if (given.is_none()) return weight;
  const auto fields = given.cast<py::tuple>();
  weight.data = reinterpret_cast<const void*>(fields[0].cast<uintptr_t>());
  weight.bytes = fields[1].cast<size_t>();
  weight.stride[0] = fields[2].cast<int64_t>();
  weight.stride[1] = fields[3].cast<int64_t>();
  weight.type = fields[4].cast<int>();
  return weight;
}

py::tuple inner_block(const std::string& dtype, std::tuple<int, int, int> sizes, py::bytes x,
                      const std::vector<py::object>& weights, std::pair<bool, bool> halves,
                      std::pair<std::vector<float>, std::vector<float>> drop_path, float eps,
                      bool save_mid, int blocks, bool reversed, bool guard_end) {
  InnerCall call;
  std::tie(call.tokens, call.dim, call.heads) = sizes;
  std::tie(call.has_attention, call.has_mlp) = halves;
  std::tie(call.drop_path_attn, call.drop_path_mlp) = std::move(drop_path);
  const std::string_view bytes = x;
  call.x.assign(bytes.begin(), bytes.end());
  call.num_patches =
      bytes.size() / (dtype == "float32" || dtype == "tf32" ? 4 : 2) / call.tokens / call.dim;
  for (const py::object& weight : weights) call.weights.push_back(to_weight(weight));
  call.eps = eps;
  call.save_mid = save_mid;
  call.blocks = blocks;
  call.reversed = reversed;
  call.guard_end = guard_end;
  const auto run = dtype == "bfloat16"  ? emulation::bf16::run_inner_block
                   : dtype == "float16" ? emulation::fp16::run_inner_block
                   : dtype == "tf32"    ? emulation::tf32::run_inner_block
                                        : emulation::fp32::run_inner_block;
  const emulation::InnerResult result = run(call);
  return py::make_tuple(py::bytes(result.out.data(), result.out.size()),
                        py::bytes(result.mid.data(), result.mid.size()), result.left_range);
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, m) {
  py::register_local_exception<emulation::Fault>(m, "Fault", PyExc_RuntimeError);
  m.def("inner_block", &inner_block, py::arg("dtype"), py::arg("sizes"), py::arg("x"),
        py::arg("weights"), py::arg("halves"), py::arg("drop_path"), py::arg("eps"),
        py::arg("save_mid"), py::arg("blocks"), py::arg("reversed"), py::arg("guard_end"));
  m.def("misuses", [] {
    std::vector<std::string> names;
    for (const auto& [name, body] : emulation::misuses()) names.push_back(name);
    return names;
  });
  m.def("run_misuse", [](const std::string& name) {
    emulation::run({1, 2, 64, false}, emulation::misuses().at(name));
  });
  m.def("shared_memory_works", [](int warps, bool reversed) {
    return emulation::shared_memory_works({3, warps, 64, reversed});
  });
  m.def("names", [] {
    return py::dict(py::arg("bfloat16") = emulation::bf16::names(),
                    py::arg("float16") = emulation::fp16::names(),
                    py::arg("float32") = emulation::fp32::names(),
                    py::arg("tf32") = emulation::tf32::names());
  });
}
