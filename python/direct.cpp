// The kernels called with tensors. On a small tensor the operator costs less than reading its tensors' attributes from Python,
// converting arguments and asking torch what is switched on, so that is done here, through CPython's own interface: nothing
// is compiled against torch.

#include "direct.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <numeric>

#include "ddu/unfold.h"

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
} torch{};

PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }
PyObject* const name_shape = name("shape");
PyObject* const name_dtype = name("dtype");
PyObject* const name_is_cpu = name("is_cpu");
PyObject* const name_is_cuda = name("is_cuda");
PyObject* const name_get_device = name("get_device");
PyObject* const name_is_neg = name("is_neg");
PyObject* const name_contiguous = name("contiguous");
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

py::object tuple_of(const std::int64_t* values, int count) {
  py::object tuple = own(PyTuple_New(count));
  for (int i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.ptr(), i, own(PyLong_FromLongLong(values[i])).release().ptr());
  return tuple;
}

// --- What a call is made of -------------------------------------------------------------------------------------------

constexpr std::int64_t kCpu = -1;  // as a device; the others are CUDA's indices

/// The address of a tensor's memory, null for one that has none: a wrapper of torch's, or zeros in forward-mode
/// differentiation.
void* address_of(PyObject* tensor) {
  const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, name_data_ptr));
  if (address) return PyLong_AsVoidPtr(address.ptr());
  if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
  PyErr_Clear();
  return nullptr;
}

struct Tensor {
  PyObject* object = nullptr;  // the caller's
  py::object contiguous;       // the same, or a copy of it as the kernels read it
  void* data = nullptr;
  std::int64_t device = kCpu;
  std::int64_t sizes[4];
  int dims = 0, type = 0;

  /// False for what has no kernels: the caller has a slower way for it, or the error message.
  bool read(PyObject* tensor) {
    object = tensor;
    if (get(tensor, name_is_cpu).ptr() != Py_True) {
      if (get(tensor, name_is_cuda).ptr() != Py_True) return false;
      device = integer(call(tensor, name_get_device));
    }
    const py::object dtype = get(tensor, name_dtype), shape = get(tensor, name_shape);
    while (type < 4 && dtype.ptr() != torch.dtypes[type]) ++type;
    if (type == 4 || PyTuple_GET_SIZE(shape.ptr()) > 4) return false;
    dims = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    for (int i = 0; i < dims; ++i) sizes[i] = integer(PyTuple_GET_ITEM(shape.ptr(), i));
    return true;
  }
  /// Once sizes are checked, as this may copy. False for what has no memory of its own.
  bool find_data() {
    if (call(object, name_is_neg).ptr() != Py_False) return false;
    contiguous = call(object, name_contiguous);
    data = address_of(contiguous.ptr());
    return data || numel() == 0;
  }
  std::int64_t numel() const { return std::accumulate(sizes, sizes + dims, std::int64_t{1}, std::multiplies<>()); }
  ddu::Shape shape() const { return {sizes, dims}; }
};

