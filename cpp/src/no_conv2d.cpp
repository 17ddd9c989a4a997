// The convolution's entry points of a build that has no kernels for it (DDU_FUSED_CONV2D): they say so.

#include "ddu/conv2d.h"
#include "ddu/error.h"

namespace ddu::cuda {
namespace {

[[noreturn]] void unavailable() { throw unsupported_device("this build of dynamic_dilation_unfold has no kernels of conv2d"); }

}  // namespace

bool conv2d_supported(const Conv2dGeometry&, Types) { return false; }
void conv2d_forward(const Conv2dGeometry&, Types, const Conv2d&, Stream) { unavailable(); }
std::size_t conv2d_forward_workspace_bytes(const Conv2dGeometry&, Types, const Conv2d&) { unavailable(); }
bool conv2d_backward_supported(const Conv2dGeometry&, Types, bool) { return false; }
void conv2d_backward(const Conv2dGeometry&, Types, const Conv2dBackward&, bool, Stream) { unavailable(); }
std::size_t conv2d_backward_workspace_bytes(const Conv2dGeometry&, Types, const Conv2dBackward&, bool) { unavailable(); }

}  // namespace ddu::cuda
