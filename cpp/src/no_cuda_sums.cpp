// The CUDA entry points of aggregate and correlate in a build without their kernels: they say so.

#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "ddu/error.h"

namespace ddu::cuda {
namespace {

[[noreturn]] void unavailable() {
  throw unsupported_device("this build of dynamic_dilation_unfold has no CUDA kernels for aggregate and correlate");
}

}  // namespace

void aggregate(const HeadGeometry&, Types, const Aggregate&, Stream) { unavailable(); }
std::size_t aggregate_workspace_bytes(const HeadGeometry&, Types, const Aggregate&) { unavailable(); }
void aggregate_backward(const HeadGeometry&, Types, const AggregateBackward&, bool, Stream) { unavailable(); }
std::size_t aggregate_backward_workspace_bytes(const HeadGeometry&, Types, const AggregateBackward&, bool) { unavailable(); }
void correlate(const HeadGeometry&, Types, const Correlate&, Stream) { unavailable(); }
std::size_t correlate_workspace_bytes(const HeadGeometry&, Types, const Correlate&) { unavailable(); }
void correlate_backward(const HeadGeometry&, Types, const CorrelateBackward&, bool, Stream) { unavailable(); }
std::size_t correlate_backward_workspace_bytes(const HeadGeometry&, Types, const CorrelateBackward&, bool) { unavailable(); }

}  // namespace ddu::cuda
