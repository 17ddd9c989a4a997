// The kernels of the convolution called with tensors, where there are some: elsewhere Python has columns in chunks for it.

#include "ddu/conv2d.h"

#include <algorithm>
#include <cstdint>

#include "call.h"
#include "run.h"

namespace direct {
namespace {

struct Conv2dCall {
  static constexpr Py_ssize_t tensors = 5;  // input, weight, dilation_map, bias, mask; the last two may be None
  static constexpr Py_ssize_t options = 5;  // stride, padding, dilation, padding_mode, allow_tf32

  Tensor input, weight, map, bias, mask;
  bool has_bias, has_mask;
  ddu::Types types;
  ddu::Conv2dGeometry sizes;

  /// False for calls that are not for the kernels. Throws for what does not fit together.
  bool read(PyObject* const* arguments) {
    ddu::Options given;
    PyObject* const* const option = arguments + tensors;
    has_bias = arguments[3] != Py_None;
    has_mask = arguments[4] != Py_None;
    if (!input.read(arguments[0], true) || !weight.read(arguments[1]) || !map.read(arguments[2]) ||
        (has_bias && !bias.read(arguments[3])) || (has_mask && !mask.read(arguments[4]))) {
      return false;
    }
    if (!read_pair(option[0], given.stride) || !read_pair(option[1], given.padding) || !read_pair(option[2], given.dilation) ||
        !read_padding_mode(option[3], given.padding_mode)) {
      return false;
    }
    if (!of_one_kind(weight) || (has_bias && !of_one_kind(bias)) || (has_mask && !of_one_kind(mask)) ||
        !on_current_device(input, map)) {
      return false;
    }
    types = {static_cast<ddu::DType>(input.type), static_cast<ddu::DType>(map.type)};
    ddu::check_types(types);
    sizes =
        ddu::make_conv2d_geometry(input.shape(), weight.shape(), map.shape(), has_mask ? mask.shape() : ddu::Shape{}, given);
    sizes.allow_tf32 = option[4] == Py_True;
    return true;
  }
  bool has_forward() const {
    return input.device == kCpu ? ddu::cpu::conv2d_supported(sizes, types) : ddu::cuda::conv2d_supported(sizes, types);
  }
  bool has_backward() const {
    if (input.device == kCpu) return ddu::cpu::conv2d_supported(sizes, types);
    const bool deterministic = call(attached.is_deterministic).ptr() == Py_True;
    return ddu::cuda::conv2d_backward_supported(sizes, types, deterministic);
  }
  /// False for tensors without memory of their own.
  bool find_data() {
    return input.find_data() && weight.find_data() && map.find_data() && (!has_bias || bias.find_data()) &&
           (!has_mask || mask.find_data());
  }

  py::object forward() {
    std::int64_t output_sizes[4];
    write_output_sizes(output_sizes);
    py::object output = empty(input.device, output_sizes, input.dims, attached.dtypes[input.type], input.format);
    ddu::Conv2d pointers{input.data, weight.data, map.data, mask.data, bias.data, address_of(output.ptr()),
                         nullptr,    input.format};
    constexpr Forward<ddu::Conv2dGeometry, ddu::Conv2d> functions{
        ddu::cpu::conv2d_forward, ddu::cpu::conv2d_forward_workspace_bytes, ddu::cuda::conv2d_forward,
        ddu::cuda::conv2d_forward_workspace_bytes};
    run(input.device, functions, sizes, types, pointers);
    return output;
  }
  /// `grad` may lie as it likes: it is read as the input is. No gradient of the bias: that is a sum, which torch has.
  py::object backward(Tensor& grad, PyObject* const* output_mask) {
    std::int64_t output_sizes[4];
    write_output_sizes(output_sizes);
    if (!is_like(grad, output_sizes, input.dims, input) || !grad.find_data_as(input.format)) return py::none();
    ddu::Conv2dBackward pointers{};
    pointers.grad_output = grad.data;
    pointers.input = input.data;
    pointers.weight = weight.data;
    pointers.dilation_map = map.data;
    pointers.mask = mask.data;
    pointers.input_format = input.format;
    const py::object grad_input = new_gradient(input, output_mask[0], pointers.grad_input);
    const py::object grad_weight = new_gradient(weight, output_mask[1], pointers.grad_weight);
    const py::object grad_map = new_gradient(map, output_mask[2], pointers.grad_map);
    const py::object grad_mask = has_mask ? new_gradient(mask, output_mask[4], pointers.grad_mask) : py::none();
    constexpr Backward<ddu::Conv2dGeometry, ddu::Conv2dBackward> functions{
        ddu::cpu::conv2d_backward, ddu::cpu::conv2d_backward_workspace_bytes, ddu::cuda::conv2d_backward,
        ddu::cuda::conv2d_backward_workspace_bytes};
    run(input.device, functions, sizes, types, pointers);
    return own(PyTuple_Pack(5, grad_input.ptr(), grad_weight.ptr(), grad_map.ptr(), Py_None, grad_mask.ptr()));
  }

