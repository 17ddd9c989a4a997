#pragma once

// What the direct calls of every operator have in common: the gate, reading options, the record for backward.
//
// An operator is a struct `Call` with
//   static constexpr Py_ssize_t tensors, options;                     how many of each, in the order of the Python function
//   bool read(PyObject* const* arguments);                            tensors, then options; false to decline
//   py::object forward();                                             the output
//   py::object backward(Tensor& grad, PyObject* const* output_mask);  tuple of gradients, None for one that is not wanted
// and gets from this file, through add_operator, four functions of the module _C. Each declines by returning None, before it
// has done anything, what Python then does or explains: options that are not yet ints or pairs of them, maps to broadcast,
// other devices, subclasses, tensors without memory.
//   NAME(*tensors, *options)                          the output
//   NAME_backward(grad, *tensors, *options, output_mask)   the gradients
//   NAME_plain(*tensors, *options)                    the output of a plain call, with its backward; None for any other
//   NAME_plain_backward(context, grad)                the gradients of such a call

#include <exception>
#include <string>

#include "ddu/error.h"
#include "direct.h"
#include "tensor.h"

namespace direct {

// --- Options ----------------------------------------------------------------------------------------------------------

/// False for what is not an int of 64 bits.
inline bool read_integer(PyObject* object, std::int64_t& value) {
  int overflow = 0;
  if (!PyLong_CheckExact(object)) return false;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

/// An int, or a tuple of two; false for anything else. So what is read cannot change later, and may be kept by reference.
inline bool read_pair(PyObject* object, std::int64_t (&pair)[2]) {
  if (PyTuple_CheckExact(object) && PyTuple_GET_SIZE(object) == 2) {
    return read_integer(PyTuple_GET_ITEM(object, 0), pair[0]) && read_integer(PyTuple_GET_ITEM(object, 1), pair[1]);
  }
  return read_integer(object, pair[0]) && read_integer(object, pair[1]);
}

/// kernel_size, stride, padding and dilation.
inline bool read_window(PyObject* const* option, ddu::Options& options) {
  return read_pair(option[0], options.kernel_size) && read_pair(option[1], options.stride) &&
         read_pair(option[2], options.padding) && read_pair(option[3], options.dilation);
}

/// "zeros" or "border"; false for anything else.
inline bool read_padding_mode(PyObject* object, ddu::PaddingMode& mode) {
  if (!PyUnicode_CheckExact(object)) return false;
  const bool border = PyUnicode_CompareWithASCIIString(object, "border") == 0;
  mode = border ? ddu::PaddingMode::border : ddu::PaddingMode::zeros;
  return border || PyUnicode_CompareWithASCIIString(object, "zeros") == 0;
}

/// Whether Python may know a map of the right shape where this one does not fit: one row or column stands for all.
inline bool may_be_broadcast(const Tensor& map) {
  return map.dims >= 2 && (map.sizes[map.dims - 1] == 1 || map.sizes[map.dims - 2] == 1);
}

// --- Shapes -----------------------------------------------------------------------------------------------------------

/// Writes the sizes of a vector of the image's channels for each position, and returns how many: an unbatched call has no
/// batch.
inline int sizes_of_values(const ddu::Geometry& g, const Tensor& image, std::int64_t* sizes) {
  if (image.dims == 4) *sizes++ = g.batch;
  for (const std::int64_t size : {g.channels, g.h.out_size, g.w.out_size}) *sizes++ = size;
  return image.dims;
}

/// Whether a gradient is like the output: of these sizes, and otherwise like `tensor`.
inline bool is_like(const Tensor& grad, const std::int64_t* sizes, int dims, const Tensor& tensor) {
  return grad.dims == dims && std::equal(sizes, sizes + dims, grad.sizes) && grad.device == tensor.device &&
         grad.type == tensor.type;
}

// --- The gate ---------------------------------------------------------------------------------------------------------

/// Whether tensors are torch's own, with nobody but plain autograd looking: the kernels may run without torch's dispatcher.
/// None stands for an optional tensor that is not given. A wrapper of torch's has torch's own type and may pass, after the end
/// of its transform say; it has no memory, so Tensor::find_data turns it down. _kernels.may_read asks for that at once.
inline bool is_plain(PyObject* const* tensors, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensors[i]));
    if (type != attached.tensor_types[0] && type != attached.tensor_types[1] && tensors[i] != Py_None) return false;
  }
  if (integer(get(attached.forward_ad, names::current_level)) >= 0) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(attached.watchers); ++i) {
    if (is_true(call(PyTuple_GET_ITEM(attached.watchers, i)).ptr())) return false;
  }
  return true;
}

// --- The functions of an operator -------------------------------------------------------------------------------------

template <class Call>
PyObject* record_of = nullptr;  // (*tensors, (output, options)) -> output with its backward

