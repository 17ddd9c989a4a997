// The kernels called with tensors. On a small tensor the operator costs less than reading its tensors' attributes from Python,
// converting arguments and asking torch what is switched on, so that is done here, through CPython's own interface and, of a
// torch that offers it, DLPack's: nothing is compiled against torch.

#include "direct.h"

#include <cstdint>
#include <exception>
#include <iterator>

#include "ddu/unfold.h"
#include "tensors.h"

namespace {

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
  bool is_shape_of_output(const Tensor& tensor) const {
    const std::int64_t sizes[] = {geometry.batch, geometry.channels * geometry.taps(), geometry.positions()};
    const int first = 4 - input.dims;  // unbatched calls have no batch
    return tensor.dims == 3 - first && std::equal(sizes + first, std::end(sizes), tensor.sizes);
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

/// Scratch memory and its address; None and null for none.
py::object new_workspace(std::int64_t device, std::size_t bytes, void*& address) {
  if (bytes == 0) return py::none();
  const auto size = static_cast<std::int64_t>(bytes);
  py::object workspace = empty(device, &size, 1, torch.uint8);
  address = address_of(workspace.ptr());
  return workspace;
}

/// The same on the CPU. Tiny tensors, on which an allocation counts, get it on the stack.
class LocalWorkspace {
 public:
  LocalWorkspace(std::size_t bytes, void*& address) {
    address = small_;
    if (bytes > sizeof small_) large_ = new_workspace(kCpu, bytes, address);
  }

 private:
  alignas(64) unsigned char small_[32 * 1024];
  py::object large_;
};

/// The output; None where the call needs its caller's help.
py::object unfold(PyObject* const* arguments) {
  Call c;
  if (!c.read(arguments)) return py::none();
  const ddu::Geometry& g = c.geometry;
  const std::int64_t sizes[] = {g.batch, g.channels * g.taps(), g.positions()};
  const int first = 4 - c.input.dims;  // unbatched calls have no batch
  py::object output = empty(c.input.device, sizes + first, 3 - first, torch.dtypes[c.input.type]);
  ddu::Unfold tensors{c.input.data, c.map.data, address_of(output.ptr()), nullptr, ddu::MemoryFormat::contiguous};
  if (c.on_cpu()) {
    const int threads = c.threads();
    const LocalWorkspace workspace(ddu::cpu::unfold_workspace_bytes(g, c.types, tensors, threads), tensors.workspace);
    const py::gil_scoped_release release;
    ddu::cpu::unfold(g, c.types, tensors, threads);
  } else {
    const py::object workspace =
        new_workspace(c.input.device, ddu::cuda::unfold_workspace_bytes(g, c.types, tensors), tensors.workspace);
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

/// The pair of gradients, None for one that is not wanted; None alone where the call needs its caller's help.
py::object unfold_backward(PyObject* const* arguments) {
  Call c;
  Tensor grad;
  if (!c.read(arguments + 1) || !grad.read(arguments[0])) return py::none();
  if (grad.device != c.input.device || grad.type != c.input.type || !c.is_shape_of_output(grad) || !grad.find_data()) {
    return py::none();
  }
  ddu::UnfoldBackward tensors{grad.data, c.input.data, c.map.data, nullptr, nullptr, nullptr, ddu::MemoryFormat::contiguous};
  const py::object grad_input = new_gradient(c.input, arguments[8], tensors.grad_input);
  const py::object grad_map = new_gradient(c.map, arguments[9], tensors.grad_map);
  if (c.on_cpu()) {
    const int threads = c.threads();
    const LocalWorkspace workspace(ddu::cpu::unfold_backward_workspace_bytes(c.geometry, c.types, tensors, threads),
                                   tensors.workspace);
    const py::gil_scoped_release release;
    ddu::cpu::unfold_backward(c.geometry, c.types, tensors, threads);
  } else {
    const bool deterministic = call(torch.is_deterministic).ptr() == Py_True;
    const std::size_t bytes = ddu::cuda::unfold_backward_workspace_bytes(c.geometry, c.types, tensors, deterministic);
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

// Forward and backward of autograd.Function.

/// (context, input, dilation_map, options) -> output.
py::object plain_forward(PyObject* const* arguments) {
  PyObject *context = arguments[0], *options = arguments[3];
  const py::object saved = own(PyTuple_Pack(2, arguments[1], arguments[2]));
  set(context, name_to_save, saved.ptr());  // all that save_for_backward does
  set(context, name_options, options);
  PyObject* all[kUnfoldArguments] = {arguments[1], arguments[2]};
  for (int i = 0; i < 5; ++i) all[2 + i] = PyTuple_GET_ITEM(options, i);
  py::object output = unfold(all);
  return output.is_none() ? own(PyObject_Vectorcall(torch.forward, arguments + 1, 3, nullptr)) : output;
}

/// (context, gradient) -> gradients of input, dilation_map and options.
py::object plain_backward(PyObject* const* arguments) {
  PyObject *context = arguments[0], *grad = arguments[1];
  const py::object saved = get(context, name_saved_tensors), wanted = get(context, name_needs_input_grad);
  const py::object options = get(context, name_options);
  const auto item = [](const py::object& tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple.ptr(), i); };
  PyObject* all[kBackwardArguments] = {grad, item(saved, 0), item(saved, 1)};
  if (call(torch.is_grad_enabled).ptr() != Py_True && is_plain(all, 3)) {
    for (int i = 0; i < 5; ++i) all[3 + i] = item(options, i);
    for (int i = 0; i < 2; ++i) all[8 + i] = item(wanted, i);
    const py::object grads = unfold_backward(all);
    if (!grads.is_none()) return own(PyTuple_Pack(3, item(grads, 0), item(grads, 1), Py_None));
  }
  return own(PyObject_Vectorcall(torch.backward, arguments, 2, nullptr));
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
                         method("plain_forward", &with_arguments<plain_forward, 4>),
                         method("plain_backward", &with_arguments<plain_backward, 2>),
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
  torch.forward = take("forward");
  torch.backward = take("backward");
  PyObject* exchange = take("exchange");
  if (exchange == Py_None) return;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(exchange, dlpack::kCapsuleName));
  if (!api) throw py::error_already_set();
  if (api->major == 1 && api->view) torch.exchange = api;
}

}  // namespace

py::object explain(const char* message) {
  const py::object given = py::str(message);
  return torch.explain ? own(PyObject_CallOneArg(torch.explain, given.ptr())) : given;
}

void add_direct_calls(py::module_& module) {
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
  module.def("attach", &attach);
  module.attr("apply_backward") = own(PyInstanceMethod_New(module.attr("plain_backward").ptr()));  // with its context as self
}