 private:
  void write_output_sizes(std::int64_t* size) const {
    if (input.dims == 4) *size++ = sizes.geometry.batch;
    for (const std::int64_t each : {sizes.out_channels, sizes.geometry.h.out_size, sizes.geometry.w.out_size}) *size++ = each;
  }
  bool of_one_kind(const Tensor& other) const { return other.type == input.type && other.device == input.device; }
};

// Of the package, kept until the process ends: whether F.conv2d may use TF32; (grad, bias) -> the bias' gradient.
PyObject *allows_tf32 = nullptr, *bias_gradient = nullptr;

/// A call as users make it. What is not for the kernels, or does not fit together, is Python's.
struct PlainConv2dCall : Conv2dCall {
  static constexpr Py_ssize_t options = 4;  // all but allow_tf32

  bool read(PyObject* const* arguments) {
    PyObject* all[Conv2dCall::tensors + Conv2dCall::options];
    *std::copy_n(arguments, tensors + options, all) = Py_False;
    try {
      if (!Conv2dCall::read(all)) return false;
    } catch (const ddu::invalid_argument&) {
      return false;  // a map to broadcast, or an error of which Python knows more
    }
    if (has_bias && (bias.dims != 1 || bias.sizes[0] != sizes.out_channels)) return false;
    sizes.allow_tf32 = types.input == ddu::DType::float32 && direct::call(allows_tf32).ptr() == Py_True;
    return has_forward() && find_data();
  }
  py::object backward(Tensor& grad, PyObject* const* output_mask) {
    if (!has_backward()) return py::none();
    py::object grads = Conv2dCall::backward(grad, output_mask);
    if (grads.is_none() || !has_bias || output_mask[3] != Py_True) return grads;
    PyObject* const given[] = {grad.object, bias.object};
    const py::object of_bias = own(PyObject_Vectorcall(bias_gradient, given, 2, nullptr));
    PyObject* each[tensors];
    std::copy_n(&PyTuple_GET_ITEM(grads.ptr(), 0), tensors, each);
    each[3] = of_bias.ptr();
    return tuple_of(each, tensors);
  }
};

py::object conv2d_forward(PyObject* const* arguments) {
  Conv2dCall call;
  return call.read(arguments) && call.has_forward() && call.find_data() ? call.forward() : py::none();
}

/// `arguments`: gradient, tensors, options, which gradients.
py::object conv2d_backward(PyObject* const* arguments) {
  Conv2dCall call;
  Tensor grad;
  if (!call.read(arguments + 1) || !grad.read(arguments[0], true) || !call.has_backward() || !call.find_data()) {
    return py::none();
  }
  return call.backward(grad, &PyTuple_GET_ITEM(arguments[1 + Conv2dCall::tensors + Conv2dCall::options], 0));
}

py::object conv2d_supported(PyObject* const* arguments) {
  Conv2dCall call;
  return py::bool_(call.read(arguments) && call.has_forward());
}

py::object conv2d_backward_supported(PyObject* const* arguments) {
  Conv2dCall call;
  return py::bool_(call.read(arguments) && call.has_backward());
}

}  // namespace

void add_conv2d(py::module_& module) {
  constexpr Py_ssize_t count = Conv2dCall::tensors + Conv2dCall::options;
  static PyMethodDef methods[] = {method("conv2d_forward", &with_arguments<conv2d_forward, count>),
                                  method("conv2d_backward", &with_arguments<conv2d_backward, count + 2>),
                                  method("conv2d_supported", &with_arguments<conv2d_supported, count>),
                                  method("conv2d_backward_supported", &with_arguments<conv2d_backward_supported, count>),
                                  method("conv2d_plain", &with_arguments<plain<PlainConv2dCall>, count - 1>),
                                  method("conv2d_plain_backward", &with_arguments<plain_backward<PlainConv2dCall>, 3>),
                                  {nullptr, nullptr, 0, nullptr}};
  add_methods(module, methods);
  const auto kept = [](const py::object& object) { return py::object(object).release().ptr(); };
  module.def("attach_conv2d", [=](const py::object& record) { record_of<PlainConv2dCall> = kept(record); });
  module.def("attach_conv2d_functions", [=](const py::object& of_tf32, const py::object& of_bias) {
    allows_tf32 = kept(of_tf32);
    bias_gradient = kept(of_bias);
  });
}

}  // namespace direct
