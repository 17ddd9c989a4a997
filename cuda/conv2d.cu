// Which kernels serve a call of the convolution: those of a depthwise one, or products of matrices.

#include "../cpp/src/conv2d_products.h"
#include "ddu/conv2d.h"
#include "depthwise.h"

namespace ddu::cuda {
namespace {

/// Whether a depthwise call is for the kernels of its own. Products of matrices have several outputs of a channel at once, each
/// of which samples it anew there; gradients of so few are not faster by products, unless the channel is the only one.
bool forward_by_depthwise(const Conv2dGeometry& c, Types types) {
  return depthwise::serves(c, types) && !(c.weight_group_outputs() > 1 && convolution::forward_supported(c, types));
}
bool backward_by_depthwise(const Conv2dGeometry& c, Types types, bool deterministic) {
  const bool ordinary = c.geometry.channels == 1 && c.out_channels > 1;
  return depthwise::serves(c, types) && !(ordinary && convolution::backward_supported(c, types, deterministic));
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
