#pragma once

// CPython's own interface, with owners and exceptions: what pybind11 does at several times the cost on a tiny call.

#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

namespace direct {

inline py::object own(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

inline py::object get(PyObject* object, PyObject* attribute) { return own(PyObject_GetAttr(object, attribute)); }
inline void set(PyObject* object, PyObject* attribute, PyObject* value) {
  if (PyObject_SetAttr(object, attribute, value) != 0) throw py::error_already_set();
}
inline py::object call(PyObject* function) { return own(PyObject_CallNoArgs(function)); }
inline py::object call(PyObject* object, PyObject* method) { return own(PyObject_CallMethodNoArgs(object, method)); }

inline bool is_true(PyObject* object) {
  const int value = PyObject_IsTrue(object);
  if (value < 0) throw py::error_already_set();
  return value != 0;
}

inline std::int64_t integer(py::handle object) {
  const std::int64_t value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

inline py::object tuple_of(const std::int64_t* values, int count) {
  py::object tuple = own(PyTuple_New(count));
  for (int i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.ptr(), i, own(PyLong_FromLongLong(values[i])).release().ptr());
  return tuple;
}

inline py::object tuple_of(PyObject* const* values, Py_ssize_t count) {
  py::object tuple = own(PyTuple_New(count));
  for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.ptr(), i, Py_NewRef(values[i]));
  return tuple;
}

/// Names of attributes, interned once.
namespace names {

inline PyObject* intern(const char* text) { return PyUnicode_InternFromString(text); }
inline PyObject* const shape = intern("shape");
inline PyObject* const dtype = intern("dtype");
inline PyObject* const is_cpu = intern("is_cpu");
inline PyObject* const is_cuda = intern("is_cuda");
inline PyObject* const get_device = intern("get_device");
inline PyObject* const is_neg = intern("is_neg");
inline PyObject* const contiguous = intern("contiguous");
inline PyObject* const is_contiguous = intern("is_contiguous");
inline PyObject* const memory_format = intern("memory_format");
inline PyObject* const layout = intern("layout");
inline PyObject* const data_ptr = intern("data_ptr");
inline PyObject* const requires_grad = intern("requires_grad");
inline PyObject* const current_level = intern("_current_level");
inline PyObject* const save_for_backward = intern("save_for_backward");
inline PyObject* const needs_input_grad = intern("needs_input_grad");
inline PyObject* const options = intern("options");

}  // namespace names
}  // namespace direct
