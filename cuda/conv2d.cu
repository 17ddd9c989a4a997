// Which kernels serve a call of the convolution: those of a depthwise one, or products of matrices.

#include "../cpp/src/conv2d_products.h"
#include "ddu/conv2d.h"
#include "depthwise.h"

namespace ddu::cuda {
namespace {

/// One of a single channel is an ordinary convolution too, whose outputs products of matrices have all at once.
bool is_ordinary(const Conv2dGeometry& c) { return c.geometry.channels == 1 && c.out_channels > 1; }

/// Whether a depthwise call is for the kernels of its own. Those sample anew for each output of a channel, and keep all digits
/// of float32, which is why half types alone leave several outputs to products; gradients are not faster by them.
bool forward_by_depthwise(const Conv2dGeometry& c, Types types) {
  const bool several = c.weight_group_outputs() > 1 && types.input != DType::float32;
  return depthwise::serves(c, types) && !((several || is_ordinary(c)) && convolution::forward_supported(c, types));
}
bool backward_by_depthwise(const Conv2dGeometry& c, Types types, bool deterministic) {
  return depthwise::serves(c, types) && !(is_ordinary(c) && convolution::backward_supported(c, types, deterministic));
}

}  // namespace

bool conv2d_supported(const Conv2dGeometry& c, Types types) {
  return depthwise::serves(c, types) || convolution::forward_supported(c, types);
}

std::size_t conv2d_forward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2d& tensors) {
  if (forward_by_depthwise(c, types)) return depthwise::forward_workspace_bytes(c, types, tensors);
  return convolution::forward_workspace_bytes(c, types, tensors);
}

void conv2d_forward(const Conv2dGeometry& c, Types types, const Conv2d& tensors, Stream stream) {
  if (forward_by_depthwise(c, types)) return depthwise::forward(c, types, tensors, stream);
  convolution::forward(c, types, tensors, stream);
}

bool conv2d_backward_supported(const Conv2dGeometry& c, Types types, bool deterministic) {
  return depthwise::serves(c, types) || convolution::backward_supported(c, types, deterministic);
}

std::size_t conv2d_backward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors,
                                            bool deterministic) {
  if (backward_by_depthwise(c, types, deterministic)) {
    return depthwise::backward_workspace_bytes(c, types, tensors, deterministic);
  }
  return convolution::backward_workspace_bytes(c, types, tensors, deterministic);
}

void conv2d_backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& tensors, bool deterministic, Stream stream) {
  if (backward_by_depthwise(c, types, deterministic)) {
    return depthwise::backward(c, types, tensors, deterministic, stream);
  }
  convolution::backward(c, types, tensors, deterministic, stream);
}

}  // namespace ddu::cuda
