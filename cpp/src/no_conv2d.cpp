// Products of matrices for the convolution, of a build that has none (DDU_FUSED_CONV2D, or devices without): it says so.

#include "conv2d_products.h"
#include "ddu/error.h"

namespace ddu::cuda::convolution {
namespace {

[[noreturn]] void unavailable() {
  throw unsupported_device("this build of dynamic_dilation_unfold has no kernels of conv2d but for a depthwise one");
}

}  // namespace

bool forward_supported(const Conv2dGeometry&, Types) { return false; }
void forward(const Conv2dGeometry&, Types, const Conv2d&, Stream) { unavailable(); }
std::size_t forward_workspace_bytes(const Conv2dGeometry&, Types, const Conv2d&) { unavailable(); }
bool backward_supported(const Conv2dGeometry&, Types, bool) { return false; }
void backward(const Conv2dGeometry&, Types, const Conv2dBackward&, bool, Stream) { unavailable(); }
std::size_t backward_workspace_bytes(const Conv2dGeometry&, Types, const Conv2dBackward&, bool) { unavailable(); }

}  // namespace ddu::cuda::convolution
