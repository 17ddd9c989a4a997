// Module _C: libddu for Python, without being compiled against torch. The calls with tensors are in direct/.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "ddu/dtype.h"
#include "ddu/error.h"
#include "ddu/geometry.h"
#include "ddu/unfold.h"
#include "ddu/version.h"
#include "direct/direct.h"

namespace py = pybind11;

namespace {

using Pair = std::array<std::int64_t, 2>;
using Sizes = std::vector<std::int64_t>;

ddu::Types types_of(int input, int map) { return {static_cast<ddu::DType>(input), static_cast<ddu::DType>(map)}; }

void check_geometry(const Sizes& input, const Sizes& map, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
                    std::int64_t groups) {
  ddu::Options options;
  for (int axis : {0, 1}) {
    const auto i = static_cast<std::size_t>(axis);
    options.kernel_size[i] = kernel_size[i];
    options.stride[i] = stride[i];
    options.padding[i] = padding[i];
    options.dilation[i] = dilation[i];
  }
  options.groups = groups;
  ddu::make_geometry({input.data(), static_cast<int>(input.size())}, {map.data(), static_cast<int>(map.size())}, options);
}

}  // namespace

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const ddu::invalid_argument& e) {
    py::set_error(PyExc_ValueError, e.what());
  } catch (const ddu::type_error& e) {
    py::set_error(PyExc_TypeError, e.what());
  } catch (const ddu::unsupported_device& e) {
    PyErr_SetObject(PyExc_RuntimeError, direct::explain(e.what()).ptr());
  } catch (const ddu::error& e) {
    py::set_error(PyExc_RuntimeError, e.what());
  }
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "libddu for Python. Private: use the package's functions.";
  py::register_exception_translator(&translate);

  m.attr("version") = DDU_VERSION;
  m.attr("cpu_capability") = ddu::cpu::capability();
  m.attr("has_openmp") = ddu::cpu::has_openmp();
  m.attr("cuda_toolkit_version") = ddu::cuda::toolkit_version();
  m.attr("cuda_architectures") = ddu::cuda::architectures();
  m.attr("wheel_index") = DDU_WHEEL_INDEX;

  std::vector<std::string> reads_channels_last;  // devices by torch's names
  if (ddu::cpu::reads_channels_last) reads_channels_last.emplace_back("cpu");
  if (ddu::cuda::reads_channels_last) reads_channels_last.emplace_back("cuda");
  m.attr("reads_channels_last") = reads_channels_last;

  m.def("check_geometry", &check_geometry);
  m.def("check_types", [](int input, int map) { ddu::check_types(types_of(input, map)); });

  direct::add_functions(m);
}
