// Python module that calls the functions of cpu/simd.h directly: module.<isa>.<function>(array),
// for every instruction set that was compiled and that this machine has.
#include "simd_math.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

namespace py = pybind11;
namespace cpu = tnt_kernels::cpu;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

static Array empty_like(const Array& x) {
  if (x.ndim() != 1 || x.size() % 16 != 0) {
    throw std::invalid_argument("the array must have one axis, a multiple of 16 long");
  }
  return Array(x.size());
}

static void bind(py::module_& parent, const char* isa, cpu::SimdMath math) {
  py::module_ m = parent.def_submodule(isa);
  const auto def = [&](const char* name, auto function) {
    m.def(name, [function](const Array& x) {
      Array y = empty_like(x);
      function(x.data(), y.mutable_data(), x.size());
      return y;
    });
  };
  def("exp2_nonpositive", math.exp2_nonpositive);
  def("gelu", math.gelu);
  m.def("gelu_and_slope", [math](const Array& x) {
    Array y = empty_like(x), slope = empty_like(x);
    math.gelu_and_slope(x.data(), y.mutable_data(), slope.mutable_data(), x.size());
    return py::make_tuple(y, slope);
  });
}

PYBIND11_MODULE(simd_math, m) {
  bind(m, "generic", cpu::generic::simd_math());
#if defined(TNT_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    bind(m, "avx2", cpu::avx2::simd_math());
  }
#endif
#if defined(TNT_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    bind(m, "avx512", cpu::avx512::simd_math());
  }
#endif
}
