#pragma once

// The host side of the gradient of the weight (backward_weight.cuh). For more than 128 outputs of half types its kernel is
// compiled a second time, with products of warpgroups, as that of square.h.

#include "../core/launch.h"
#include "backward_weight.cuh"

namespace ddu::cuda::convolution {

/// A call. Pointers are those of ConvWeightPointers.
struct WeightCall {
  ConvWeightParams params;
  DType type;
  unsigned blocks;
  const void *grad_output, *image, *mask, *map;
  float* sums;
};

template <class T, int kWarps, bool kWarpgroup>
void launch_weight(const WeightCall& call, Stream stream) {
  const ConvWeightPointers<T> tensors{static_cast<const T*>(call.grad_output), static_cast<const T*>(call.image),
                                      static_cast<const T*>(call.mask), call.map, call.sums};
  launch(conv_weight_backward_kernel<T, kWarps, kWarpgroup>,
         {call.blocks, 32 * kWarps, kWeightShared<T, kWarps, kWarpgroup>, true}, stream, call.params, tensors);
}

void launch_weight_warpgroup_kernel(const WeightCall& call, Stream stream);

}  // namespace ddu::cuda::convolution
