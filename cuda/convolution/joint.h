#pragma once

// The host side of the gradients of weight, map and mask together (backward_joint.cuh), for compute capability 9.0 alone.

#include "backward_joint.cuh"
#include "backward_weight.cuh"
#include "corners.h"
#include "square_launch.cuh"

namespace ddu::cuda::convolution {

/// Whether one kernel computes the gradient of the weight and those of map and mask: `params` are those of the corners' kernel.
inline bool can_join(const CornersParams& p, DType type) {
  return has_warpgroup_kernels() && is_half(type) && p.kernel_w == kJointTaps && p.unit_blocks == 1 && p.group_outputs <= 64 &&
         p.taps * p.positions <= INT_MAX && JointMemory::kBytes <= current_device().shared_per_block;
}

/// `units` are those of all channels; `weight` tells of the weight's sums. The tiles of a call are shared out so that there is
/// a block for each multiprocessor.
inline JointParams joint_params(const CornersParams& of_corners, const Geometry& g, std::int64_t units,
                                const ConvWeightParams& weight) {
  JointParams p{};
  static_cast<CornersParams&>(p) = of_corners;
  cut_tiles(g, 1, p);
  const std::int64_t stages = ceil_div(std::int64_t{p.tiles}, std::int64_t{kJointTaps});
  const std::int64_t wanted = std::max<std::int64_t>(1, current_device().multiprocessors / (units * p.kernel_h));
  p.stages = static_cast<int>(ceil_div(stages, std::min(wanted, stages)));
  p.splits = static_cast<int>(ceil_div(stages, std::int64_t{p.stages}));
  p.part = weight.part;
  p.padded_channels = weight.padded_channels;
  p.by_kernel_h = Divider(static_cast<unsigned>(p.kernel_h));
  p.by_splits = Divider(static_cast<unsigned>(p.splits));
  return p;
}

/// What is left to add up of a map's gradient: an array for each row of taps, if they are kept apart.
inline MapArrays map_arrays(const SharedGradient<float>& map) {
  if (!map.gradient || map.arrays < 2) return {};
  return {map.sums, map.gradient, map.count, static_cast<int>(map.arrays)};
}

struct JointCall {
  JointParams params;
  std::int64_t units;
  CornersCall corners;  // what else there is to know
  float* weight_sums;
};

void launch_joint_kernel(const JointCall& call, Stream stream);

}  // namespace ddu::cuda::convolution
