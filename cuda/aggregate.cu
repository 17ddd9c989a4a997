// The host side of aggregate and its backward:
//
//     (planes_to_rows_kernel  the input, channels-last, unless it lies so)
//     aggregate_kernel        the output, in the input's format
//
// The kernels of the backward stand in channels_last/outer_product.cu.

#include "ddu/aggregate.h"

#include "channels_last/aggregate.cuh"
#include "channels_last/heads_forward.h"
#include "channels_last/outer_product.h"

namespace ddu::cuda {
namespace {

using namespace channels_last;

template <class T, int kN>
void run(const HeadGeometry& h, Types types, const Aggregate& given, const ImageToRead& input, Stream stream) {
  const auto p = head_params<T>(h, types, input.image, kN, false, is_aligned(given.output, value_bytes<T, kN>(input.image)),
                                is_aligned(given.weights, kVectorBytes<T>), kForwardColumns);
  const AggregatePointers<T> tensors{static_cast<const T*>(input.read(types.input, given.input, stream)),
                                     static_cast<const T*>(given.weights),
                                     given.dilation_map,
                                     static_cast<T*>(given.output),
                                     {input.strange, input.strange_count}};
  launch_forward<T>(aggregate_kernel<T, kN, NoChannelWeights>, p, tensors, stream, 0, NoChannelWeights{});
}

OuterProduct as_outer_product(const AggregateBackward& given) {
  OuterProduct product{};
  product.values = given.grad_output;
  product.factors = given.weights;
  product.image = given.input;
  product.map = given.dilation_map;
  product.grad_factors = given.grad_weights;
  product.grad_image = given.grad_input;
  product.grad_map = given.grad_map;
  product.workspace = given.workspace;
  product.format = given.input_format;
  product.of_factors = true;
  return product;
}

}  // namespace

std::size_t aggregate_workspace_bytes(const HeadGeometry& h, Types types, const Aggregate& tensors) {
  return forward_workspace_bytes(h, types, tensors.input_format);
}

void aggregate(const HeadGeometry& h, Types types, const Aggregate& tensors, Stream stream) {
  check_types(types);
  if (h.geometry.columns_numel() == 0) return;
  const ImageToRead input(h, types.input, tensors.input_format, tensors.input, tensors.workspace);
  visit_lanes(types.input, input.image, [&](auto* type, auto channels) {
    run<std::remove_pointer_t<decltype(type)>, decltype(channels)::value>(h, types, tensors, input, stream);
  });
}

std::size_t aggregate_backward_workspace_bytes(const HeadGeometry& h, Types types, const AggregateBackward& tensors,
                                               bool deterministic) {
  return outer_product_workspace_bytes(h, types, as_outer_product(tensors), deterministic);
}

void aggregate_backward(const HeadGeometry& h, Types types, const AggregateBackward& tensors, bool deterministic,
                        Stream stream) {
  outer_product(h, types, as_outer_product(tensors), deterministic, stream);
}

}  // namespace ddu::cuda
