// The forward of CPU tensors as one call. On a small tensor the operator costs less than reading its tensors' attributes from
// Python, converting arguments and asking torch what is switched on, so that is done here, through CPython's own interface:
// nothing is compiled against torch.

#include "direct.h"

#include <algorithm>
#include <cstdint>

#include "ddu/unfold.h"

namespace py = pybind11;

namespace {

/// Objects of torch, given by attach() and kept until the process ends.
struct Torch {
  PyObject* tensor_types[2];  // Tensor and Parameter
  PyObject* dtypes[4];        // in the order of ddu::DType
  PyObject* empty_strided;    // (sizes, strides, dtype) -> tensor on the CPU
  PyObject* get_num_threads;
  PyObject* is_grad_enabled;
  PyObject* is_autocast_enabled;
  PyObject* forward_ad;  // the module, whose _current_level is -1 where no forward-mode differentiation is going on
  PyObject* watchers;    // tuple of functions: while one of them returns something true, calls are not plain
  PyObject* record;      // (input, dilation_map, options) -> output with its backward
} torch{};

PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }
PyObject* const name_shape = name("shape");
PyObject* const name_dtype = name("dtype");
PyObject* const name_is_cpu = name("is_cpu");
PyObject* const name_is_neg = name("is_neg");
PyObject* const name_is_contiguous = name("is_contiguous");
PyObject* const name_data_ptr = name("data_ptr");
PyObject* const name_requires_grad = name("requires_grad");
PyObject* const name_current_level = name("_current_level");

py::object own(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

py::object get(PyObject* object, PyObject* attribute) { return own(PyObject_GetAttr(object, attribute)); }
py::object call(PyObject* function) { return own(PyObject_CallNoArgs(function)); }
py::object call(PyObject* object, PyObject* method) { return own(PyObject_CallMethodNoArgs(object, method)); }

std::int64_t integer(py::handle object) {
  const std::int64_t value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// --- What a call is made of -------------------------------------------------------------------------------------------

struct Tensor {
  std::int64_t sizes[4];
  int dims;
  int type;

  /// False for what the kernels cannot read as it lies: the caller has a slower way for it, or the error message.
  bool read(PyObject* tensor) {
    if (get(tensor, name_is_cpu).ptr() != Py_True) return false;
    const py::object dtype = get(tensor, name_dtype), shape = get(tensor, name_shape);
    for (type = 0; type < 4 && dtype.ptr() != torch.dtypes[type]; ++type) {
    }
    if (type == 4 || PyTuple_GET_SIZE(shape.ptr()) > 4) return false;
    dims = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    for (int i = 0; i < dims; ++i) sizes[i] = integer(PyTuple_GET_ITEM(shape.ptr(), i));
    return call(tensor, name_is_contiguous).ptr() == Py_True && call(tensor, name_is_neg).ptr() == Py_False;
  }
  ddu::Shape shape() const { return {sizes, dims}; }
};

/// The address of a tensor's memory, null for one that has none: a wrapper of torch's, or zeros in forward-mode
/// differentiation.
void* data(PyObject* tensor) {
  const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, name_data_ptr));
  if (address) return PyLong_AsVoidPtr(address.ptr());
  if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
  PyErr_Clear();
  return nullptr;
}