/// Memory for `device`, which is the current one. Nothing fills it, as torch.empty does under deterministic algorithms.
py::object empty(std::int64_t device, const std::int64_t* sizes, int dims, PyObject* dtype) {
  std::int64_t strides[4], stride = 1;
  for (int i = dims; i-- > 0; stride *= std::max<std::int64_t>(sizes[i], 1)) strides[i] = stride;
  const py::object size_tuple = tuple_of(sizes, dims), stride_tuple = tuple_of(strides, dims);
  PyObject* arguments[] = {size_tuple.ptr(), stride_tuple.ptr(), dtype};
  return own(PyObject_Vectorcall(device == kCpu ? torch.empty_on_cpu : torch.empty_on_cuda, arguments, 3, nullptr));
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

/// The arguments that both functions begin with: input, dilation_map, kernel_size, stride, padding, dilation, groups.
struct Call {
  Tensor input, map;
  ddu::Types types;
  ddu::Geometry geometry;

  /// False where it needs its caller's help; throws for what does not fit together.
  bool read(PyObject* const* arguments) {
    ddu::Options options;
    if (!input.read(arguments[0]) || !map.read(arguments[1]) || !read_options(arguments + 2, options)) return false;
    if (input.device != map.device) return false;
    if (input.device != kCpu && input.device != integer(call(torch.current_device))) return false;
    types = {static_cast<ddu::DType>(input.type), static_cast<ddu::DType>(map.type)};
    ddu::check_types(types);
    geometry = ddu::make_geometry(input.shape(), map.shape(), options);
    return input.find_data() && map.find_data();
  }
  bool on_cpu() const { return input.device == kCpu; }
  int threads() const { return static_cast<int>(integer(call(torch.get_num_threads))); }
  ddu::cuda::Stream stream() const {
    const py::object index = own(PyLong_FromLongLong(input.device));
    const py::object address = own(PyObject_CallOneArg(torch.current_stream, index.ptr()));
    return static_cast<ddu::cuda::Stream>(PyLong_AsVoidPtr(address.ptr()));
  }
};

// --- The functions ----------------------------------------------------------------------------------------------------

constexpr Py_ssize_t kUnfoldArguments = 7;     // as Call reads them
constexpr Py_ssize_t kBackwardArguments = 10;  // grad, those, and whether the gradients of input and map are wanted

/// The output; None where the call needs its caller's help.
py::object unfold(PyObject* const* arguments) {
  Call c;
  if (!c.read(arguments)) return py::none();
  const ddu::Geometry& g = c.geometry;
  const std::int64_t sizes[] = {g.batch, g.channels * g.taps(), g.positions()};
  const int first = 4 - c.input.dims;  // unbatched calls have no batch
  py::object output = empty(c.input.device, sizes + first, 3 - first, torch.dtypes[c.input.type]);
  const ddu::Forward tensors{c.input.data, c.map.data, address_of(output.ptr())};
  if (c.on_cpu()) {
    const int threads = c.threads();
    const py::gil_scoped_release release;
    ddu::cpu::unfold(g, c.types, tensors, threads);
  } else {
    const ddu::cuda::Stream stream = c.stream();
    const py::gil_scoped_release release;
    ddu::cuda::unfold(g, c.types, tensors, stream);
  }
  return output;
}

/// A gradient for `of` and its address; None and null if it is not wanted.
py::object new_gradient(const Tensor& of, PyObject* wanted, void*& address) {
  const int want = PyObject_IsTrue(wanted);
  if (want < 0) throw py::error_already_set();
  if (!want) return py::none();
  py::object gradient = empty(of.device, of.sizes, of.dims, torch.dtypes[of.type]);
  address = address_of(gradient.ptr());
  return gradient;
}

/// Scratch memory and its address; None and null for none.
py::object new_workspace(std::int64_t device, std::size_t bytes, void*& address) {
  if (bytes == 0) return py::none();
  const auto size = static_cast<std::int64_t>(bytes);
  py::object workspace = empty(device, &size, 1, torch.uint8);
  address = address_of(workspace.ptr());
  return workspace;
}

/// The pair of gradients, None for one that is not wanted; None alone where the call needs its caller's help.
py::object unfold_backward(PyObject* const* arguments) {
  Call c;
  Tensor grad;
  if (!c.read(arguments + 1) || !grad.read(arguments[0])) return py::none();
  if (grad.device != c.input.device || grad.type != c.input.type || grad.numel() != c.geometry.output_numel() ||
      !grad.find_data()) {
    return py::none();
  }
  ddu::Backward tensors{grad.data, c.input.data, c.map.data, nullptr, nullptr, nullptr};
  const py::object grad_input = new_gradient(c.input, arguments[8], tensors.grad_input);
  const py::object grad_map = new_gradient(c.map, arguments[9], tensors.grad_map);
  if (c.on_cpu()) {
    const int threads = c.threads();
    const std::size_t bytes = ddu::cpu::workspace_bytes(c.geometry, c.types, tensors, threads);
    const py::object workspace = new_workspace(kCpu, bytes, tensors.workspace);
    const py::gil_scoped_release release;
    ddu::cpu::unfold_backward(c.geometry, c.types, tensors, threads);
  } else {
    const bool deterministic = call(torch.is_deterministic).ptr() == Py_True;
    const std::size_t bytes = ddu::cuda::workspace_bytes(c.geometry, c.types, tensors, deterministic);
    const py::object workspace = new_workspace(c.input.device, bytes, tensors.workspace);
    const ddu::cuda::Stream stream = c.stream();
    const py::gil_scoped_release release;
    ddu::cuda::unfold_backward(c.geometry, c.types, tensors, deterministic, stream);
  }
  return own(PyTuple_Pack(2, grad_input.ptr(), grad_map.ptr()));
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

/// The output of a plain call without autocast, with its backward; None for any other.
py::object plain_unfold(PyObject* const* arguments) {
  if (!is_plain(arguments, 2) || call(torch.is_autocast_enabled).ptr() == Py_True) return py::none();
  const bool differentiable =
      get(arguments[0], name_requires_grad).ptr() == Py_True || get(arguments[1], name_requires_grad).ptr() == Py_True;
  if (!differentiable || call(torch.is_grad_enabled).ptr() != Py_True) return unfold(arguments);
  const py::object options = own(PyTuple_New(5));
  for (int i = 0; i < 5; ++i) PyTuple_SET_ITEM(options.ptr(), i, Py_NewRef(arguments[2 + i]));
  PyObject* recorded[] = {arguments[0], arguments[1], options.ptr()};
  return own(PyObject_Vectorcall(torch.record, recorded, 3, nullptr));
}

/// The gradients of a plain call that nobody differentiates again, None for any other.
py::object plain_backward(PyObject* const* arguments) {
  if (call(torch.is_grad_enabled).ptr() == Py_True || !is_plain(arguments, 3)) return py::none();
  return unfold_backward(arguments);
}

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

PyObject* is_plain_function(PyObject*, PyObject* const* tensors, Py_ssize_t count) {
  return translating([&] { return py::object(py::bool_(is_plain(tensors, count))); });
}

template <class Function>
PyMethodDef method(const char* name, Function* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr};
}

// METH_FASTCALL, which pybind11 does not use, hands over arguments without building a tuple.
PyMethodDef methods[] = {method("unfold", &with_arguments<unfold, kUnfoldArguments>),
                         method("unfold_backward", &with_arguments<unfold_backward, kBackwardArguments>),
                         method("plain_unfold", &with_arguments<plain_unfold, kUnfoldArguments>),
                         method("plain_backward", &with_arguments<plain_backward, kBackwardArguments>),
                         method("is_plain", &is_plain_function),
                         {nullptr, nullptr, 0, nullptr}};

/// By keyword, so that the caller says which is which.
void attach(const py::kwargs& given) {
  const auto take = [&](const char* name) { return py::object(given[name]).release().ptr(); };
  const auto take_all = [&](const char* name, auto& array) {
    const auto values = py::cast<py::tuple>(given[name]);
    for (std::size_t i = 0; i < std::size(array); ++i) array[i] = py::object(values[i]).release().ptr();
  };
  take_all("tensor_types", torch.tensor_types);
  take_all("dtypes", torch.dtypes);
  torch.uint8 = take("uint8");
  torch.empty_on_cpu = take("empty_on_cpu");
  torch.empty_on_cuda = take("empty_on_cuda");
  torch.get_num_threads = take("get_num_threads");
  torch.current_device = take("current_device");
  torch.current_stream = take("current_stream");
  torch.is_deterministic = take("is_deterministic");
  torch.is_grad_enabled = take("is_grad_enabled");
  torch.is_autocast_enabled = take("is_autocast_enabled");
  torch.forward_ad = take("forward_ad");
  torch.watchers = take("watchers");
  torch.record = take("record");
  torch.explain = take("explain");
}

}  // namespace

py::object explain(const char* message) {
  const py::object given = py::str(message);
  return torch.explain ? own(PyObject_CallOneArg(torch.explain, given.ptr())) : given;
}

void add_direct_calls(py::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
  module.def("attach", &attach);
}
