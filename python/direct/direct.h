#pragma once

#include <pybind11/pybind11.h>

#include <exception>

/// The Python exception for one of libddu's.
void translate(std::exception_ptr thrown);

namespace direct {

/// What the package says of a machine that this build cannot serve: the text of an exception. `message` is libddu's.
pybind11::object explain(const char* message);

/// Adds to `module` the functions that take tensors instead of addresses: those of every operator, and attach().
void add_functions(pybind11::module_& module);

/// The functions of one operator, each in the file of its name.
void add_unfold(pybind11::module_& module);
void add_aggregate(pybind11::module_& module);
void add_correlate(pybind11::module_& module);
void add_attention(pybind11::module_& module);
void add_conv2d(pybind11::module_& module);

}  // namespace direct
