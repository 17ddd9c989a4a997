// The forward on CPU tensors as one call. On a small tensor the operator costs less than reading its tensors' attributes from
// Python and converting arguments, so this reads them through CPython's interface, and still is not compiled against torch.

#include "direct.h"

#include <cstdint>

#include "ddu/unfold.h"

namespace py = pybind11;

namespace {

/// Objects of torch, given by attach() and kept until the process ends.
struct Torch {
  PyObject* dtypes[4];      // in the order of ddu::DType
  PyObject* empty_strided;  // (sizes, strides, dtype) -> tensor on the CPU
  PyObject* get_num_threads;
} torch{};

PyObject* name_shape = PyUnicode_InternFromString("shape");
PyObject* name_dtype = PyUnicode_InternFromString("dtype");
PyObject* name_is_cpu = PyUnicode_InternFromString("is_cpu");
PyObject* name_is_neg = PyUnicode_InternFromString("is_neg");
PyObject* name_is_contiguous = PyUnicode_InternFromString("is_contiguous");
PyObject* name_data_ptr = PyUnicode_InternFromString("data_ptr");

py::object own(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

std::int64_t integer(PyObject* object) {
  const std::int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

bool method_is(PyObject* object, PyObject* name, PyObject* value) {
  return own(PyObject_CallMethodNoArgs(object, name)).ptr() == value;
}

struct Tensor {
  std::int64_t sizes[4];
  int dims;
  int type;

  /// False for what the kernels cannot read as it lies: the caller has a slower way for it, or the error message.
  bool read(PyObject* tensor) {
    if (own(PyObject_GetAttr(tensor, name_is_cpu)).ptr() != Py_True) return false;
    const py::object dtype = own(PyObject_GetAttr(tensor, name_dtype));
    for (type = 0; type < 4 && dtype.ptr() != torch.dtypes[type]; ++type) {
    }
    const py::object shape = own(PyObject_GetAttr(tensor, name_shape));
    if (type == 4 || PyTuple_GET_SIZE(shape.ptr()) > 4) return false;
    dims = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    for (int i = 0; i < dims; ++i) sizes[i] = integer(PyTuple_GET_ITEM(shape.ptr(), i));
    return method_is(tensor, name_is_contiguous, Py_True) && method_is(tensor, name_is_neg, Py_False);
  }
  ddu::Shape shape() const { return {sizes, dims}; }
};

void* data(py::handle tensor) { return PyLong_AsVoidPtr(own(PyObject_CallMethodNoArgs(tensor.ptr(), name_data_ptr)).ptr()); }

bool read_pair(PyObject* object, std::int64_t (&pair)[2]) {
  if (PyLong_CheckExact(object)) {
    pair[0] = pair[1] = integer(object);
    return true;
  }
  if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != 2) return false;
  for (int i = 0; i < 2; ++i) {
    PyObject* item = PyTuple_GET_ITEM(object, i);
    if (!PyLong_CheckExact(item)) return false;
    pair[i] = integer(item);
  }
  return true;
}

py::object new_output(const ddu::Geometry& g, bool batched, PyObject* dtype) {
  const std::int64_t columns = g.channels * g.taps(), positions = g.positions();
  const std::int64_t sizes[] = {g.batch, columns, positions}, strides[] = {columns * positions, positions, 1};
  const int first = batched ? 0 : 1;
  py::tuple size_tuple(3 - first), stride_tuple(3 - first);
  for (int i = first; i < 3; ++i) {
    PyTuple_SET_ITEM(size_tuple.ptr(), i - first, PyLong_FromLongLong(sizes[i]));
    PyTuple_SET_ITEM(stride_tuple.ptr(), i - first, PyLong_FromLongLong(strides[i]));
  }
  PyObject* arguments[] = {size_tuple.ptr(), stride_tuple.ptr(), dtype};
  return own(PyObject_Vectorcall(torch.empty_strided, arguments, 3, nullptr));
}

py::object cpu_unfold(py::handle input_tensor, py::handle dilation_map, py::handle kernel_size, py::handle stride,
                      py::handle padding, py::handle dilation, py::handle groups) {
  Tensor input, map;
  if (!input.read(input_tensor.ptr()) || !map.read(dilation_map.ptr())) return py::none();
  ddu::Options options;
  if (!read_pair(kernel_size.ptr(), options.kernel_size) || !read_pair(stride.ptr(), options.stride) ||
      !read_pair(padding.ptr(), options.padding) || !read_pair(dilation.ptr(), options.dilation) ||
      !PyLong_CheckExact(groups.ptr())) {
    return py::none();
  }
  options.groups = integer(groups.ptr());
  const ddu::Types types{static_cast<ddu::DType>(input.type), static_cast<ddu::DType>(map.type)};
  ddu::check_types(types);
  const ddu::Geometry geometry = ddu::make_geometry(input.shape(), map.shape(), options);
  ddu::Forward tensors{data(input_tensor), data(dilation_map), nullptr};
  // torch has tensors of zeros that own no memory (in forward-mode differentiation).
  if ((!tensors.input && geometry.input_numel() > 0) || (!tensors.dilation_map && geometry.map_numel() > 0)) return py::none();
  const py::object output = new_output(geometry, input.dims == 4, torch.dtypes[input.type]);
  tensors.output = data(output);
  const int threads = static_cast<int>(integer(own(PyObject_CallNoArgs(torch.get_num_threads)).ptr()));
  {
    const py::gil_scoped_release release;
    ddu::cpu::unfold(geometry, types, tensors, threads);
  }
  return output;
}

void attach(const py::tuple& dtypes, py::object empty_strided, py::object get_num_threads) {
  for (int i = 0; i < 4; ++i) torch.dtypes[i] = py::object(dtypes[static_cast<std::size_t>(i)]).release().ptr();
  torch.empty_strided = empty_strided.release().ptr();
  torch.get_num_threads = get_num_threads.release().ptr();
}

}  // namespace

void add_direct_calls(py::module_& module) {
  module.def("attach", &attach);
  module.def("cpu_unfold", &cpu_unfold);
}
