// The kernels of attention called with tensors, where there are some: elsewhere Python composes it of other operators.

#include "ddu/attention.h"

#include <cstdint>

#include "call.h"
#include "run.h"

namespace direct {
namespace {

struct AttentionCall {
  static constexpr Py_ssize_t tensors = 5;  // query, key, value, dilation_map, bias; the last, which may be None, is float32
  static constexpr Py_ssize_t options = 7;  // kernel_size, stride, padding, dilation, heads, scale, padding_mode

  Tensor query, key, value, map, bias;
  bool has_bias;
  ddu::Types types;
  ddu::HeadGeometry sizes;
  ddu::Attention pointers{};

  /// False for calls that are not for the kernels. Throws for what does not fit together.
  bool read(PyObject* const* arguments) {
    ddu::Options given;
    std::int64_t heads;
    PyObject* const* const option = arguments + tensors;
    has_bias = arguments[4] != Py_None;
    if (!key.read(arguments[1], true) || key.device == kCpu || !query.read(arguments[0], true) ||
        !value.read(arguments[2], true) || !map.read(arguments[3]) || (has_bias && !bias.read(arguments[4]))) {
      return false;
    }
    if (!read_window(option, given) || !read_integer(option[4], heads) || !PyFloat_CheckExact(option[5]) ||
        !read_padding_mode(option[6], given.padding_mode)) {
      return false;
    }
    pointers.scale = static_cast<float>(PyFloat_AS_DOUBLE(option[5]));
    if (!on_current_device(key, query, value, map) || query.type != key.type || !is_like(value, key.sizes, key.dims, key)) {
      return false;
    }
    types = {static_cast<ddu::DType>(key.type), static_cast<ddu::DType>(map.type)};
    ddu::check_types(types);
    sizes = ddu::make_correlate_geometry(query.shape(), key.shape(), map.shape(), given, heads);
    if (has_bias && !is_bias()) return false;
    if (!key.find_data() || !value.find_data() || key.format != value.format || !query.find_data_as(key.format) ||
        !map.find_data() || (has_bias && !bias.find_data())) {
      return false;
    }
    pointers.query = query.data;
    pointers.key = key.data;
    pointers.value = value.data;
    pointers.dilation_map = map.data;
    pointers.input_format = key.format;
    if (has_bias) read_bias();
    return ddu::cuda::attention_supported(sizes, types, key.format) && (is_aligned(key) && is_aligned(value));
  }

  /// The output, and the normalizers or None.
  py::object forward(PyObject* keeps) {
    std::int64_t output_sizes[5];
    const int dims = sizes_of_values(sizes.geometry, key, output_sizes);
    const py::object output = empty(key.device, output_sizes, dims, attached.dtypes[key.type], key.format);
    pointers.output = address_of(output.ptr());
    py::object normalizers = py::none();
    if (is_true(keeps)) {
      const std::int64_t count = sizes.geometry.batch * sizes.heads * sizes.geometry.positions();
      normalizers = empty(key.device, &count, 1, attached.dtypes[kFloat]);
      pointers.normalizers = static_cast<float*>(address_of(normalizers.ptr()));
    }
    constexpr Forward<ddu::HeadGeometry, ddu::Attention> functions{nullptr, nullptr, ddu::cuda::attention,
                                                                   ddu::cuda::attention_workspace_bytes};
    run(key.device, functions, sizes, types, pointers);
    return own(PyTuple_Pack(2, output.ptr(), normalizers.ptr()));
  }

