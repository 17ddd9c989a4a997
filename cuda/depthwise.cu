// The host side of a depthwise convolution and its backward:
//
//     (planes_to_rows_kernel  the input, channels-last, unless it lies so)
//     aggregate_kernel        the output, in the input's format; for each output of a channel
//
// The kernels of the backward stand in channels_last/outer_product.cu.

#include "depthwise.h"

#include "channels_last/aggregate.cuh"
#include "channels_last/heads_forward.h"
#include "channels_last/outer_product.h"

namespace ddu::cuda::depthwise {
namespace {

using namespace channels_last;

/// Outputs of a channel, each of which samples anew: of more, chunks of columns are the faster forward on an H100.
constexpr std::int64_t kMostOutputs = 4;

/// The call as aggregate's, whose factors are the mask.
HeadGeometry with_heads(const Conv2dGeometry& c) { return {c.geometry, c.heads, c.mask_batch}; }

template <class T, int kN>
void run(const Conv2dGeometry& c, Types types, const Conv2d& given, const ImageToRead& input, Stream stream) {
  const HeadGeometry h = with_heads(c);
  const std::int64_t outputs = c.weight_group_outputs(), taps = c.geometry.taps();
  auto p = head_params<T>(h, types, input.image, kN, false, is_aligned(given.output, value_bytes<T, kN>(input.image)),
                          is_aligned(given.mask, kVectorBytes<T>));
  const OutputLayout layout(c.geometry, outputs, given.input_format);
  if (outputs > 1) p.values = layout.values;
  AggregatePointers<T> tensors{static_cast<const T*>(input.read(types.input, given.input, stream)),
                               static_cast<const T*>(given.mask),
                               given.dilation_map,
                               static_cast<T*>(given.output),
                               {input.strange, input.strange_count}};
  ChannelWeights<T> weights{};
  weights.weight = static_cast<const T*>(given.weight);
  weights.bias = static_cast<const T*>(given.bias);
  weights.outputs = static_cast<int>(outputs);
  const std::size_t shared = plan_chunk<kN>(p, taps, false, weights);
  for (std::int64_t output = 0; output < outputs; ++output) {
    launch_forward<T>(aggregate_kernel<T, kN, ChannelWeights<T>>, p, tensors, stream, shared, weights);
    tensors.output += layout.next;
    weights.weight += taps;
    if (weights.bias) ++weights.bias;
  }
}

OuterProduct as_outer_product(const Conv2dGeometry& c, const Conv2dBackward& given) {
  OuterProduct product{};
  product.values = given.grad_output;
  product.factors = given.mask;
  product.image = given.input;
  product.map = given.dilation_map;
  product.grad_factors = given.grad_mask;
  product.grad_image = given.grad_input;
  product.grad_map = given.grad_map;
  product.workspace = given.workspace;
  product.format = given.input_format;
  product.of_factors = true;
  product.weight = given.weight;
  product.grad_weight = given.grad_weight;
  product.outputs = c.weight_group_outputs();
  return product;
}

}  // namespace

bool serves(const Conv2dGeometry& c, Types types) {
  check_types(types);
  const Geometry& g = c.geometry;
  return !requests_columns() && g.channels > 0 && c.weight_groups == g.channels && c.weight_group_outputs() > 0 &&
         c.weight_group_outputs() <= kMostOutputs && g.taps() > 0 && g.taps() <= INT_MAX / 64 && g.channels <= INT_MAX &&
         g.batch <= INT_MAX;
}

std::size_t forward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2d& tensors) {
  return channels_last::forward_workspace_bytes(with_heads(c), types, tensors.input_format);
}

void forward(const Conv2dGeometry& c, Types types, const Conv2d& tensors, Stream stream) {
  if (c.output_numel() == 0) return;
  const ImageToRead input(with_heads(c), types.input, tensors.input_format, tensors.input, tensors.workspace);
  visit_lanes(types.input, input.image, [&](auto* type, auto channels) {
    run<std::remove_pointer_t<decltype(type)>, decltype(channels)::value>(c, types, tensors, input, stream);
  });
}

std::size_t backward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic) {
  return outer_product_workspace_bytes(with_heads(c), types, as_outer_product(c, tensors), deterministic);
}

void backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic, Stream stream) {
  outer_product(with_heads(c), types, as_outer_product(c, tensors), deterministic, stream);
}

}  // namespace ddu::cuda::depthwise
