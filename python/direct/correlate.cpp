// The kernels of correlate called with tensors: see unfold.cpp.

#include "ddu/correlate.h"

#include <cstdint>

#include "call.h"
#include "run.h"

namespace direct {
namespace {

struct CorrelateCall {
  static constexpr Py_ssize_t tensors = 3;  // query, key, dilation_map
  static constexpr Py_ssize_t options = 6;  // kernel_size, stride, padding, dilation, heads, padding_mode

  Tensor query, key, map;
  ddu::Types types;
  ddu::HeadGeometry sizes;

  /// Throws for what does not fit together.
  bool read(PyObject* const* arguments) {
    ddu::Options given;
    std::int64_t heads;
    if (!query.read(arguments[0], true) || !key.read(arguments[1], true) || !map.read(arguments[2])) return false;
    if (!read_window(arguments + tensors, given) || !read_integer(arguments[tensors + 4], heads) ||
        !read_padding_mode(arguments[tensors + 5], given.padding_mode)) {
      return false;
    }
    if (!on_current_device(query, key, map) || query.type != key.type) return false;
    types = {static_cast<ddu::DType>(key.type), static_cast<ddu::DType>(map.type)};
    ddu::check_types(types);
    try {
      sizes = ddu::make_correlate_geometry(query.shape(), key.shape(), map.shape(), given, heads);
    } catch (const ddu::invalid_argument&) {
      if (may_be_broadcast(map)) return false;
      throw;
    }
    return key.find_data() && query.find_data_as(key.format) && map.find_data();
  }

  py::object forward() {
    std::int64_t score_sizes[5];
    const int dims = sizes_of_scores(score_sizes);
    py::object scores = empty(key.device, score_sizes, dims, attached.dtypes[key.type]);
    ddu::Correlate pointers{query.data, key.data, map.data, address_of(scores.ptr()), nullptr, key.format};
    constexpr Forward<ddu::HeadGeometry, ddu::Correlate> functions{ddu::cpu::correlate, ddu::cpu::correlate_workspace_bytes,
                                                                   ddu::cuda::correlate, ddu::cuda::correlate_workspace_bytes};
    run(key.device, functions, sizes, types, pointers);
    return scores;
  }

  py::object backward(Tensor& grad, PyObject* const* output_mask) {
    std::int64_t score_sizes[5];
    const int dims = sizes_of_scores(score_sizes);
    if (!is_like(grad, score_sizes, dims, key) || !grad.find_data_as(ddu::MemoryFormat::contiguous)) return py::none();
    ddu::CorrelateBackward pointers{grad.data, query.data, key.data, map.data, nullptr, nullptr, nullptr, nullptr, key.format};
    const py::object grad_query = new_gradient(query, output_mask[0], pointers.grad_query);
    const py::object grad_key = new_gradient(key, output_mask[1], pointers.grad_key);
    const py::object grad_map = new_gradient(map, output_mask[2], pointers.grad_map);
    constexpr Backward<ddu::HeadGeometry, ddu::CorrelateBackward> functions{
        ddu::cpu::correlate_backward, ddu::cpu::correlate_backward_workspace_bytes, ddu::cuda::correlate_backward,
        ddu::cuda::correlate_backward_workspace_bytes};
    run(key.device, functions, sizes, types, pointers);
    return own(PyTuple_Pack(3, grad_query.ptr(), grad_key.ptr(), grad_map.ptr()));
  }

 private:
  /// Writes the sizes of the scores and returns how many: an unbatched call has no batch.
  int sizes_of_scores(std::int64_t* score_sizes) const {
    const ddu::Geometry& g = sizes.geometry;
    if (key.dims == 4) *score_sizes++ = g.batch;
    for (const std::int64_t size : {sizes.heads, g.taps(), g.h.out_size, g.w.out_size}) *score_sizes++ = size;
    return key.dims + 1;
  }
};

}  // namespace

void add_correlate(py::module_& module) { add_operator<CorrelateCall>(module, "correlate"); }

}  // namespace direct
