#pragma once

// The convolution by products of matrices (cuda/convolution), which not every build has: those without are of no_conv2d.cpp.

#include "ddu/conv2d.h"

namespace ddu::cuda::convolution {

/// As ddu::cuda::conv2d_supported and its like, but for depthwise convolutions.
bool forward_supported(const Conv2dGeometry& c, Types types);
void forward(const Conv2dGeometry& c, Types types, const Conv2d& tensors, Stream stream);
std::size_t forward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2d& tensors);
bool backward_supported(const Conv2dGeometry& c, Types types, bool deterministic);
void backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic, Stream stream);
std::size_t backward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic);

}  // namespace ddu::cuda::convolution
