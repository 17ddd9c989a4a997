// The host side of correlate and its backward:
//
//     (planes_to_rows_kernel  the key, channels-last, unless it lies so)
//     correlate_kernel        the scores
//
// The kernels of the backward stand in channels_last/outer_product.cu.

#include "ddu/correlate.h"

#include "channels_last/correlate.cuh"
#include "channels_last/heads_forward.h"
#include "channels_last/outer_product.h"

namespace ddu::cuda {
namespace {

using namespace channels_last;

template <class T, int kN>
HeadParams<accumulator_t<T>> params_of(const HeadGeometry& h, Types types, const Correlate& given, const ImageRows& image) {
  return head_params<T>(h, types, image, kN, true, is_aligned(given.query, value_bytes<T, kN>(image)), false, kForwardColumns);
}

template <class T, int kN>
void run(const HeadGeometry& h, Types types, const Correlate& given, const ImageToRead& key, Stream stream) {
  const CorrelatePointers<T> tensors{static_cast<const T*>(given.query),
                                     static_cast<const T*>(key.read(types.input, given.key, stream)),
                                     given.dilation_map,
                                     static_cast<T*>(given.scores),
                                     {key.strange, key.strange_count}};
  if constexpr (std::is_same_v<T, float> && kN > 1) {
    if (ImageRows::unit_channels(h) % (2 * kN) == 0) {
      const auto p = params_of<T, 2 * kN>(h, types, given, key.image);
      if (p.rounds == 1) return launch_forward<T>(correlate_kernel<T, 2 * kN, true>, p, tensors, stream);
    }
  }
  const auto p = params_of<T, kN>(h, types, given, key.image);
  if constexpr (kN > 1 && sizeof(T) < 8) {
    if (p.rounds == 1) return launch_forward<T>(correlate_kernel<T, kN, true>, p, tensors, stream);
  }
  launch_forward<T>(correlate_kernel<T, kN, false>, p, tensors, stream);
}

OuterProduct as_outer_product(const CorrelateBackward& given) {
  OuterProduct product{};
  product.values = given.query;
  product.factors = given.grad_scores;
  product.image = given.key;
  product.map = given.dilation_map;
  product.grad_values = given.grad_query;
  product.grad_image = given.grad_key;
  product.grad_map = given.grad_map;
  product.workspace = given.workspace;
  product.format = given.input_format;
  product.of_factors = false;
  return product;
}

}  // namespace

std::size_t correlate_workspace_bytes(const HeadGeometry& h, Types types, const Correlate& tensors) {
  return forward_workspace_bytes(h, types, tensors.input_format);
}

void correlate(const HeadGeometry& h, Types types, const Correlate& tensors, Stream stream) {
  check_types(types);
  if (h.geometry.columns_numel() == 0) {  // no channel has anything to add
    const std::size_t bytes = size_of(types.input) * static_cast<std::size_t>(h.factors_numel());
    if (bytes > 0) DDU_CUDA_CHECK(cudaMemsetAsync(tensors.scores, 0, bytes, stream));
    return;
  }
  const ImageToRead key(h, types.input, tensors.input_format, tensors.key, tensors.workspace);
  visit_lanes(types.input, key.image, [&](auto* type, auto channels) {
    run<std::remove_pointer_t<decltype(type)>, decltype(channels)::value>(h, types, tensors, key, stream);
  });
}

std::size_t correlate_backward_workspace_bytes(const HeadGeometry& h, Types types, const CorrelateBackward& tensors,
                                               bool deterministic) {
  return outer_product_workspace_bytes(h, types, as_outer_product(tensors), deterministic);
}

void correlate_backward(const HeadGeometry& h, Types types, const CorrelateBackward& tensors, bool deterministic,
                        Stream stream) {
  outer_product(h, types, as_outer_product(tensors), deterministic, stream);
}

}  // namespace ddu::cuda
