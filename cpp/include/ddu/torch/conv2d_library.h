#pragma once

// The registered form of the convolution: see ddu/torch_library.h, which includes this.

#include <torch/library.h>

#include <tuple>

#include "ddu/torch/conv2d.h"
#include "ddu/torch/schema.h"

namespace ddu::torch_detail {

using FiveTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <bool kAutograd>
at::Tensor conv2d_forward(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& map, const OptionalTensor& bias,
                          const OptionalTensor& mask, Ints stride, Ints padding, Ints dilation, Text padding_mode) {
  const Options window = conv2d_options(weight, map, torch_options_of(stride, padding, dilation, padding_mode));
  if constexpr (kAutograd) {
    return Conv2dFunction::apply(input, weight, map, bias, mask, window);
  } else {
    return conv2d(tensors_of(input, weight, map, bias, mask), window);
  }
}

template <bool kAutograd>
FiveTensors conv2d_backward_operator(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                                     const at::Tensor& map, const OptionalTensor& bias, const OptionalTensor& mask, Ints stride,
                                     Ints padding, Ints dilation, Text padding_mode, WantedOfConv2d wanted) {
  const Options window = conv2d_options(weight, map, torch_options_of(stride, padding, dilation, padding_mode));
  using Function = Conv2dBackwardFunction;
  const variable_list grads = kAutograd ? Function::apply(grad, input, weight, map, bias, mask, window, wanted)
                                        : Function::forward(nullptr, grad, input, weight, map, bias, mask, window, wanted);
  return {grads[0], grads[1], grads[2], grads[3], grads[4]};
}

inline void define_conv2d(torch::Library& library) {
  define(library, schemas::conv2d, &conv2d_forward<false>, &conv2d_forward<true>);
  define(library, schemas::conv2d_backward, &conv2d_backward_operator<false>, &conv2d_backward_operator<true>);
}

}  // namespace ddu::torch_detail
