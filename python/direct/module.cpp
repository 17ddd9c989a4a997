// What the direct calls of all operators share, as functions of the module: attach(), is_plain(), record().

#include <iterator>

#include "call.h"

namespace direct {
namespace {

/// By keyword, so that the caller says which is which.
void attach(const py::kwargs& given) {
  const auto take = [&](const char* name) { return py::object(given[name]).release().ptr(); };
  const auto take_all = [&](const char* name, auto& array) {
    const auto values = py::cast<py::tuple>(given[name]);
    for (std::size_t i = 0; i < std::size(array); ++i) array[i] = py::object(values[i]).release().ptr();
  };
  take_all("tensor_types", attached.tensor_types);
  take_all("dtypes", attached.dtypes);
  attached.uint8 = take("uint8");
  attached.channels_last = take("channels_last");
  attached.empty_on_cpu = take("empty_on_cpu");
  attached.empty_on_cuda = take("empty_on_cuda");
  attached.get_num_threads = take("get_num_threads");
  attached.current_device = take("current_device");
  attached.current_stream = take("current_stream");
  attached.is_deterministic = take("is_deterministic");
  attached.is_grad_enabled = take("is_grad_enabled");
  attached.is_autocast_enabled = take("is_autocast_enabled");
  attached.forward_ad = take("forward_ad");
  attached.watchers = take("watchers");
  attached.explain = take("explain");
  attached.exchange = nullptr;
  PyObject* exchange = take("exchange");
  if (exchange == Py_None) return;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(exchange, dlpack::kCapsuleName));
  if (!api) throw py::error_already_set();
  if (api->major == 1 && api->view) attached.exchange = api;
}

PyObject* is_plain_function(PyObject*, PyObject* const* tensors, Py_ssize_t count) {
  return translating([&] { return py::object(py::bool_(is_plain(tensors, count))); });
}

/// (context, *tensors, (output, options)) -> output. The forward of an autograd.Function that has nothing left to compute.
PyObject* record(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return translating([&] {
    PyObject* const result = arguments[count - 1];
    own(PyObject_VectorcallMethod(names::save_for_backward, arguments, static_cast<std::size_t>(count - 1), nullptr));
    set(arguments[0], names::options, PyTuple_GET_ITEM(result, 1));
    return own(Py_NewRef(PyTuple_GET_ITEM(result, 0)));
  });
}

PyMethodDef methods[] = {method("is_plain", &is_plain_function), method("record", &record), {nullptr, nullptr, 0, nullptr}};

}  // namespace

py::object explain(const char* message) {
  const py::object given = py::str(message);
  return attached.explain ? own(PyObject_CallOneArg(attached.explain, given.ptr())) : given;
}

void add_functions(py::module_& module) {
  add_methods(module, methods);
  module.def("attach", &attach);
  add_unfold(module);
  add_aggregate(module);
  add_correlate(module);
  add_attention(module);
  add_conv2d(module);
}

}  // namespace direct
