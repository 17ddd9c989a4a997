#pragma once

// Host side of the backward of aggregate, correlate and the depthwise convolution, which is the same but for what is a factor
// and what is a value.

#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"

namespace ddu::cuda::channels_last {

/// Of aggregate, values are grad_output and factors the weights; of correlate, values are the query and factors grad_scores; of
/// a depthwise convolution, values are grad_output, and factors the mask, or null for ones. Gradients that are null are not
/// wanted; one of grad_values and grad_factors always is.
struct OuterProduct {
  const void *values, *factors, *image, *map;
  void *grad_values, *grad_factors, *grad_image, *grad_map;
  void* workspace;
  MemoryFormat format;  // of image and values, and their gradients
  bool of_factors;      // whether there is a gradient of the factors, not of the values
  // Of a depthwise convolution, [channels, outputs, taps]; else null. The values then have `outputs` times the image's
  // channels.
  const void* weight = nullptr;
  void* grad_weight = nullptr;
  std::int64_t outputs = 1;
};

std::size_t outer_product_workspace_bytes(const HeadGeometry& h, Types types, const OuterProduct& given, bool deterministic);
void outer_product(const HeadGeometry& h, Types types, const OuterProduct& given, bool deterministic, Stream stream);

}  // namespace ddu::cuda::channels_last
