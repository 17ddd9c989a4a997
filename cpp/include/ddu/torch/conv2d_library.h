#pragma once

// The registered form of the convolution: see ddu/torch_library.h, which includes this.

#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

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
  const std::string tensors = "Tensor input, Tensor weight, Tensor dilation_map, Tensor? bias, Tensor? mask, ";
  const std::string options = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, str padding_mode";
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def(("conv2d(" + tensors + options + ") -> Tensor").c_str(), tags);
  library.def(("conv2d_backward(Tensor grad, " + tensors + options +
               ", bool[5] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
                  .c_str(),
              tags);
  using c10::DispatchKey;
  const auto kernel = DispatchKey::CompositeExplicitAutograd, autograd = DispatchKey::Autograd;
  library.impl("conv2d", torch::dispatch(kernel, &conv2d_forward<false>));
  library.impl("conv2d", torch::dispatch(autograd, &conv2d_forward<true>));
  library.impl("conv2d_backward", torch::dispatch(kernel, &conv2d_backward_operator<false>));
  library.impl("conv2d_backward", torch::dispatch(autograd, &conv2d_backward_operator<true>));
}

}  // namespace ddu::torch_detail
