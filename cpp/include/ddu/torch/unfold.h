#pragma once

// Unfold for LibTorch: see ddu/torch.h.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <array>
#include <cstdint>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "ddu/torch/common.h"

namespace ddu {
namespace torch_detail {

/// Which of two gradients are asked for: of the input, and of the map.
using Wanted = std::array<bool, 2>;
using Gradients = std::pair<at::Tensor, at::Tensor>;

inline std::vector<std::int64_t> columns_sizes(const Geometry& g, bool batched) {
  std::vector<std::int64_t> sizes{g.channels * g.taps(), g.positions()};
  if (batched) sizes.insert(sizes.begin(), g.batch);
  return sizes;
}

/// Into `output`, which is contiguous and has the sizes of the columns, or else into new memory.
inline at::Tensor unfold(const at::Tensor& given_input, const at::Tensor& given_map, const Options& options,
                         at::Tensor output = {}) {
  const Types types = check_tensors(given_input, given_map);
  const Geometry geometry = geometry_of(given_input, given_map, options);
  const MemoryFormat format = format_of(given_input);
  const at::Tensor input = in_memory("input", given_input, format), map = in_memory("dilation_map", given_map);
  if (!output.defined()) output = at::empty(columns_sizes(geometry, input.dim() == 4), input.options());
  Unfold tensors{input.const_data_ptr(), map.const_data_ptr(), output.mutable_data_ptr(), nullptr, format};
  on_device_of(
      input,
      [&](int threads) {
        const at::Tensor workspace = scratch(cpu::unfold_workspace_bytes(geometry, types, tensors, threads), input);
        tensors.workspace = workspace.mutable_data_ptr();
        cpu::unfold(geometry, types, tensors, threads);
      },
      [&](cuda::Stream stream) {
        const at::Tensor workspace = scratch(cuda::unfold_workspace_bytes(geometry, types, tensors), input);
        tensors.workspace = workspace.mutable_data_ptr();
        cuda::unfold(geometry, types, tensors, stream);
      });
  return output;
}

/// Gradients of the input and of the map; undefined for one that is not wanted.
inline Gradients unfold_backward(const at::Tensor& given_grad, const at::Tensor& given_input, const at::Tensor& given_map,
                                 const Options& options, Wanted wanted) {
  const Types types = check_tensors(given_input, given_map);
  const Geometry geometry = geometry_of(given_input, given_map, options);
  check_grad(given_grad, given_input, columns_sizes(geometry, given_input.dim() == 4));
  const MemoryFormat format = format_of(given_input);
  const at::Tensor grad = in_memory("grad", given_grad), input = in_memory("input", given_input, format),
                   map = in_memory("dilation_map", given_map);
  Gradients grads;
  if (wanted[0]) grads.first = at::empty(input.sizes(), input.options(), torch_format(format));
  if (wanted[1]) grads.second = at::empty(map.sizes(), map.options());
  UnfoldBackward tensors{grad.const_data_ptr(),
                         input.const_data_ptr(),
                         map.const_data_ptr(),
                         wanted[0] ? grads.first.mutable_data_ptr() : nullptr,
                         wanted[1] ? grads.second.mutable_data_ptr() : nullptr,
                         nullptr,
                         format};
  on_device_of(
      input,
      [&](int threads) {
        const at::Tensor workspace = scratch(cpu::unfold_backward_workspace_bytes(geometry, types, tensors, threads), input);
        tensors.workspace = workspace.mutable_data_ptr();
        cpu::unfold_backward(geometry, types, tensors, threads);
      },
      [&](cuda::Stream stream) {
        const bool deterministic = at::globalContext().deterministicAlgorithms();
        const at::Tensor workspace =
            scratch(cuda::unfold_backward_workspace_bytes(geometry, types, tensors, deterministic), input);
        tensors.workspace = workspace.mutable_data_ptr();
        cuda::unfold_backward(geometry, types, tensors, deterministic, stream);
      });
  return grads;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// An operator cannot return undefined tensors: a gradient that is not wanted is an empty one.
inline Gradients filled(Gradients grads, const at::Tensor& like) {
  if (!grads.first.defined()) grads.first = at::zeros({0}, like.options());
  if (!grads.second.defined()) grads.second = at::zeros({0}, like.options());
  return grads;
}

struct UnfoldBackwardFunction : torch::autograd::Function<UnfoldBackwardFunction> {
  static variable_list forward(AutogradContext*, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& map,
                               const Options& options, Wanted wanted) {
    auto [grad_input, grad_map] = filled(unfold_backward(grad, input, map, options, wanted), input);
    return {std::move(grad_input), std::move(grad_map)};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    throw error("ddu::torch_unfold is differentiable once: second derivatives are there in Python");
  }
};

struct UnfoldFunction : torch::autograd::Function<UnfoldFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& map, const Options& options) {
    ctx->save_for_backward({input, map});
    ctx->saved_data["options"] = packed(options);
    return unfold(input, map, options);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const Options options = unpacked(ctx->saved_data.at("options").toIntVector());
    const Wanted wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const variable_list grads = UnfoldBackwardFunction::apply(grad_outputs[0], saved[0], saved[1], options, wanted);
    return {wanted[0] ? grads[0] : at::Tensor(), wanted[1] ? grads[1] : at::Tensor(), at::Tensor()};
  }
};

}  // namespace torch_detail

