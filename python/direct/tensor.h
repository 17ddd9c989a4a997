#pragma once

// Tensors as the direct calls meet them: objects of Python, read through CPython's own interface or, where torch offers it,
// DLPack's.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>

#include "ddu/device.h"
#include "ddu/geometry.h"
#include "ddu/memory_format.h"
#include "python_objects.h"
#include "torch_objects.h"

namespace direct {

constexpr std::int64_t kCpu = -1;  // as a device; the others are CUDA's indices

/// Forgets a RuntimeError, as torch raises for a tensor without memory; any other goes on.
inline void forget_runtime_error() {
  if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
  PyErr_Clear();
}

/// The address of a tensor's memory, null for one that has none: a wrapper of torch's, or zeros in forward-mode
/// differentiation.
inline void* address_of(PyObject* tensor) {
  if (dlpack::Tensor view; attached.exchange && attached.exchange->view(tensor, &view) == 0) return view.data;
  if (PyErr_Occurred()) forget_runtime_error();
  const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, names::data_ptr));
  if (address) return PyLong_AsVoidPtr(address.ptr());
  forget_runtime_error();
  return nullptr;
}

struct Tensor {
  static constexpr int kMaxDims = 5;

  PyObject* object = nullptr;  // the caller's
  py::object copy;             // of it, as the kernels read it; unset where it is so already
  void* data = nullptr;
  std::int64_t device = kCpu;
  std::int64_t sizes[kMaxDims];
  int dims = 0, type = 0;
  bool readable = false;                  // as it lies: data is known
  bool asks_about_channels_last = false;  // that is not known yet
  ddu::MemoryFormat format = ddu::MemoryFormat::contiguous;

  /// False for what has no kernels: the caller has a slower way for it, or the error message. `may_be_channels_last`: the
  /// kernels take either format of this tensor.
  bool read(PyObject* tensor, bool may_be_channels_last = false) {
    object = tensor;
    if (tensor == Py_None) return false;
    return attached.exchange ? read_view(may_be_channels_last) : read_attributes(may_be_channels_last);
  }
  /// Once sizes are checked, as this may copy. False for what has no memory of its own.
  bool find_data() {
    if (call(object, names::is_neg).ptr() != Py_False) return false;
    if (asks_about_channels_last && lies_channels_last()) {
      format = ddu::MemoryFormat::channels_last;
      data = address_of(object);
    } else if (!readable) {
      copy = contiguous();
      if (!copy) return forget_other_layout();
      data = address_of(copy.ptr());
    }
    return data || numel() == 0;
  }
  /// The same for a tensor that must lie as another does, whose format is known.
  bool find_data_as(ddu::MemoryFormat wanted) {
    if (asks_about_channels_last || format != wanted) {
      asks_about_channels_last = readable = false;
      format = wanted;
    }
    return find_data();
  }
  std::int64_t numel() const { return std::accumulate(sizes, sizes + dims, std::int64_t{1}, std::multiplies<>()); }
  ddu::Shape shape() const { return {sizes, dims}; }

