// Module _C: libddu for Python, without being compiled against torch. The calls with tensors are in direct/.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "ddu/conv2d_geometry.h"
#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/error.h"
#include "ddu/geometry.h"
#include "ddu/head_geometry.h"
#include "ddu/version.h"
#include "direct/direct.h"

namespace py = pybind11;

namespace {

using Pair = std::array<std::int64_t, 2>;
using Sizes = std::vector<std::int64_t>;

ddu::Types types_of(int input, int map) { return {static_cast<ddu::DType>(input), static_cast<ddu::DType>(map)}; }

ddu::Shape shape_of(const Sizes& sizes) { return {sizes.data(), static_cast<int>(sizes.size())}; }

ddu::Options options_of(Pair kernel_size, Pair stride, Pair padding, Pair dilation) {
  ddu::Options options;
  for (std::size_t axis : {0, 1}) {
    options.kernel_size[axis] = kernel_size[axis];
    options.stride[axis] = stride[axis];
    options.padding[axis] = padding[axis];
    options.dilation[axis] = dilation[axis];
  }
  return options;
}

ddu::PaddingMode padding_mode_of(const std::string& name) {
  if (name == "zeros") return ddu::PaddingMode::zeros;
  if (name == "border") return ddu::PaddingMode::border;
  throw ddu::invalid_argument(("padding_mode must be \"zeros\" or \"border\", got \"" + name + "\"").c_str());
}

void check_geometry(const Sizes& input, const Sizes& map, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
                    std::int64_t groups, const std::string& padding_mode) {
  ddu::Options options = options_of(kernel_size, stride, padding, dilation);
  options.groups = groups;
  options.padding_mode = padding_mode_of(padding_mode);
  ddu::make_geometry(shape_of(input), shape_of(map), options);
}

void check_aggregate_geometry(const Sizes& input, const Sizes& weights, const Sizes& map, Pair kernel_size, Pair stride,
                              Pair padding, Pair dilation, const std::string& padding_mode) {
  ddu::Options options = options_of(kernel_size, stride, padding, dilation);
  options.padding_mode = padding_mode_of(padding_mode);
  ddu::make_aggregate_geometry(shape_of(input), shape_of(weights), shape_of(map), options);
}

void check_correlate_geometry(const Sizes& query, const Sizes& key, const Sizes& map, Pair kernel_size, Pair stride,
                              Pair padding, Pair dilation, std::int64_t heads, const std::string& padding_mode) {
  ddu::Options options = options_of(kernel_size, stride, padding, dilation);
  options.padding_mode = padding_mode_of(padding_mode);
  ddu::make_correlate_geometry(shape_of(query), shape_of(key), shape_of(map), options, heads);
}

void check_conv2d_geometry(const Sizes& input, const Sizes& weight, const Sizes& map, const Sizes& mask, Pair stride,
                           Pair padding, Pair dilation, const std::string& padding_mode) {
  ddu::Options options = options_of({1, 1}, stride, padding, dilation);
  options.padding_mode = padding_mode_of(padding_mode);
  ddu::make_conv2d_geometry(shape_of(input), shape_of(weight), shape_of(map), shape_of(mask), options);
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
  m.def("check_aggregate_geometry", &check_aggregate_geometry);
  m.def("check_correlate_geometry", &check_correlate_geometry);
  m.def("check_conv2d_geometry", &check_conv2d_geometry);
  m.def("check_types", [](int input, int map) { ddu::check_types(types_of(input, map)); });

  direct::add_functions(m);
}
