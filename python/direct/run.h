#pragma once

// A kernel called with pointers, on the device of the tensors, with scratch memory.

#include "ddu/dtype.h"
#include "tensor.h"

namespace direct {

/// The functions of libddu for one direction of an operator. `Sizes` is its geometry, `Pointers` its struct of pointers.
template <class Sizes, class Pointers>
struct Forward {
  void (*cpu)(const Sizes&, ddu::Types, const Pointers&, int threads);
  ddu::size_t (*cpu_bytes)(const Sizes&, ddu::Types, const Pointers&, int threads);
  void (*cuda)(const Sizes&, ddu::Types, const Pointers&, ddu::cuda::Stream);
  ddu::size_t (*cuda_bytes)(const Sizes&, ddu::Types, const Pointers&);
};
template <class Sizes, class Pointers>
struct Backward {
  void (*cpu)(const Sizes&, ddu::Types, const Pointers&, int threads);
  ddu::size_t (*cpu_bytes)(const Sizes&, ddu::Types, const Pointers&, int threads);
  void (*cuda)(const Sizes&, ddu::Types, const Pointers&, bool deterministic, ddu::cuda::Stream);
  ddu::size_t (*cuda_bytes)(const Sizes&, ddu::Types, const Pointers&, bool deterministic);
};

template <template <class, class> class Functions, class Sizes, class Pointers>
void run_on_cpu(const Functions<Sizes, Pointers>& functions, const Sizes& sizes, ddu::Types types, Pointers& pointers) {
  const int count = threads();
  const py::object workspace = new_cpu_workspace(functions.cpu_bytes(sizes, types, pointers, count), pointers.workspace);
  const py::gil_scoped_release release;
  functions.cpu(sizes, types, pointers, count);
}

template <class Sizes, class Pointers>
void run(std::int64_t device, const Forward<Sizes, Pointers>& functions, const Sizes& sizes, ddu::Types types,
         Pointers& pointers) {
  if (device == kCpu) return run_on_cpu(functions, sizes, types, pointers);
  const py::object workspace = new_workspace(device, functions.cuda_bytes(sizes, types, pointers), pointers.workspace);
  const ddu::cuda::Stream stream = stream_of(device);
  const py::gil_scoped_release release;
  functions.cuda(sizes, types, pointers, stream);
}

template <class Sizes, class Pointers>
void run(std::int64_t device, const Backward<Sizes, Pointers>& functions, const Sizes& sizes, ddu::Types types,
         Pointers& pointers) {
  if (device == kCpu) return run_on_cpu(functions, sizes, types, pointers);
  const bool deterministic = call(attached.is_deterministic).ptr() == Py_True;
  const std::size_t bytes = functions.cuda_bytes(sizes, types, pointers, deterministic);
  const py::object workspace = new_workspace(device, bytes, pointers.workspace);
  const ddu::cuda::Stream stream = stream_of(device);
  const py::gil_scoped_release release;
  functions.cuda(sizes, types, pointers, deterministic, stream);
}

}  // namespace direct