/// False for what is not an int of 64 bits.
bool read_integer(PyObject* object, std::int64_t& value) {
  int overflow = 0;
  if (!PyLong_CheckExact(object)) return false;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

/// An int, or a tuple of two; false for anything else.
bool read_pair(PyObject* object, std::int64_t (&pair)[2]) {
  if (PyTuple_CheckExact(object) && PyTuple_GET_SIZE(object) == 2) {
    return read_integer(PyTuple_GET_ITEM(object, 0), pair[0]) && read_integer(PyTuple_GET_ITEM(object, 1), pair[1]);
  }
  return read_integer(object, pair[0]) && read_integer(object, pair[1]);
}

bool read_options(PyObject* const* arguments, ddu::Options& options) {
  return read_pair(arguments[0], options.kernel_size) && read_pair(arguments[1], options.stride) &&
         read_pair(arguments[2], options.padding) && read_pair(arguments[3], options.dilation) &&
         read_integer(arguments[4], options.groups);
}

py::object new_output(const ddu::Geometry& g, bool batched, PyObject* dtype) {
  const std::int64_t columns = g.channels * g.taps(), positions = g.positions();
  const std::int64_t sizes[] = {g.batch, columns, positions},
                     strides[] = {std::max<std::int64_t>(columns, 1) * positions, positions, 1};
  const int first = batched ? 0 : 1;
  const py::object size_tuple = own(PyTuple_New(3 - first)), stride_tuple = own(PyTuple_New(3 - first));
  for (int i = first; i < 3; ++i) {
    PyTuple_SET_ITEM(size_tuple.ptr(), i - first, PyLong_FromLongLong(sizes[i]));
    PyTuple_SET_ITEM(stride_tuple.ptr(), i - first, PyLong_FromLongLong(strides[i]));
  }
  PyObject* arguments[] = {size_tuple.ptr(), stride_tuple.ptr(), dtype};
  return own(PyObject_Vectorcall(torch.empty_strided, arguments, 3, nullptr));
}

// --- The functions ----------------------------------------------------------------------------------------------------

constexpr Py_ssize_t kCallArguments = 7;  // input, dilation_map, kernel_size, stride, padding, dilation, groups

/// The output; None where the call needs its caller's help.
py::object cpu_unfold(PyObject* const* arguments) {
  Tensor input, map;
  ddu::Options options;
  if (!input.read(arguments[0]) || !map.read(arguments[1]) || !read_options(arguments + 2, options)) return py::none();
  const ddu::Types types{static_cast<ddu::DType>(input.type), static_cast<ddu::DType>(map.type)};
  ddu::check_types(types);
  const ddu::Geometry geometry = ddu::make_geometry(input.shape(), map.shape(), options);
  ddu::Forward tensors{data(arguments[0]), data(arguments[1]), nullptr};
  if ((!tensors.input && geometry.input_numel() > 0) || (!tensors.dilation_map && geometry.map_numel() > 0)) return py::none();
  py::object output = new_output(geometry, input.dims == 4, torch.dtypes[input.type]);
  tensors.output = data(output.ptr());
  const int threads = static_cast<int>(integer(call(torch.get_num_threads)));
  {
    const py::gil_scoped_release release;
    ddu::cpu::unfold(geometry, types, tensors, threads);
  }
  return output;
}

/// Whether tensors are torch's own, with nobody but plain autograd looking: the kernels may run without torch's dispatcher.
bool is_plain(PyObject* const* tensors, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensors[i]));
    if (type != torch.tensor_types[0] && type != torch.tensor_types[1]) return false;
  }
  if (integer(get(torch.forward_ad, name_current_level)) >= 0) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch.watchers); ++i) {
    const int on = PyObject_IsTrue(call(PyTuple_GET_ITEM(torch.watchers, i)).ptr());
    if (on < 0) throw py::error_already_set();
    if (on) return false;
  }
  return true;
}

/// The output of a plain call on the CPU without autocast, None for any other.
py::object plain_unfold(PyObject* const* arguments) {
  if (!is_plain(arguments, 2) || get(arguments[0], name_is_cpu).ptr() != Py_True) return py::none();
  if (call(torch.is_autocast_enabled).ptr() == Py_True) return py::none();
  const bool differentiable =
      get(arguments[0], name_requires_grad).ptr() == Py_True || get(arguments[1], name_requires_grad).ptr() == Py_True;
  if (!differentiable || call(torch.is_grad_enabled).ptr() != Py_True) return cpu_unfold(arguments);
  const py::object options = own(PyTuple_New(5));
  for (int i = 0; i < 5; ++i) PyTuple_SET_ITEM(options.ptr(), i, Py_NewRef(arguments[2 + i]));
  PyObject* recorded[] = {arguments[0], arguments[1], options.ptr()};
  return own(PyObject_Vectorcall(torch.record, recorded, 3, nullptr));
}

template <class Body>
PyObject* translating(Body body) {
  try {
    return body().release().ptr();
  } catch (py::error_already_set& raised) {
    raised.restore();
  } catch (...) {
    translate(std::current_exception());
  }
  return nullptr;
}

template <py::object (*function)(PyObject* const*)>
PyObject* with_call_arguments(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count == kCallArguments) return translating([&] { return function(arguments); });
  return PyErr_Format(PyExc_TypeError, "expected %zd positional arguments, got %zd", kCallArguments, count);
}

PyObject* is_plain_function(PyObject*, PyObject* const* tensors, Py_ssize_t count) {
  return translating([&] { return py::object(py::bool_(is_plain(tensors, count))); });
}

template <class Function>
PyMethodDef method(const char* name, Function* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr};
}

// METH_FASTCALL, which pybind11 does not use, hands over arguments without building a tuple.
PyMethodDef methods[] = {method("cpu_unfold", &with_call_arguments<cpu_unfold>),
                         method("plain_unfold", &with_call_arguments<plain_unfold>),
                         method("is_plain", &is_plain_function),
                         {nullptr, nullptr, 0, nullptr}};

void attach(const py::tuple& tensor_types, const py::tuple& dtypes, py::object empty_strided, py::object get_num_threads,
            py::object is_grad_enabled, py::object is_autocast_enabled, py::object forward_ad, py::tuple watchers,
            py::object record) {
  for (std::size_t i = 0; i < 2; ++i) torch.tensor_types[i] = py::object(tensor_types[i]).release().ptr();
  for (std::size_t i = 0; i < 4; ++i) torch.dtypes[i] = py::object(dtypes[i]).release().ptr();
  torch.empty_strided = empty_strided.release().ptr();
  torch.get_num_threads = get_num_threads.release().ptr();
  torch.is_grad_enabled = is_grad_enabled.release().ptr();
  torch.is_autocast_enabled = is_autocast_enabled.release().ptr();
  torch.forward_ad = forward_ad.release().ptr();
  torch.watchers = watchers.release().ptr();
  torch.record = record.release().ptr();
}

}  // namespace

void add_direct_calls(py::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
  module.def("attach", &attach);
}
