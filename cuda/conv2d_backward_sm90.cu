// The convolution's kernels for its gradients, for devices of compute capability 9.0 alone. Compiled for
// sm_90a, and for nothing else.

#include "convolution/corners_launch.cuh"
#include "convolution/input.h"
#include "convolution/joint.h"
#include "convolution/weight.h"

namespace ddu::cuda::convolution {

void launch_corners_warpgroup_kernel(const CornersCall& call, const Geometry& g, Stream stream) {
  launch_corners<true>(call, g, stream);
}

void launch_input_warpgroup_kernel(const InputCall& call, Stream stream) { launch_input<true>(call, stream); }

void launch_gather_warpgroup_kernel(const GatherCall& call, Stream stream) { launch_gather<true>(call, stream); }

void launch_joint_kernel(const JointCall& call, Stream stream) {
  visit(call.corners.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) == 2) {
      const JointParams& p = call.params;
      leave_rest_to_l1(conv_joint_backward_kernel<T>, JointMemory::kBytes);
      launch(conv_joint_backward_kernel<T>,
             {grid_size(call.units * p.splits * p.kernel_h), kJointThreads, JointMemory::kBytes, true}, stream, p,
             corners_pointers<T>(call.corners), call.weight_sums);
    }
  });
}

void launch_weight_warpgroup_kernel(const WeightCall& call, Stream stream) {
  visit(call.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) == 2) launch_weight<T, 16, true>(call, stream);
  });
}

}  // namespace ddu::cuda::convolution
