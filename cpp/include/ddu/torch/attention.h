#pragma once

// Coverage and attention for LibTorch, composed of the other operators: see ddu/torch.h.

#include <cmath>
#include <limits>
#include <optional>
#include <sstream>

#include "ddu/torch/aggregate.h"
#include "ddu/torch/correlate.h"
#include "ddu/torch/unfold.h"

namespace ddu {

/// The share of each tap's weight that lies on pixels of an image of some size, in [0, 1]: the columns of an image of ones.
///
/// dilation_map  [B, groups, Ho or 1, Wo or 1], or without the batch
/// returns       [B, groups, kH*kW, Ho, Wo], or without the batch, of the map's type
inline at::Tensor torch_coverage(const at::Tensor& dilation_map, Pair input_size, Pair kernel_size,
                                 const TorchOptions& options = {}) {
  torch_detail::check_dense("dilation_map", dilation_map);
  if (dilation_map.dim() != 3 && dilation_map.dim() != 4) {
    std::ostringstream text;
    text << "dilation_map must have shape [B, G, Ho, Wo] or [G, Ho, Wo], got " << dilation_map.sizes();
    throw invalid_argument(text.str().c_str());
  }
  std::vector<std::int64_t> sizes = dilation_map.sizes().vec();
  const auto groups = sizes[sizes.size() - 3], taps = kernel_size[0] * kernel_size[1];
  sizes[sizes.size() - 2] = input_size[0];
  sizes[sizes.size() - 1] = input_size[1];
  TorchOptions all = options;
  all.groups = groups;
  const at::Tensor columns = torch_unfold(at::ones(sizes, dilation_map.options()), kernel_size, dilation_map, all);
  const Options window = torch_detail::options_of(kernel_size, all);
  return columns.unflatten(-2, {groups, taps})
      .unflatten(-1, {output_size(input_size[0], window, 0), output_size(input_size[1], window, 1)});
}

/// Attention of each position to the taps of its window; differentiable once in all tensors.
///
///   s = scale * correlate(query, key) + bias
///   output = sum over taps t of e^s[t] * S_value[t] / sum over t of m[t] * e^s[t]        m: torch_coverage
///
/// so that what lies outside the image takes no part; 0 where no tap meets the image. With padding_mode border all taps do.
///
/// query [B, C, Ho, Wo], key [B, C, H, W], value [B, Cv, H, W], or all without the batch; heads divides C and Cv
/// dilation_map  [B or 1, groups, Ho or 1, Wo or 1]; groups is 1 or divides heads
/// bias          broadcast to [B, heads, kH*kW, Ho, Wo]; undefined for none
/// scale         (C/heads)^-0.5 unless given
/// returns       [B, Cv, Ho, Wo]
inline at::Tensor torch_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  const at::Tensor& dilation_map, Pair kernel_size, const TorchOptions& options = {},
                                  std::int64_t heads = 1, const at::Tensor& bias = {}, std::optional<double> scale = {}) {
  torch_detail::check_dense("query", query);
  torch_detail::check_dense("key", key);
  torch_detail::check_dense("dilation_map", dilation_map);
  const std::int64_t channels = query.dim() >= 3 ? query.size(-3) : 0;
  const std::int64_t groups = dilation_map.dim() >= 3 ? dilation_map.size(-3) : 1;
  if (heads < 1 || groups < 1 || heads % groups != 0) {
    std::ostringstream text;
    text << "the groups of dilation_map " << dilation_map.sizes() << " must be 1 or divide the heads, got " << groups
         << " groups for " << heads << " heads";
    throw invalid_argument(text.str().c_str());
  }
  const std::int64_t head_channels = channels / heads;
  const double factor = scale ? *scale : head_channels > 0 ? 1 / std::sqrt(static_cast<double>(head_channels)) : 1.0;
  const at::Tensor scores = torch_correlate(query * factor, key, dilation_map, kernel_size, options, heads);
  const at::ScalarType type = scores.scalar_type(), accumulate = at::promote_types(type, at::kFloat);
  at::Tensor weights = scores.to(accumulate);
  if (bias.defined()) weights = weights + bias.to(accumulate);
  if (options.padding_mode == PaddingMode::border) {
    weights = weights.softmax(-3);
  } else {
    const at::Tensor coverage =
        torch_coverage(dilation_map.to(accumulate), {key.size(-2), key.size(-1)}, kernel_size, options).unsqueeze(-4);
    // Where no tap meets the image nothing is masked, as a softmax of nothing but -inf is NaN.
    at::Tensor outside = coverage == 0;
    outside = outside.logical_and(outside.all(-3, true).logical_not());
    const at::Tensor shares = weights.unflatten(-4, {groups, heads / groups})
                                  .masked_fill(outside, -std::numeric_limits<double>::infinity())
                                  .softmax(-3);
    const at::Tensor inside = (shares * coverage).sum(-3, true);
    const double tiny = type == at::kHalf     ? 6.103515625e-05
                        : type == at::kDouble ? std::numeric_limits<double>::min()
                                              : static_cast<double>(std::numeric_limits<float>::min());
    weights = (shares / inside.masked_fill(inside < tiny, std::numeric_limits<double>::infinity())).flatten(-5, -4);
  }
  return torch_aggregate(value, weights.to(type), dilation_map, kernel_size, options);
}

}  // namespace ddu
