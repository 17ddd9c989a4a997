#pragma once

#include <cstdint>

#include "ddu/geometry.h"

namespace ddu {

/// Every size of one call of the convolution (ddu/conv2d.h), validated. Trivially copyable, so that it travels by value into
/// kernels.
///
/// Channels are divided three times, and the divisions know nothing of each other: into groups, which share rates; into heads,
/// which share a mask; and into weight groups, each of which has its own outputs, as the groups of torch.nn.functional.conv2d.
struct Conv2dGeometry {
  Geometry geometry;  ///< of input and dilation_map; its groups are the map's
  std::int64_t out_channels;
  std::int64_t weight_groups;  ///< divides channels and out_channels
  std::int64_t heads;          ///< of the mask; 1 without
  std::int64_t mask_batch;     ///< batch, or 1 and broadcast
  bool has_mask;
  bool allow_tf32 = false;  ///< whether products of float32 may round their factors to TF32, as the caller's convolutions do

  constexpr std::int64_t weight_group_channels() const { return geometry.channels / weight_groups; }
  constexpr std::int64_t weight_group_outputs() const { return out_channels / weight_groups; }
  constexpr std::int64_t head_channels() const { return geometry.channels / heads; }
  constexpr std::int64_t weight_numel() const { return out_channels * weight_group_channels() * geometry.taps(); }
  constexpr std::int64_t output_numel() const { return geometry.batch * out_channels * geometry.positions(); }
  constexpr std::int64_t mask_numel() const {
    return has_mask ? mask_batch * heads * geometry.taps() * geometry.positions() : 0;
  }
  /// Where in the mask that of image `b` and head `h` starts, in elements.
  constexpr std::int64_t mask_offset(std::int64_t b, std::int64_t h) const {
    return ((mask_batch == 1 ? 0 : b) * heads + h) * geometry.taps() * geometry.positions();
  }
};

/// Validates a call and works out its sizes. input and dilation_map are as for make_geometry; weight is
/// [O, C / weight_groups, kH, kW], where both C and O are whole numbers of weight groups; mask is [B or 1, heads, kH * kW, Ho,
/// Wo], or [heads, kH * kW, Ho, Wo] beside an input without batch, or has no dimensions where there is none. Of the options,
/// kernel_size and groups are not read: they are the weight's and the map's. Throws ddu::invalid_argument, which names the
/// argument, what was expected and what was given.
DDU_API Conv2dGeometry make_conv2d_geometry(Shape input, Shape weight, Shape dilation_map, Shape mask, const Options& options);

}  // namespace ddu
