#pragma once

// Aggregate for LibTorch: see ddu/torch.h.

#include "ddu/aggregate.h"
#include "ddu/torch/heads.h"

namespace ddu {
namespace torch_detail {

struct AggregateOperator {
  static constexpr const char* name = "ddu::torch_aggregate";

  static at::Tensor forward(const at::Tensor& given_input, const at::Tensor& given_weights, const at::Tensor& given_map,
                            const Options& options, std::int64_t) {
    const Types types = check_tensors({{"input", given_input}, {"weights", given_weights}, {"dilation_map", given_map, true}});
    const HeadGeometry g =
        make_aggregate_geometry(shape_of(given_input), shape_of(given_weights), shape_of(given_map), options);
    const MemoryFormat format = format_of(given_input);
    const at::Tensor input = in_memory("input", given_input, format), weights = in_memory("weights", given_weights),
                     map = in_memory("dilation_map", given_map);
    at::Tensor output = at::empty(values_sizes(g, input.dim() == 4), input.options(), torch_format(format));
    Aggregate tensors{
        input.const_data_ptr(), weights.const_data_ptr(), map.const_data_ptr(), output.mutable_data_ptr(), nullptr, format};
    run_forward(input, g, types, tensors, cpu::aggregate_workspace_bytes, cpu::aggregate, cuda::aggregate_workspace_bytes,
                cuda::aggregate);
    return output;
  }

  static GradientsOfThree backward(const at::Tensor& given_grad, const at::Tensor& given_input, const at::Tensor& given_weights,
                                   const at::Tensor& given_map, const Options& options, std::int64_t, WantedOfThree wanted) {
    const Types types = check_tensors({{"input", given_input}, {"weights", given_weights}, {"dilation_map", given_map, true}});
    const HeadGeometry g =
        make_aggregate_geometry(shape_of(given_input), shape_of(given_weights), shape_of(given_map), options);
    check_grad(given_grad, given_input, values_sizes(g, given_input.dim() == 4));
    const MemoryFormat format = format_of(given_input);
    const at::Tensor grad = in_memory("grad", given_grad, format), input = in_memory("input", given_input, format),
                     weights = in_memory("weights", given_weights), map = in_memory("dilation_map", given_map);
    GradientsOfThree grads;
    AggregateBackward tensors{};
    tensors.grad_output = grad.const_data_ptr();
    tensors.input = input.const_data_ptr();
    tensors.weights = weights.const_data_ptr();
    tensors.dilation_map = map.const_data_ptr();
    tensors.grad_input = new_gradient(wanted[0], input, format, grads[0]);
    tensors.grad_weights = new_gradient(wanted[1], weights, MemoryFormat::contiguous, grads[1]);
    tensors.grad_map = new_gradient(wanted[2], map, MemoryFormat::contiguous, grads[2]);
    tensors.input_format = format;
    run_backward(input, g, types, tensors, cpu::aggregate_backward_workspace_bytes, cpu::aggregate_backward,
                 cuda::aggregate_backward_workspace_bytes, cuda::aggregate_backward);
    return grads;
  }
};

}  // namespace torch_detail

/// What lies under each window, summed with weights; differentiable once in all three tensors. See ddu/aggregate.h for the
/// formula.
///
/// input         [B, C, H, W] or [C, H, W]
/// weights       [B or 1, heads, kH*kW, Ho, Wo], without the batch beside such an input; heads divides C
/// dilation_map  [B or 1, groups, Ho or 1, Wo or 1], or without the batch; groups divides C, and options.groups is not read
/// returns       [B, C, Ho, Wo] or [C, Ho, Wo], in the input's memory format
///
/// The rest is as for torch_unfold.
inline at::Tensor torch_aggregate(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& dilation_map,
                                  Pair kernel_size, const TorchOptions& options = {}) {
  const auto [x, w, map] = torch_detail::autocast<3>({input, weights, dilation_map}, 2);
  torch_detail::check_tensors({{"input", x}, {"weights", w}, {"dilation_map", map, true}});
  const Options all = torch_detail::options_of(kernel_size, options, map);
  return torch_detail::HeadFunction<torch_detail::AggregateOperator>::apply(x, w, torch_detail::full_map(x, map, all), all,
                                                                            std::int64_t{0});
}

}  // namespace ddu
