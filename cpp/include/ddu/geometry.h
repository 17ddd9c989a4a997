#pragma once

#include <cstdint>

#include "ddu/export.h"

namespace ddu {

/// What a tap outside the image reads.
enum class PaddingMode : std::int32_t {
  zeros = 0,   ///< 0: the image is extended by zeros
  border = 1,  ///< the nearest pixel of the image; along an axis in which it is outside, its derivative is 0
};

/// One spatial axis of the operator: what F.unfold knows about it.
struct Axis {
  std::int64_t size;      ///< of the input, in pixels
  std::int64_t out_size;  ///< of the output of this call, in positions
  std::int64_t kernel_size;
  std::int64_t stride;
  std::int64_t padding;
  std::int64_t dilation;    ///< base dilation, which the map multiplies
  std::int64_t origin = 0;  ///< position of the whole output that is this call's first; see Options::part
};

/// Every size of one call, validated. Trivially copyable, so that it travels by value into kernels.
///
/// input        [batch, channels, h.size, w.size]
/// dilation_map [map_batch, groups, h.out_size, w.out_size]   map_batch is batch, or 1 and broadcast
/// output       [batch, channels * h.kernel_size * w.kernel_size, h.out_size * w.out_size]
struct Geometry {
  std::int64_t batch;
  std::int64_t channels;
  std::int64_t groups;
  std::int64_t map_batch;
  Axis h;
  Axis w;
  PaddingMode padding_mode;

  constexpr std::int64_t taps() const { return h.kernel_size * w.kernel_size; }
  constexpr std::int64_t positions() const { return h.out_size * w.out_size; }
  constexpr std::int64_t pixels() const { return h.size * w.size; }
  constexpr std::int64_t group_channels() const { return channels / groups; }
  constexpr std::int64_t input_numel() const { return batch * channels * pixels(); }
  constexpr std::int64_t map_numel() const { return map_batch * groups * positions(); }
  constexpr std::int64_t columns_numel() const { return batch * channels * taps() * positions(); }
  /// Where in the map the plane for image `b` and group `g` starts, in elements.
  constexpr std::int64_t map_offset(std::int64_t b, std::int64_t g) const {
    return ((map_batch == 1 ? 0 : b) * groups + g) * positions();
  }
};

/// Options in the order (height, width).
struct Options {
  std::int64_t kernel_size[2] = {1, 1};
  std::int64_t stride[2] = {1, 1};
  std::int64_t padding[2] = {0, 0};
  std::int64_t dilation[2] = {1, 1};
  std::int64_t groups = 1;
  PaddingMode padding_mode = PaddingMode::zeros;
  /// Whether the call has only a part of the output's positions: as many rows and columns as its map, from `origin` on. The
  /// input is whole all the same, and its gradient is that of these positions. So a large call can be made in pieces.
  bool part = false;
  std::int64_t origin[2] = {0, 0};
};

/// The sizes of a tensor, not owned.
struct Shape {
  const std::int64_t* sizes;
  int dims;
};

/// Positions of the whole output along an axis (0 height, 1 width) of `size` pixels, as torch.nn.functional.unfold has them; 0
/// where no window fits. The options are valid.
constexpr std::int64_t output_size(std::int64_t size, const Options& options, int axis) {
  const std::int64_t span = size + 2 * options.padding[axis] - options.dilation[axis] * (options.kernel_size[axis] - 1) - 1;
  return span < 0 ? 0 : span / options.stride[axis] + 1;
}

/// Validates a call and works out its sizes. The rules for shapes are here, and nowhere else; Python has output_size() once
/// more, for sizes that are symbols.
///
/// input is [B, C, H, W] with a map [B or 1, groups, Ho, Wo], or [C, H, W] with a map [groups, Ho, Wo], where
///   Ho = floor((H + 2 * padding - dilation * (kernel_size - 1) - 1) / stride) + 1        (as torch.nn.functional.unfold)
/// or, of a part of the output, as many rows and columns of it as the map has.
/// Throws ddu::invalid_argument, which names the argument, what was expected and what was given.
DDU_API Geometry make_geometry(Shape input, Shape dilation_map, const Options& options);

}  // namespace ddu
