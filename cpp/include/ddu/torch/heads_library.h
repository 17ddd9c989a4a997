#pragma once

// The registered forms of the operators with heads: see ddu/torch_library.h, which includes this.

#include <torch/library.h>

#include <cstdint>
#include <tuple>

#include "ddu/torch/aggregate.h"
#include "ddu/torch/correlate.h"
#include "ddu/torch/schema.h"

namespace ddu::torch_detail {

inline Options heads_options(const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                             Text padding_mode) {
  return options_of(pair_of("kernel_size", kernel_size), torch_options_of(stride, padding, dilation, padding_mode), map);
}

/// The registered forms of an operator with heads: `heads` are correlate's, or minus the channels of one, which a shard of a
/// tensor has.
template <class Operator, bool kAutograd>
at::Tensor heads_forward(const at::Tensor& first, const at::Tensor& other, const at::Tensor& map, Ints kernel_size, Ints stride,
                         Ints padding, Ints dilation, std::int64_t heads, Text padding_mode) {
  const Options options = heads_options(map, kernel_size, stride, padding, dilation, padding_mode);
  if (heads < 0 && first.dim() >= 3) heads = first.size(-3) / -heads;
  if constexpr (kAutograd) {
    return HeadFunction<Operator>::apply(first, other, map, options, heads);
  } else {
    return Operator::forward(first, other, map, options, heads);
  }
}
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
template <class Operator, bool kAutograd>
ThreeTensors heads_backward(const at::Tensor& grad, const at::Tensor& first, const at::Tensor& other, const at::Tensor& map,
                            Ints kernel_size, Ints stride, Ints padding, Ints dilation, std::int64_t heads, Text padding_mode,
                            WantedOfThree wanted) {
  const Options options = heads_options(map, kernel_size, stride, padding, dilation, padding_mode);
  if (heads < 0 && first.dim() >= 3) heads = first.size(-3) / -heads;
  using Function = HeadBackwardFunction<Operator>;
  const variable_list grads = kAutograd ? Function::apply(grad, first, other, map, options, heads, wanted)
                                        : Function::forward(nullptr, grad, first, other, map, options, heads, wanted);
  return {grads[0], grads[1], grads[2]};
}

/// Aggregate's, which have no heads among the options.
template <bool kAutograd>
at::Tensor aggregate_forward(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& map, Ints kernel_size,
                             Ints stride, Ints padding, Ints dilation, Text padding_mode) {
  return heads_forward<AggregateOperator, kAutograd>(input, weights, map, kernel_size, stride, padding, dilation, 0,
                                                     padding_mode);
}
template <bool kAutograd>
ThreeTensors aggregate_backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weights,
                                const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                                Text padding_mode, WantedOfThree wanted) {
  return heads_backward<AggregateOperator, kAutograd>(grad, input, weights, map, kernel_size, stride, padding, dilation, 0,
                                                      padding_mode, wanted);
}

inline void define_operators_with_heads(torch::Library& library) {
  using Correlate = CorrelateOperator;
  define(library, schemas::aggregate, &aggregate_forward<false>, &aggregate_forward<true>);
  define(library, schemas::aggregate_backward, &aggregate_backward<false>, &aggregate_backward<true>);
  define(library, schemas::correlate, &heads_forward<Correlate, false>, &heads_forward<Correlate, true>);
  define(library, schemas::correlate_backward, &heads_backward<Correlate, false>, &heads_backward<Correlate, true>);
}

}  // namespace ddu::torch_detail
