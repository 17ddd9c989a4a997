// The kernels of aggregate called with tensors: see unfold.cpp.

#include "ddu/aggregate.h"

#include <cstdint>

#include "call.h"
#include "run.h"

namespace direct {
namespace {

struct AggregateCall {
  static constexpr Py_ssize_t tensors = 3;  // input, weights, dilation_map
  static constexpr Py_ssize_t options = 5;  // kernel_size, stride, padding, dilation, padding_mode

  Tensor input, weights, map;
  ddu::Types types;
  ddu::HeadGeometry sizes;

  /// Throws for what does not fit together.
  bool read(PyObject* const* arguments) {
    ddu::Options given;
    if (!input.read(arguments[0], true) || !weights.read(arguments[1]) || !map.read(arguments[2])) return false;
    if (!read_window(arguments + tensors, given) || !read_padding_mode(arguments[tensors + 4], given.padding_mode))
      return false;
    if (!on_current_device(input, weights, map) || weights.type != input.type) return false;
    types = {static_cast<ddu::DType>(input.type), static_cast<ddu::DType>(map.type)};
    ddu::check_types(types);
    try {
      sizes = ddu::make_aggregate_geometry(input.shape(), weights.shape(), map.shape(), given);
    } catch (const ddu::invalid_argument&) {
      if (may_be_broadcast(map)) return false;
      throw;
    }
    return input.find_data() && weights.find_data() && map.find_data();
  }

  py::object forward() {
    std::int64_t output_sizes[4];
    const int dims = sizes_of_values(sizes.geometry, input, output_sizes);
    py::object output = empty(input.device, output_sizes, dims, attached.dtypes[input.type], input.format);
    ddu::Aggregate pointers{input.data, weights.data, map.data, address_of(output.ptr()), nullptr, input.format};
    constexpr Forward<ddu::HeadGeometry, ddu::Aggregate> functions{ddu::cpu::aggregate, ddu::cpu::aggregate_workspace_bytes,
                                                                   ddu::cuda::aggregate, ddu::cuda::aggregate_workspace_bytes};
    run(input.device, functions, sizes, types, pointers);
    return output;
  }

  /// `grad` may lie as it likes: it is read as the input is.
  py::object backward(Tensor& grad, PyObject* const* output_mask) {
    std::int64_t output_sizes[4];
    const int dims = sizes_of_values(sizes.geometry, input, output_sizes);
    if (!is_like(grad, output_sizes, dims, input) || !grad.find_data_as(input.format)) return py::none();
    ddu::AggregateBackward pointers{grad.data, input.data, weights.data, map.data,    nullptr,
                                    nullptr,   nullptr,    nullptr,      input.format};
    const py::object grad_input = new_gradient(input, output_mask[0], pointers.grad_input);
    const py::object grad_weights = new_gradient(weights, output_mask[1], pointers.grad_weights);
    const py::object grad_map = new_gradient(map, output_mask[2], pointers.grad_map);
    constexpr Backward<ddu::HeadGeometry, ddu::AggregateBackward> functions{
        ddu::cpu::aggregate_backward, ddu::cpu::aggregate_backward_workspace_bytes, ddu::cuda::aggregate_backward,
        ddu::cuda::aggregate_backward_workspace_bytes};
    run(input.device, functions, sizes, types, pointers);
    return own(PyTuple_Pack(3, grad_input.ptr(), grad_weights.ptr(), grad_map.ptr()));
  }
};

}  // namespace

void add_aggregate(py::module_& module) { add_operator<AggregateCall>(module, "aggregate"); }

}  // namespace direct