template <class Call>
py::object forward(PyObject* const* arguments) {
  Call call;
  return call.read(arguments) ? call.forward() : py::none();
}

/// `arguments`: gradient, tensors, options.
template <class Call>
py::object backward(PyObject* const* arguments, PyObject* output_mask) {
  Call call;
  Tensor grad;
  if (!call.read(arguments + 1) || !grad.read(arguments[0], true)) return py::none();
  return call.backward(grad, &PyTuple_GET_ITEM(output_mask, 0));
}

template <class Call>
py::object backward_function(PyObject* const* arguments) {
  return backward<Call>(arguments, arguments[1 + Call::tensors + Call::options]);
}

template <class Call>
py::object plain(PyObject* const* arguments) {
  if (!is_plain(arguments, Call::tensors) || call(attached.is_autocast_enabled).ptr() == Py_True) return py::none();
  py::object output = forward<Call>(arguments);
  if (output.is_none()) return output;
  bool differentiable = false;
  for (Py_ssize_t i = 0; i < Call::tensors && !differentiable; ++i) {
    differentiable = arguments[i] != Py_None && get(arguments[i], names::requires_grad).ptr() == Py_True;
  }
  if (!differentiable || call(attached.is_grad_enabled).ptr() != Py_True) return output;
  const py::object options = tuple_of(arguments + Call::tensors, Call::options);
  const py::object result = own(PyTuple_Pack(2, output.ptr(), options.ptr()));
  PyObject* recorded[Call::tensors + 1];
  std::copy_n(arguments, Call::tensors, recorded);
  recorded[Call::tensors] = result.ptr();
  return own(PyObject_Vectorcall(record_of<Call>, recorded, Call::tensors + 1, nullptr));
}

/// (context, its saved tensors, grad) -> gradients of the tensors, and None for the result that was recorded. Whoever calls
/// reads the saved tensors, since some hooks of saved tensors, as a checkpoint's, let them be read once alone.
template <class Call>
py::object plain_backward(PyObject* const* arguments) {
  PyObject* context = arguments[0];
  PyObject* all[1 + Call::tensors + Call::options] = {arguments[2]};
  std::copy_n(&PyTuple_GET_ITEM(arguments[1], 0), Call::tensors, all + 1);
  if (call(attached.is_grad_enabled).ptr() == Py_True || !is_plain(all, 1 + Call::tensors)) return py::none();
  const py::object options = get(context, names::options), mask = get(context, names::needs_input_grad);
  std::copy_n(&PyTuple_GET_ITEM(options.ptr(), 0), Call::options, all + 1 + Call::tensors);
  const py::object grads = backward<Call>(all, mask.ptr());
  if (grads.is_none()) return grads;
  PyObject* each[Call::tensors + 1];
  std::copy_n(&PyTuple_GET_ITEM(grads.ptr(), 0), Call::tensors, each);
  each[Call::tensors] = Py_None;
  return tuple_of(each, Call::tensors + 1);
}

// --- As functions of the module ---------------------------------------------------------------------------------------

template <class Body>
PyObject* translating(Body body) {
  try {
    return body().release().ptr();
  } catch (py::error_already_set& raised) {
    raised.restore();
  } catch (...) {
    try {
      translate(std::current_exception());
    } catch (const std::exception& other) {
      PyErr_SetString(PyExc_RuntimeError, other.what());
    }
  }
  return nullptr;
}

template <py::object (*function)(PyObject* const*), Py_ssize_t expected>
PyObject* with_arguments(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count == expected) return translating([&] { return function(arguments); });
  return PyErr_Format(PyExc_TypeError, "expected %zd positional arguments, got %zd", expected, count);
}

template <class Function>
PyMethodDef method(const char* name, Function* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr};
}

inline void add_methods(py::module_& module, PyMethodDef* methods) {
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

/// METH_FASTCALL, which pybind11 does not use, hands over arguments without building a tuple.
template <class Call>
void add_operator(py::module_& module, const std::string& name) {
  constexpr Py_ssize_t count = Call::tensors + Call::options;
  static const std::string names[] = {name, name + "_backward", name + "_plain", name + "_plain_backward"};
  static PyMethodDef methods[] = {method(names[0].c_str(), &with_arguments<forward<Call>, count>),
                                  method(names[1].c_str(), &with_arguments<backward_function<Call>, count + 2>),
                                  method(names[2].c_str(), &with_arguments<plain<Call>, count>),
                                  method(names[3].c_str(), &with_arguments<plain_backward<Call>, 3>),
                                  {nullptr, nullptr, 0, nullptr}};
  add_methods(module, methods);
  module.def(("attach_" + name).c_str(),
             [](const py::object& record) { record_of<Call> = py::object(record).release().ptr(); });
}

}  // namespace direct
