// The convolution's kernel for gradients of map and mask, with products of warps. One for warpgroups has a file of its own.

#include "convolution/corners_launch.cuh"
#include "convolution/input.h"
#include "convolution/joint.h"
#include "convolution/weight.h"

namespace ddu::cuda::convolution {

#if !defined(DDU_HAS_SM90)
void launch_corners_warpgroup_kernel(const CornersCall&, const Geometry&, Stream) {}
void launch_input_warpgroup_kernel(const InputCall&, Stream) {}
void launch_gather_warpgroup_kernel(const GatherCall&, Stream) {}
void launch_weight_warpgroup_kernel(const WeightCall&, Stream) {}
void launch_joint_kernel(const JointCall&, Stream) {}
#endif

void launch_corners_kernel(const CornersCall& call, const Geometry& g, Stream stream) {
  launch_corners<false>(call, g, stream);
}

}  // namespace ddu::cuda::convolution
