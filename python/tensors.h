#pragma once

// Tensors as direct.cpp meets them: objects of Python, read through CPython's own interface or, where torch offers it,
// DLPack's.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>

#include "ddu/geometry.h"
#include "dlpack.h"

namespace py = pybind11;

namespace {

/// Objects of torch, given by attach() and kept until the process ends. Those for CUDA are None where torch has none.
struct Torch {
  PyObject* tensor_types[2];  // Tensor and Parameter
  PyObject* dtypes[4];        // in the order of ddu::DType
  PyObject* uint8;
  PyObject* empty_on_cpu;   // (sizes, strides, dtype) -> tensor
  PyObject* empty_on_cuda;  // the same on the current CUDA device
  PyObject* get_num_threads;
  PyObject* current_device;
  PyObject* current_stream;  // index of a device -> address
  PyObject* is_deterministic;
  PyObject* is_grad_enabled;
  PyObject* is_autocast_enabled;
  PyObject* forward_ad;  // the module, whose _current_level is -1 where no forward-mode differentiation is going on
  PyObject* watchers;    // tuple of functions: while one of them returns something true, calls are not plain
  PyObject* record;      // (input, dilation_map, options) -> output with its backward
  PyObject* explain;     // libddu's message that it cannot serve a device -> what to do about it
  PyObject* forward;     // the same without backward, for any tensors
  PyObject* backward;    // (context, gradient) -> gradients for any tensors
  const dlpack::ExchangeApi* exchange;  // null before torch 2.10
} torch{};

PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }
PyObject* const name_shape = name("shape");
PyObject* const name_dtype = name("dtype");
PyObject* const name_is_cpu = name("is_cpu");
PyObject* const name_is_cuda = name("is_cuda");
PyObject* const name_get_device = name("get_device");
PyObject* const name_is_neg = name("is_neg");
PyObject* const name_contiguous = name("contiguous");
PyObject* const name_layout = name("layout");
PyObject* const name_data_ptr = name("data_ptr");
PyObject* const name_requires_grad = name("requires_grad");
PyObject* const name_current_level = name("_current_level");
PyObject* const name_to_save = name("to_save");
PyObject* const name_saved_tensors = name("saved_tensors");
PyObject* const name_needs_input_grad = name("needs_input_grad");
PyObject* const name_options = name("options");

py::object own(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

py::object get(PyObject* object, PyObject* attribute) { return own(PyObject_GetAttr(object, attribute)); }
void set(PyObject* object, PyObject* attribute, PyObject* value) {
  if (PyObject_SetAttr(object, attribute, value) != 0) throw py::error_already_set();
}
py::object call(PyObject* function) { return own(PyObject_CallNoArgs(function)); }
py::object call(PyObject* object, PyObject* method) { return own(PyObject_CallMethodNoArgs(object, method)); }

std::int64_t integer(py::handle object) {
  const std::int64_t value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

py::object tuple_of(const std::int64_t* values, int count) {
  py::object tuple = own(PyTuple_New(count));
  for (int i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.ptr(), i, own(PyLong_FromLongLong(values[i])).release().ptr());
  return tuple;
}

// --- What a call is made of -------------------------------------------------------------------------------------------

constexpr std::int64_t kCpu = -1;  // as a device; the others are CUDA's indices

/// Forgets a RuntimeError, as torch raises for a tensor without memory; any other goes on.
void forget_runtime_error() {
  if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
  PyErr_Clear();
}

/// The address of a tensor's memory, null for one that has none: a wrapper of torch's, or zeros in forward-mode
/// differentiation.
void* address_of(PyObject* tensor) {
  if (dlpack::Tensor view; torch.exchange && torch.exchange->view(tensor, &view) == 0) return view.data;
  if (PyErr_Occurred()) forget_runtime_error();
  const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, name_data_ptr));
  if (address) return PyLong_AsVoidPtr(address.ptr());
  forget_runtime_error();
  return nullptr;
}

