// The CUDA entry points of a build without CUDA: they say so.

#include "ddu/error.h"
#include "ddu/unfold.h"

namespace ddu::cuda {
namespace {

[[noreturn]] void unavailable() { throw unsupported_device("this build of dynamic_dilation_unfold has no CUDA kernels"); }

}  // namespace

void unfold(const Geometry&, Types, const Unfold&, Stream) { unavailable(); }
std::size_t unfold_workspace_bytes(const Geometry&, Types, const Unfold&) { unavailable(); }
void unfold_backward(const Geometry&, Types, const UnfoldBackward&, bool, Stream) { unavailable(); }
std::size_t unfold_backward_workspace_bytes(const Geometry&, Types, const UnfoldBackward&, bool) { unavailable(); }
int toolkit_version() { return 0; }
const char* architectures() { return ""; }

}  // namespace ddu::cuda
