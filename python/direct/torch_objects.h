#pragma once

// What the direct calls use of torch. Nothing here is compiled against torch: Python hands its objects over.

#include <pybind11/pybind11.h>

#include "dlpack.h"

namespace direct {

/// Objects of torch, kept until the process ends. Those for CUDA are None where torch has none.
struct TorchObjects {
  PyObject* tensor_types[2];  // Tensor and Parameter
  PyObject* dtypes[4];        // in the order of ddu::DType
  PyObject* uint8;
  PyObject* channels_last;
  PyObject* empty_on_cpu;   // (sizes, strides, dtype) -> tensor
  PyObject* empty_on_cuda;  // the same on the current CUDA device
  PyObject* get_num_threads;
  PyObject* current_device;
  PyObject* current_stream;  // index of a device -> address
  PyObject* is_deterministic;
  PyObject* is_grad_enabled;
  PyObject* is_autocast_enabled;
  PyObject* forward_ad;                 // its _current_level is -1 where no forward-mode differentiation is going on
  PyObject* watchers;                   // tuple of functions: while one of them returns something true, calls are not plain
  PyObject* explain;                    // libddu's message that it cannot serve a device -> what to do about it
  const dlpack::ExchangeApi* exchange;  // null before torch 2.10
};

inline TorchObjects attached{};

}  // namespace direct