  /// Gradients of query, key, value, map and the scores. `grad` and `output` may lie as they like.
  py::object backward(Tensor& grad, Tensor& output, Tensor& normalizers, PyObject* const* output_mask) {
    std::int64_t output_sizes[5];
    const int dims = sizes_of_values(sizes.geometry, key, output_sizes);
    for (Tensor* tensor : {&grad, &output}) {
      if (!is_like(*tensor, output_sizes, dims, key) || !tensor->find_data_as(key.format)) return py::none();
    }
    if (!normalizers.find_data()) return py::none();
    ddu::AttentionBackward backward{};
    backward.forward = pointers;
    backward.forward.output = output.data;
    backward.forward.normalizers = static_cast<float*>(normalizers.data);
    backward.grad_output = grad.data;
    const py::object grad_query = new_gradient(query, output_mask[0], backward.grad_query);
    const py::object grad_key = new_gradient(key, output_mask[1], backward.grad_key);
    const py::object grad_value = new_gradient(value, output_mask[2], backward.grad_value);
    const py::object grad_map = new_gradient(map, output_mask[3], backward.grad_map);
    py::object grad_scores = py::none();
    if (has_bias && is_true(output_mask[4])) {
      std::int64_t score_sizes[5];
      const int count = sizes_of_scores(score_sizes);
      grad_scores = empty(key.device, score_sizes, count, attached.dtypes[kFloat]);
      backward.grad_scores = static_cast<float*>(address_of(grad_scores.ptr()));
    }
    const std::size_t bytes = ddu::cuda::attention_backward_workspace_bytes(sizes, types, backward);
    const py::object workspace = new_workspace(key.device, bytes, backward.workspace);
    const ddu::cuda::Stream stream = stream_of(key.device);
    {
      const py::gil_scoped_release release;
      ddu::cuda::attention_backward(sizes, types, backward, stream);
    }
    return own(PyTuple_Pack(5, grad_query.ptr(), grad_key.ptr(), grad_value.ptr(), grad_map.ptr(), grad_scores.ptr()));
  }

 private:
  static constexpr int kFloat = static_cast<int>(ddu::DType::float32);

  /// Writes the sizes of the scores and returns how many.
  int sizes_of_scores(std::int64_t* size) const {
    const ddu::Geometry& g = sizes.geometry;
    if (key.dims == 4) *size++ = g.batch;
    for (const std::int64_t each : {sizes.heads, g.taps(), g.h.out_size, g.w.out_size}) *size++ = each;
    return key.dims + 1;
  }
  /// Whether it has every dimension of the scores, each as there or 1, and both or neither of the last two as there.
  bool is_bias() const {
    std::int64_t score[5];
    const int dims = sizes_of_scores(score);
    if (bias.type != kFloat || bias.device != key.device || bias.dims != dims) return false;
    for (int i = 0; i < dims; ++i) {
      if (bias.sizes[i] != 1 && bias.sizes[i] != score[i]) return false;
    }
    const std::int64_t positions = bias.sizes[dims - 2] * bias.sizes[dims - 1];
    return positions == 1 || positions == sizes.geometry.positions();
  }
  void read_bias() {
    pointers.bias = static_cast<const float*>(bias.data);
    const std::int64_t* size = bias.sizes;
    const std::int64_t images = key.dims == 4 ? *size++ : 1, positions = size[2] * size[3];
    const std::int64_t counts[] = {images, size[0], size[1], positions};
    std::int64_t stride = 1;
    for (int i = 4; i-- > 0; stride *= counts[i]) pointers.bias_strides[i] = counts[i] == 1 ? 0 : stride;
  }
  /// Whether a lane may read 16 bytes of channels at once where they lie side by side.
  static bool is_aligned(const Tensor& tensor) {
    return tensor.format == ddu::MemoryFormat::contiguous || reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
  }
};

/// `arguments`: tensors, options, whether there may be a backward.
py::object attention_forward(PyObject* const* arguments) {
  AttentionCall call;
  return call.read(arguments) ? call.forward(arguments[AttentionCall::tensors + AttentionCall::options]) : py::none();
}

/// `arguments`: gradient, output, normalizers, tensors, options, which gradients.
py::object attention_backward(PyObject* const* arguments) {
  AttentionCall call;
  Tensor grad, output, normalizers;
  if (!call.read(arguments + 3) || !grad.read(arguments[0], true) || !output.read(arguments[1], true) ||
      !normalizers.read(arguments[2])) {
    return py::none();
  }
  return call.backward(grad, output, normalizers,
                       &PyTuple_GET_ITEM(arguments[3 + AttentionCall::tensors + AttentionCall::options], 0));
}

}  // namespace

void add_attention(py::module_& module) {
  constexpr Py_ssize_t count = AttentionCall::tensors + AttentionCall::options;
  static PyMethodDef methods[] = {method("attention_forward", &with_arguments<attention_forward, count + 1>),
                                  method("attention_backward", &with_arguments<attention_backward, count + 4>),
                                  {nullptr, nullptr, 0, nullptr}};
  add_methods(module, methods);
}

}  // namespace direct
