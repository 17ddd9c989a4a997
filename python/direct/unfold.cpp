// The kernels of unfold called with tensors. On a small tensor the operator costs less than reading its tensors' attributes
// from Python, converting arguments and asking torch what is switched on, so that is done here, through CPython's own interface
// and, of a torch that offers it, DLPack's: nothing is compiled against torch.

#include "ddu/unfold.h"

#include <cstdint>
#include <iterator>

#include "call.h"
#include "run.h"

namespace direct {
namespace {

/// Of a part of the output's positions, for operators that work on a few columns at a time, or of all.
template <bool is_part>
struct UnfoldCall {
  static constexpr Py_ssize_t tensors = 2;  // input, dilation_map
  // kernel_size, stride, padding, dilation, groups, padding_mode; of a part, also origin
  static constexpr Py_ssize_t options = is_part ? 7 : 6;

  Tensor input, map;
  ddu::Types types;
  ddu::Geometry geometry;

  /// Throws for what does not fit together.
  bool read(PyObject* const* arguments) {
    ddu::Options given;
    PyObject* const* const option = arguments + tensors;
    if (!input.read(arguments[0], true) || !map.read(arguments[1])) return false;
    if (!read_window(option, given) || !read_integer(option[4], given.groups) ||
        !read_padding_mode(option[5], given.padding_mode)) {
      return false;
    }
    if constexpr (is_part) {
      given.part = true;
      if (!read_pair(option[6], given.origin)) return false;
    }
    if (!on_current_device(input, map)) return false;
    types = {static_cast<ddu::DType>(input.type), static_cast<ddu::DType>(map.type)};
    ddu::check_types(types);
    try {
      geometry = ddu::make_geometry(input.shape(), map.shape(), given);
    } catch (const ddu::invalid_argument&) {
      if (!is_part && may_be_broadcast(map)) return false;
      throw;
    }
    return input.find_data() && map.find_data();
  }

  py::object forward() {
    std::int64_t sizes[3];
    return fill(empty(input.device, sizes, output_sizes(sizes), attached.dtypes[input.type]));
  }
  /// `output` has the memory and the type of the columns, one after the other.
  py::object fill(py::object output) {
    ddu::Unfold pointers{input.data, map.data, address_of(output.ptr()), nullptr, input.format};
    constexpr Forward<ddu::Geometry, ddu::Unfold> functions{ddu::cpu::unfold, ddu::cpu::unfold_workspace_bytes,
                                                            ddu::cuda::unfold, ddu::cuda::unfold_workspace_bytes};
    run(input.device, functions, geometry, types, pointers);
    return output;
  }

  py::object backward(Tensor& grad, PyObject* const* output_mask) {
    std::int64_t sizes[3];
    const int dims = output_sizes(sizes);
    if (!is_like(grad, sizes, dims, input) || !grad.find_data()) return py::none();
    ddu::UnfoldBackward pointers{grad.data, input.data, map.data, nullptr, nullptr, nullptr, input.format};
    const py::object grad_input = new_gradient(input, output_mask[0], pointers.grad_input);
    const py::object grad_map = new_gradient(map, output_mask[1], pointers.grad_map);
    constexpr Backward<ddu::Geometry, ddu::UnfoldBackward> functions{
        ddu::cpu::unfold_backward, ddu::cpu::unfold_backward_workspace_bytes, ddu::cuda::unfold_backward,
        ddu::cuda::unfold_backward_workspace_bytes};
    run(input.device, functions, geometry, types, pointers);
    return own(PyTuple_Pack(2, grad_input.ptr(), grad_map.ptr()));
  }

 private:
  /// Writes the output's sizes and returns how many: an unbatched call has no batch.
  int output_sizes(std::int64_t* sizes) const {
    if (input.dims == 4) *sizes++ = geometry.batch;
    *sizes++ = geometry.channels * geometry.taps();
    *sizes = geometry.positions();
    return input.dims - 1;
  }
};

/// `arguments`: tensors, options, the output.
py::object unfold_part(PyObject* const* arguments) {
  using Part = UnfoldCall<true>;
  Part call;
  return call.read(arguments) ? call.fill(py::reinterpret_borrow<py::object>(arguments[Part::tensors + Part::options]))
                              : py::none();
}

}  // namespace

void add_unfold(py::module_& module) {
  add_operator<UnfoldCall<false>>(module, "unfold");
  using Part = UnfoldCall<true>;
  constexpr Py_ssize_t count = Part::tensors + Part::options;
  static PyMethodDef methods[] = {method("unfold_part", &with_arguments<unfold_part, count + 1>),
                                  method("unfold_part_backward", &with_arguments<backward_function<Part>, count + 2>),
                                  {nullptr, nullptr, 0, nullptr}};
  add_methods(module, methods);
}

}  // namespace direct
