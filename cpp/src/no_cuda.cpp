// The CUDA entry points of a build without CUDA: they say so.

#include "ddu/aggregate.h"
#include "ddu/attention.h"
#include "ddu/conv2d.h"
#include "ddu/correlate.h"
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
void aggregate(const HeadGeometry&, Types, const Aggregate&, Stream) { unavailable(); }
std::size_t aggregate_workspace_bytes(const HeadGeometry&, Types, const Aggregate&) { unavailable(); }
void aggregate_backward(const HeadGeometry&, Types, const AggregateBackward&, bool, Stream) { unavailable(); }
std::size_t aggregate_backward_workspace_bytes(const HeadGeometry&, Types, const AggregateBackward&, bool) { unavailable(); }
void correlate(const HeadGeometry&, Types, const Correlate&, Stream) { unavailable(); }
std::size_t correlate_workspace_bytes(const HeadGeometry&, Types, const Correlate&) { unavailable(); }
void correlate_backward(const HeadGeometry&, Types, const CorrelateBackward&, bool, Stream) { unavailable(); }
std::size_t correlate_backward_workspace_bytes(const HeadGeometry&, Types, const CorrelateBackward&, bool) { unavailable(); }
bool attention_supported(const HeadGeometry&, Types, MemoryFormat) { return false; }
void attention(const HeadGeometry&, Types, const Attention&, Stream) { unavailable(); }
std::size_t attention_workspace_bytes(const HeadGeometry&, Types, const Attention&) { unavailable(); }
void attention_backward(const HeadGeometry&, Types, const AttentionBackward&, Stream) { unavailable(); }
std::size_t attention_backward_workspace_bytes(const HeadGeometry&, Types, const AttentionBackward&) { unavailable(); }
bool conv2d_supported(const Conv2dGeometry&, Types) { return false; }
void conv2d_forward(const Conv2dGeometry&, Types, const Conv2d&, Stream) { unavailable(); }
std::size_t conv2d_forward_workspace_bytes(const Conv2dGeometry&, Types, const Conv2d&) { unavailable(); }
bool conv2d_backward_supported(const Conv2dGeometry&, Types, bool) { return false; }
void conv2d_backward(const Conv2dGeometry&, Types, const Conv2dBackward&, bool, Stream) { unavailable(); }
std::size_t conv2d_backward_workspace_bytes(const Conv2dGeometry&, Types, const Conv2dBackward&, bool) { unavailable(); }
int toolkit_version() { return 0; }
const char* architectures() { return ""; }

}  // namespace ddu::cuda