 private:
  /// The tensor in its format, a copy unless it lies so.
  py::object contiguous() const {
    if (format == ddu::MemoryFormat::contiguous) {
      return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, names::contiguous));
    }
    const py::object keywords = own(PyTuple_Pack(1, names::memory_format));
    PyObject* arguments[] = {object, attached.channels_last};
    return py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(names::contiguous, arguments, 1, keywords.ptr()));
  }
  /// After an error of contiguous(): false for a tensor that is not strided, which the caller explains; else it goes on.
  bool forget_other_layout() {
    py::error_already_set raised;
    if (std::string(py::str(get(object, names::layout))) == "torch.strided") throw raised;
    return false;
  }
  /// Whether kernels for its device read channels_last, and it may lie so.
  bool is_read_channels_last() const {
    return (device == kCpu ? ddu::cpu::reads_channels_last : ddu::cuda::reads_channels_last) && dims == 4 && numel() > 0;
  }
  /// As Python knows it. What lies both ways, for want of channels or pixels, is contiguous.
  bool lies_channels_last() const {
    const py::object keywords = own(PyTuple_Pack(1, names::memory_format));
    PyObject* arguments[] = {object, attached.channels_last};
    const auto ask = [&](PyObject* keyword_names) {
      const auto answer =
          py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(names::is_contiguous, arguments, 1, keyword_names));
      if (!answer) forget_runtime_error();  // a sparse tensor
      return answer.ptr();
    };
    return ask(nullptr) == Py_False && ask(keywords.ptr()) == Py_True;
  }
  bool read_view(bool may_be_channels_last) {
    dlpack::Tensor view;
    if (attached.exchange->view(object, &view) != 0) {
      forget_runtime_error();
      return false;
    }
    if (view.device_type == dlpack::kCuda) device = view.device_index;
    const bool known = view.device_type == dlpack::kCuda || view.device_type == dlpack::kCpu;
    type = type_of(view);
    if (!known || type == 4 || view.dims > kMaxDims) return false;
    dims = view.dims;
    std::copy_n(view.sizes, dims, sizes);
    data = view.data;
    constexpr int contiguous[] = {0, 1, 2, 3, 4}, channels_last[] = {0, 2, 3, 1};
    readable = is_packed(view, contiguous);
    if (!readable && may_be_channels_last && is_read_channels_last() && is_packed(view, channels_last)) {
      readable = true;
      format = ddu::MemoryFormat::channels_last;
    }
    return true;
  }
  /// Whether the elements lie without gaps, the dimensions in the given order.
  static bool is_packed(const dlpack::Tensor& view, const int* order) {
    std::int64_t stride = 1;
    for (int i = view.dims; i-- > 0; stride *= view.sizes[order[i]]) {
      if (view.sizes[order[i]] != 1 && view.strides[order[i]] != stride) return false;
    }
    return true;
  }
  /// In the order of ddu::DType; 4 for any other.
  static int type_of(const dlpack::Tensor& view) {
    if (view.type_code == dlpack::kBfloat) return 1;
    if (view.type_code != dlpack::kFloat) return 4;
    return view.type_bits == 16 ? 0 : view.type_bits == 32 ? 2 : view.type_bits == 64 ? 3 : 4;
  }
  bool read_attributes(bool may_be_channels_last) {
    if (get(object, names::is_cpu).ptr() != Py_True) {
      if (get(object, names::is_cuda).ptr() != Py_True) return false;
      device = integer(call(object, names::get_device));
    }
    const py::object dtype = get(object, names::dtype);
    const auto shape = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, names::shape));
    if (!shape) {  // a nested tensor
      forget_runtime_error();
      return false;
    }
    while (type < 4 && dtype.ptr() != attached.dtypes[type]) ++type;
    if (type == 4 || PyTuple_GET_SIZE(shape.ptr()) > kMaxDims) return false;
    dims = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    for (int i = 0; i < dims; ++i) sizes[i] = integer(PyTuple_GET_ITEM(shape.ptr(), i));
    asks_about_channels_last = may_be_channels_last && is_read_channels_last();
    return true;
  }
};

/// Memory for `device`, which is the current one. Nothing fills it, as torch.empty does under deterministic algorithms.
inline py::object empty(std::int64_t device, const std::int64_t* sizes, int dims, PyObject* dtype,
                        ddu::MemoryFormat format = ddu::MemoryFormat::contiguous) {
  constexpr int channels_last[] = {0, 2, 3, 1};
  std::int64_t strides[Tensor::kMaxDims], stride = 1;
  for (int i = dims; i-- > 0;) {
    const int dim = format == ddu::MemoryFormat::channels_last ? channels_last[i] : i;
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(sizes[dim], 1);
  }
  const py::object size_tuple = tuple_of(sizes, dims), stride_tuple = tuple_of(strides, dims);
  PyObject* arguments[] = {size_tuple.ptr(), stride_tuple.ptr(), dtype};
  PyObject* allocator = device == kCpu ? attached.empty_on_cpu : attached.empty_on_cuda;
  return own(PyObject_Vectorcall(allocator, arguments, 3, nullptr));
}

/// A gradient for `of` and its address; None and null if it is not wanted.
inline py::object new_gradient(const Tensor& of, PyObject* wanted, void*& address) {
  if (!is_true(wanted)) return py::none();
  py::object gradient = empty(of.device, of.sizes, of.dims, attached.dtypes[of.type], of.format);
  address = address_of(gradient.ptr());
  return gradient;
}

/// Scratch memory on `device` and its address; None and null for none.
inline py::object new_workspace(std::int64_t device, std::size_t bytes, void*& address) {
  if (bytes == 0) return py::none();
  const auto size = static_cast<std::int64_t>(bytes);
  py::object workspace = empty(device, &size, 1, attached.uint8);
  address = address_of(workspace.ptr());
  return workspace;
}

/// The same on the CPU. Tiny tensors, on which an allocation counts, get memory that the thread keeps: a thread runs one kernel
/// at a time, and its stack may be small.
inline py::object new_cpu_workspace(std::size_t bytes, void*& address) {
  alignas(64) thread_local unsigned char small[64 * 1024];
  if (bytes > sizeof small) return new_workspace(kCpu, bytes, address);
  address = small;
  return py::none();
}

inline int threads() { return static_cast<int>(integer(call(attached.get_num_threads))); }

inline ddu::cuda::Stream stream_of(std::int64_t device) {
  const py::object index = own(PyLong_FromLongLong(device));
  const py::object address = own(PyObject_CallOneArg(attached.current_stream, index.ptr()));
  return static_cast<ddu::cuda::Stream>(PyLong_AsVoidPtr(address.ptr()));
}

/// Whether the tensors are on one device, and it is the current one.
template <class... Tensors>
bool on_current_device(const Tensor& first, const Tensors&... others) {
  if (!((others.device == first.device) && ...)) return false;
  return first.device == kCpu || first.device == integer(call(attached.current_device));
}

}  // namespace direct
