#pragma once

// Correlate for LibTorch: see ddu/torch.h.

#include "ddu/correlate.h"
#include "ddu/torch/heads.h"

namespace ddu {
namespace torch_detail {

struct CorrelateOperator {
  static constexpr const char* name = "ddu::torch_correlate";

  static at::Tensor forward(const at::Tensor& given_query, const at::Tensor& given_key, const at::Tensor& given_map,
                            const Options& options, std::int64_t heads) {
    const Types types = check_tensors({{"query", given_query}, {"key", given_key}, {"dilation_map", given_map, true}});
    const HeadGeometry g =
        make_correlate_geometry(shape_of(given_query), shape_of(given_key), shape_of(given_map), options, heads);
    const MemoryFormat format = format_of(given_key);
    const at::Tensor query = in_memory("query", given_query, format), key = in_memory("key", given_key, format),
                     map = in_memory("dilation_map", given_map);
    at::Tensor scores = at::empty(factors_sizes(g, key.dim() == 4), key.options());
    Correlate tensors{
        query.const_data_ptr(), key.const_data_ptr(), map.const_data_ptr(), scores.mutable_data_ptr(), nullptr, format};
    run_forward(key, g, types, tensors, cpu::correlate_workspace_bytes, cpu::correlate, cuda::correlate_workspace_bytes,
                cuda::correlate);
    return scores;
  }

  static GradientsOfThree backward(const at::Tensor& given_grad, const at::Tensor& given_query, const at::Tensor& given_key,
                                   const at::Tensor& given_map, const Options& options, std::int64_t heads,
                                   WantedOfThree wanted) {
    const Types types = check_tensors({{"query", given_query}, {"key", given_key}, {"dilation_map", given_map, true}});
    const HeadGeometry g =
        make_correlate_geometry(shape_of(given_query), shape_of(given_key), shape_of(given_map), options, heads);
    check_grad(given_grad, given_key, factors_sizes(g, given_key.dim() == 4));
    const MemoryFormat format = format_of(given_key);
    const at::Tensor grad = in_memory("grad", given_grad), query = in_memory("query", given_query, format),
                     key = in_memory("key", given_key, format), map = in_memory("dilation_map", given_map);
    GradientsOfThree grads;
    CorrelateBackward tensors{};
    tensors.grad_scores = grad.const_data_ptr();
    tensors.query = query.const_data_ptr();
    tensors.key = key.const_data_ptr();
    tensors.dilation_map = map.const_data_ptr();
    tensors.grad_query = new_gradient(wanted[0], query, format, grads[0]);
    tensors.grad_key = new_gradient(wanted[1], key, format, grads[1]);
    tensors.grad_map = new_gradient(wanted[2], map, MemoryFormat::contiguous, grads[2]);
    tensors.input_format = format;
    run_backward(key, g, types, tensors, cpu::correlate_backward_workspace_bytes, cpu::correlate_backward,
                 cuda::correlate_backward_workspace_bytes, cuda::correlate_backward);
    return grads;
  }
};

}  // namespace torch_detail

/// A query compared with what lies under its window; differentiable once in all three tensors. See ddu/correlate.h for the
/// formula.
///
/// query         [B, C, Ho, Wo] or [C, Ho, Wo]
/// key           [B, C, H, W] or [C, H, W]
/// dilation_map  [B or 1, groups, Ho or 1, Wo or 1], or without the batch; groups divides C, and options.groups is not read
/// heads         divides C
/// returns       [B, heads, kH*kW, Ho, Wo] or [heads, kH*kW, Ho, Wo]
///
/// The rest is as for torch_unfold.
inline at::Tensor torch_correlate(const at::Tensor& query, const at::Tensor& key, const at::Tensor& dilation_map,
                                  Pair kernel_size, const TorchOptions& options = {}, std::int64_t heads = 1) {
  const auto [q, k, map] = torch_detail::autocast<3>({query, key, dilation_map}, 2);
  torch_detail::check_tensors({{"query", q}, {"key", k}, {"dilation_map", map, true}});
  const Options all = torch_detail::options_of(kernel_size, options, map);
  return torch_detail::HeadFunction<torch_detail::CorrelateOperator>::apply(q, k, torch_detail::full_map(k, map, all), all,
                                                                            heads);
}

}  // namespace ddu
