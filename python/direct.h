#pragma once

#include <pybind11/pybind11.h>

/// Adds to `module` what calls operators with tensors instead of addresses; see direct.cpp.
void add_direct_calls(pybind11::module_& module);
