// Module _C: libddu for Python. Tensors come as addresses, so nothing here is compiled against torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "ddu/dtype.h"
#include "ddu/error.h"
#include "ddu/geometry.h"
#include "ddu/unfold.h"
#include "ddu/version.h"
#include "direct.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Pair = std::array<std::int64_t, 2>;
using Sizes = std::vector<std::int64_t>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }
ddu::Types types_of(int input, int map) { return {static_cast<ddu::DType>(input), static_cast<ddu::DType>(map)}; }
ddu::cuda::Stream stream_of(Address stream) { return static_cast<ddu::cuda::Stream>(pointer(stream)); }

ddu::Geometry make_geometry(const Sizes& input, const Sizes& map, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
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
  return ddu::make_geometry({input.data(), static_cast<int>(input.size())}, {map.data(), static_cast<int>(map.size())},
                            options);
}

ddu::Forward forward_of(Address input, Address map, Address output) { return {pointer(input), pointer(map), pointer(output)}; }

using BackwardAddresses = std::array<Address, 6>;  // in the order of ddu::Backward
ddu::Backward backward_of(const BackwardAddresses& a) {
  return {pointer(a[0]), pointer(a[1]), pointer(a[2]), pointer(a[3]), pointer(a[4]), pointer(a[5])};
}

}  // namespace

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const ddu::invalid_argument& e) {
    py::set_error(PyExc_ValueError, e.what());
  } catch (const ddu::type_error& e) {
    py::set_error(PyExc_TypeError, e.what());
  } catch (const ddu::error& e) {
    py::set_error(PyExc_RuntimeError, e.what());
  }
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "libddu through raw addresses. Private: use the package's functions.";
  py::register_exception_translator(&translate);

  m.attr("version") = DDU_VERSION;
  m.attr("cpu_capability") = ddu::cpu::capability();
  m.attr("has_openmp") = ddu::cpu::has_openmp();
  m.attr("cuda_toolkit_version") = ddu::cuda::toolkit_version();
  m.attr("cuda_architectures") = ddu::cuda::architectures();

  py::class_<ddu::Geometry>(m, "Geometry")
      .def_property_readonly("columns", [](const ddu::Geometry& g) { return g.channels * g.taps(); })
      .def_property_readonly("positions", &ddu::Geometry::positions);
  m.def("make_geometry", &make_geometry);
  m.def("check_types", [](int input, int map) { ddu::check_types(types_of(input, map)); });

  add_direct_calls(m);
  const py::call_guard<py::gil_scoped_release> release;
  m.def(
      "cpu_unfold_backward",
      [](const ddu::Geometry& g, int input_type, int map_type, const BackwardAddresses& addresses, int threads) {
        ddu::cpu::unfold_backward(g, types_of(input_type, map_type), backward_of(addresses), threads);
      },
      release);
  m.def("cpu_workspace_bytes",
        [](const ddu::Geometry& g, int input_type, int map_type, const BackwardAddresses& addresses, int threads) {
          return ddu::cpu::workspace_bytes(g, types_of(input_type, map_type), backward_of(addresses), threads);
        });
  m.def(
      "cuda_unfold",
      [](const ddu::Geometry& g, int input_type, int map_type, Address input, Address map, Address output, Address stream) {
        ddu::cuda::unfold(g, types_of(input_type, map_type), forward_of(input, map, output), stream_of(stream));
      },
      release);
  m.def(
      "cuda_unfold_backward",
      [](const ddu::Geometry& g, int input_type, int map_type, const BackwardAddresses& addresses, bool deterministic,
         Address stream) {
        ddu::cuda::unfold_backward(g, types_of(input_type, map_type), backward_of(addresses), deterministic, stream_of(stream));
      },
      release);
  m.def("cuda_workspace_bytes",
        [](const ddu::Geometry& g, int input_type, int map_type, const BackwardAddresses& addresses, bool deterministic) {
          return ddu::cuda::workspace_bytes(g, types_of(input_type, map_type), backward_of(addresses), deterministic);
        });
}
