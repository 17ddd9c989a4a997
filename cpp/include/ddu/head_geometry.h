#pragma once

#include <cstdint>

#include "ddu/geometry.h"

namespace ddu {

/// Every size of one call of an operator that sums over taps or channels (ddu/aggregate.h, ddu/correlate.h), validated.
/// Trivially copyable, so that it travels by value into kernels.
///
/// The channels are divided into groups, which share rates, and into heads, which share weights or scores: two divisions that
/// know nothing of each other. Channel c has group c / (channels / groups) and head c / (channels / heads).
///
/// image         [batch, channels, h.size, w.size]                         input of aggregate, key of correlate: it is sampled
/// dilation_map  [map_batch, groups, h.out_size, w.out_size]
/// values        [batch, channels, h.out_size, w.out_size]                 output of aggregate, query of correlate
/// factors       [factors_batch, heads, taps, h.out_size, w.out_size]      weights of aggregate, scores of correlate
struct HeadGeometry {
  Geometry geometry;
  std::int64_t heads;
  std::int64_t factors_batch;  ///< batch, or 1 and broadcast

  constexpr std::int64_t head_channels() const { return geometry.channels / heads; }
  constexpr std::int64_t values_numel() const { return geometry.batch * geometry.channels * geometry.positions(); }
  constexpr std::int64_t factors_numel() const { return factors_batch * heads * geometry.taps() * geometry.positions(); }
  /// Where in the factors those of image `b` and head `h` start, in elements.
  constexpr std::int64_t factors_offset(std::int64_t b, std::int64_t h) const {
    return ((factors_batch == 1 ? 0 : b) * heads + h) * geometry.taps() * geometry.positions();
  }
};

/// Validates a call of aggregate and works out its sizes. input and dilation_map are as for make_geometry; weights is
/// [B or 1, heads, kH * kW, Ho, Wo], or [heads, kH * kW, Ho, Wo] beside an input without batch. `options.groups` is not read:
/// the groups are the map's. Throws ddu::invalid_argument, which names the argument, what was expected and what was given.
DDU_API HeadGeometry make_aggregate_geometry(Shape input, Shape weights, Shape dilation_map, const Options& options);

/// The same of a call of correlate: key and dilation_map are as the input and the map of make_geometry, query is [B, C, Ho,
/// Wo], or [C, Ho, Wo] beside a key without batch.
DDU_API HeadGeometry make_correlate_geometry(Shape query, Shape key, Shape dilation_map, const Options& options,
                                             std::int64_t heads);

}  // namespace ddu
