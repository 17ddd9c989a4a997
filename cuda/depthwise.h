#pragma once

// Host side of a depthwise convolution: one whose weight has a group for each channel. An output is aggregate's of that
// channel, with weights that are the same at all positions, so the kernels are those of aggregate, in float32 for float32.

#include "ddu/conv2d.h"

namespace ddu::cuda::depthwise {

/// Whether a call is one, of few enough outputs for each channel. Its backward may be deterministic.
bool serves(const Conv2dGeometry& c, Types types);

void forward(const Conv2dGeometry& c, Types types, const Conv2d& tensors, Stream stream);
std::size_t forward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2d& tensors);
void backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic, Stream stream);
std::size_t backward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic);

}  // namespace ddu::cuda::depthwise