struct Tensor {
  PyObject* object = nullptr;  // the caller's
  py::object copy;             // of it, as the kernels read it; unset where it is so already
  void* data = nullptr;
  std::int64_t device = kCpu;
  std::int64_t sizes[4];
  int dims = 0, type = 0;
  bool in_place = false;  // data is known

  /// False for what has no kernels: the caller has a slower way for it, or the error message.
  bool read(PyObject* tensor) {
    object = tensor;
    return torch.exchange ? read_view() : read_attributes();
  }
  /// Once sizes are checked, as this may copy. False for what has no memory of its own.
  bool find_data() {
    if (call(object, name_is_neg).ptr() != Py_False) return false;
    if (!in_place) {
      copy = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, name_contiguous));
      if (!copy) return forget_other_layout();
      data = address_of(copy.ptr());
    }
    return data || numel() == 0;
  }
  std::int64_t numel() const { return std::accumulate(sizes, sizes + dims, std::int64_t{1}, std::multiplies<>()); }
  ddu::Shape shape() const { return {sizes, dims}; }

 private:
  /// After an error of contiguous(): false for a tensor that is not strided, which the caller explains; else it goes on.
  bool forget_other_layout() {
    py::error_already_set raised;
    if (std::string(py::str(get(object, name_layout))) == "torch.strided") throw raised;
    return false;
  }
  bool read_view() {
    dlpack::Tensor view;
    if (torch.exchange->view(object, &view) != 0) {
      forget_runtime_error();
      return false;
    }
    if (view.device_type == dlpack::kCuda) device = view.device_index;
    const bool known = view.device_type == dlpack::kCuda || view.device_type == dlpack::kCpu;
    type = type_of(view);
    if (!known || type == 4 || view.dims > 4) return false;
    dims = view.dims;
    std::copy_n(view.sizes, dims, sizes);
    data = view.data;
    in_place = true;
    for (std::int64_t i = dims, stride = 1; i-- > 0; stride *= sizes[i]) {
      in_place = in_place && (sizes[i] == 1 || view.strides[i] == stride);
    }
    return true;
  }
  /// In the order of ddu::DType; 4 for any other.
  static int type_of(const dlpack::Tensor& view) {
    if (view.type_code == dlpack::kBfloat) return 1;
    if (view.type_code != dlpack::kFloat) return 4;
    return view.type_bits == 16 ? 0 : view.type_bits == 32 ? 2 : view.type_bits == 64 ? 3 : 4;
  }
  bool read_attributes() {
    if (get(object, name_is_cpu).ptr() != Py_True) {
      if (get(object, name_is_cuda).ptr() != Py_True) return false;
      device = integer(call(object, name_get_device));
    }
    const py::object dtype = get(object, name_dtype);
    const auto shape = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name_shape));
    if (!shape) {  // a nested tensor
      forget_runtime_error();
      return false;
    }
    while (type < 4 && dtype.ptr() != torch.dtypes[type]) ++type;
    if (type == 4 || PyTuple_GET_SIZE(shape.ptr()) > 4) return false;
    dims = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    for (int i = 0; i < dims; ++i) sizes[i] = integer(PyTuple_GET_ITEM(shape.ptr(), i));
    return true;
  }
};

/// Memory for `device`, which is the current one. Nothing fills it, as torch.empty does under deterministic algorithms.
py::object empty(std::int64_t device, const std::int64_t* sizes, int dims, PyObject* dtype) {
  std::int64_t strides[4], stride = 1;
  for (int i = dims; i-- > 0; stride *= std::max<std::int64_t>(sizes[i], 1)) strides[i] = stride;
  const py::object size_tuple = tuple_of(sizes, dims), stride_tuple = tuple_of(strides, dims);
  PyObject* arguments[] = {size_tuple.ptr(), stride_tuple.ptr(), dtype};
  return own(PyObject_Vectorcall(device == kCpu ? torch.empty_on_cpu : torch.empty_on_cuda, arguments, 3, nullptr));
}

}  // namespace
