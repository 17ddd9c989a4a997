#pragma once

// What one instruction set's kernels offer to the parallel loops of sums.cpp: see unfold_kernels.h. Two sums and a backward
// make the two operators, which are each other's backward:
//
//   aggregate            sum_taps(weights, input)               correlate            sum_channels(query, key)
//   its grad_weights     sum_channels(grad_output, input)       its grad_query       sum_taps(grad_scores, key)
//   its other gradients  backward(weights, grad_output)         its other gradients  backward(grad_scores, query)

#include <cstdint>

#include "core/scratch.h"
#include "core/tiling.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"

namespace ddu::cpu {

/// result[b, c] = sum over taps of factors[b, h(c), t] * S[b, c, t]
struct TapSum {
  const void *image, *factors, *map;
  void* result;
  MemoryFormat format;  // of image and result
};

/// result[b, h, t] = sum over the channels c of head h of values[b, c] * S[b, c, t], and over images that share the result
struct ChannelSum {
  const void *image, *values, *map;
  void* result;
  MemoryFormat format;  // of image and values
};

/// The gradients of image and map, where the gradient of S[b, c, t] is factors[b, h(c), t] * values[b, c].
struct ProductBackward {
  const void *image, *factors, *values, *map;
  void *grad_image, *grad_map;
  MemoryFormat format;  // of image, values and grad_image
};

struct SumsKernels {
  /// Channels of a Vec.
  int lanes;
  void (*sum_taps)(const HeadGeometry&, DType map_type, const TapSum&, const Slice&, const Region&, const Scratch&);
  void (*sum_channels)(const HeadGeometry&, DType map_type, const ChannelSum&, const HeadRun&, const Region&, const Scratch&);
  /// Of a slice of at most `lanes` channels, as far as the band goes. `map_sums` is as for unfold.
  void (*backward)(const HeadGeometry&, DType map_type, const ProductBackward&, const Slice&, const Band&, const Scratch&,
                   void* map_sums);
  SumMap sum_map;
};

namespace baseline {
extern const SumsKernels sums_kernels[4];  // by input DType
}
namespace avx2 {
extern const SumsKernels sums_kernels[4];
}
namespace avx512 {
extern const SumsKernels sums_kernels[4];
}

}  // namespace ddu::cpu