/// torch.nn.functional.unfold whose dilation is a map; differentiable once in both tensors. See ddu/unfold.h for the formula.
///
/// input         [B, C, H, W] or [C, H, W]: float16, bfloat16, float32 or float64, on the CPU or a CUDA device, any strides
/// dilation_map  [B or 1, groups, Ho or 1, Wo or 1], or without the batch: of the input's type, or float32 beside a half input
/// returns       [B, C*kH*kW, Ho*Wo] or [C*kH*kW, Ho*Wo]
///
/// The result is new memory. Any thread may call. Runs on at::get_num_threads() threads, or on the current stream of the
/// tensors' device. Throws ddu::invalid_argument, ddu::type_error or ddu::error with the messages that Python's ValueError,
/// TypeError and RuntimeError have; torch's own errors (c10::Error) pass through, as where it has no memory.
inline at::Tensor torch_unfold(const at::Tensor& input, Pair kernel_size, const at::Tensor& dilation_map,
                               const TorchOptions& options = {}) {
  const auto [x, map] = torch_detail::autocast<2>({input, dilation_map}, 1);
  torch_detail::check_tensors(x, map);
  const Options all = torch_detail::options_of(kernel_size, options);
  return torch_detail::UnfoldFunction::apply(x, torch_detail::full_map(x, map, all), all);
}

namespace nn {

/// torch_unfold with its options fixed. It has no parameters and no state.
class DynamicDilationUnfoldImpl : public torch::nn::Cloneable<DynamicDilationUnfoldImpl> {
 public:
  explicit DynamicDilationUnfoldImpl(Pair kernel_size, const TorchOptions& options = {})
      : kernel_size(kernel_size), options(options) {}

  void reset() override {}

  void pretty_print(std::ostream& stream) const override {
    const auto pair = [](Pair p) { return "(" + std::to_string(p[0]) + ", " + std::to_string(p[1]) + ")"; };
    stream << "DynamicDilationUnfold(kernel_size=" << pair(kernel_size) << ", stride=" << pair(options.stride)
           << ", padding=" << pair(options.padding) << ", dilation=" << pair(options.dilation) << ", groups=" << options.groups
           << (options.padding_mode == PaddingMode::border ? ", padding_mode=border)" : ")");
  }

  at::Tensor forward(const at::Tensor& input, const at::Tensor& dilation_map) {  // torch::nn::Sequential takes no const one
    return torch_unfold(input, kernel_size, dilation_map, options);
  }

  Pair kernel_size;
  TorchOptions options;
};
TORCH_MODULE(DynamicDilationUnfold);

}  // namespace nn
}  // namespace ddu
