#pragma once

#include <pybind11/pybind11.h>

#include <exception>

/// The Python exception for one of libddu's.
void translate(std::exception_ptr thrown);

/// What the package says of a machine that this build cannot serve: the text of an exception. `message` is libddu's.
pybind11::object explain(const char* message);

/// Adds to `module` the functions that take tensors instead of addresses; see direct.cpp.
void add_direct_calls(pybind11::module_& module);
