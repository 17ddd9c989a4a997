#pragma once

// Opt-in: the operators of Python's namespace and schema, so that programs exported from Python (AOTInductor packages) run in
// a process without Python.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "ddu/torch.h"
#include "ddu/torch/conv2d_library.h"
#include "ddu/torch/heads_library.h"
#include "ddu/torch/schema.h"

namespace ddu {
namespace torch_detail {

/// groups = 0 means the map's: a shard of a tensor has some of the groups.
inline Options options_of(const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                          std::int64_t groups, Text padding_mode) {
  TorchOptions options = torch_options_of(stride, padding, dilation, padding_mode);
  options.groups = groups == 0 && map.dim() >= 3 ? map.size(-3) : groups;
  return options_of(pair_of("kernel_size", kernel_size), options);
}

inline at::Tensor unfold_kernel(const at::Tensor& input, const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding,
                                Ints dilation, std::int64_t groups, Text padding_mode) {
  return unfold(input, map, options_of(map, kernel_size, stride, padding, dilation, groups, padding_mode));
}

inline at::Tensor unfold_autograd(const at::Tensor& input, const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding,
                                  Ints dilation, std::int64_t groups, Text padding_mode) {
  return UnfoldFunction::apply(input, map, options_of(map, kernel_size, stride, padding, dilation, groups, padding_mode));
}

inline std::tuple<at::Tensor, at::Tensor> backward_autograd(const at::Tensor& grad, const at::Tensor& input,
                                                            const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding,
                                                            Ints dilation, std::int64_t groups, Text padding_mode,
                                                            Wanted wanted) {
  const auto grads = UnfoldBackwardFunction::apply(
      grad, input, map, options_of(map, kernel_size, stride, padding, dilation, groups, padding_mode), wanted);
  return {grads[0], grads[1]};
}

inline std::tuple<at::Tensor, at::Tensor> backward_kernel(const at::Tensor& grad, const at::Tensor& input,
                                                          const at::Tensor& map, Ints kernel_size, Ints stride, Ints padding,
                                                          Ints dilation, std::int64_t groups, Text padding_mode,
                                                          Wanted wanted) {
  return filled(
      unfold_backward(grad, input, map, options_of(map, kernel_size, stride, padding, dilation, groups, padding_mode), wanted),
      input);
}

}  // namespace torch_detail

/// Registers dynamic_dilation_unfold::unfold, ::aggregate, ::correlate and ::conv2d, each with its backward, until the process
/// ends. Any thread may call; on return the operators are there. Does nothing where they are there already: after another call,
/// or after Python's package was imported in the same process. Not the other way round: that import fails ("Only a single
/// TORCH_LIBRARY can be used to register the namespace dynamic_dilation_unfold"), so a program that embeds Python imports the
/// package first, or not at all.
inline void register_torch_operators() {
  const auto define_all = []() -> std::optional<torch::Library> {
    if (c10::Dispatcher::singleton().findSchema({"dynamic_dilation_unfold::unfold", ""})) return std::nullopt;
    torch::Library library(torch::Library::DEF, "dynamic_dilation_unfold", std::nullopt, __FILE__, __LINE__);
    using namespace torch_detail;
    define(library, schemas::unfold, &unfold_kernel, &unfold_autograd);
    define(library, schemas::unfold_backward, &backward_kernel, &backward_autograd);
    define_operators_with_heads(library);
    define_conv2d(library);
    return library;
  };
  static const std::optional<torch::Library> library = define_all();  // a second thread waits for the first
}

}  // namespace ddu
