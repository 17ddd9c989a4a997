#pragma once

// The registered forms of the operators with heads: see ddu/torch_library.h, which includes this.

#include <torch/library.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

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
  const std::string window = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, ";
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  const auto define = [&](const std::string& name, const std::string& tensors, const std::string& heads) {
    const std::string options = window + heads + "str padding_mode";
    library.def((name + "(" + tensors + ", " + options + ") -> Tensor").c_str(), tags);
    library.def(
        (name + "_backward(Tensor grad, " + tensors + ", " + options + ", bool[3] output_mask) -> (Tensor, Tensor, Tensor)")
            .c_str(),
        tags);
  };
  define("aggregate", "Tensor input, Tensor weights, Tensor dilation_map", "");
  define("correlate", "Tensor query, Tensor key, Tensor dilation_map", "SymInt heads, ");
  using c10::DispatchKey;
  const auto kernel = DispatchKey::CompositeExplicitAutograd, autograd = DispatchKey::Autograd;
  library.impl("aggregate", torch::dispatch(kernel, &aggregate_forward<false>));
  library.impl("aggregate", torch::dispatch(autograd, &aggregate_forward<true>));
  library.impl("aggregate_backward", torch::dispatch(kernel, &aggregate_backward<false>));
  library.impl("aggregate_backward", torch::dispatch(autograd, &aggregate_backward<true>));
  library.impl("correlate", torch::dispatch(kernel, &heads_forward<CorrelateOperator, false>));
  library.impl("correlate", torch::dispatch(autograd, &heads_forward<CorrelateOperator, true>));
  library.impl("correlate_backward", torch::dispatch(kernel, &heads_backward<CorrelateOperator, false>));
  library.impl("correlate_backward", torch::dispatch(autograd, &heads_backward<CorrelateOperator, true>));
}

}  // namespace ddu::torch_detail
