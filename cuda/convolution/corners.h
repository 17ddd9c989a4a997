#pragma once

// The host side of the gradients of map and mask (backward_corners.cuh). Their kernel is compiled twice, as that of square.h.

#include "../core/integer.h"
#include "../core/workspace.h"
#include "backward_corners.cuh"
#include "ddu/conv2d.h"
#include "square.h"

namespace ddu::cuda::convolution {

/// A call. Pointers are those of CornersPointers.
struct CornersCall {
  CornersParams params{};
  DType type{};
  int outputs = 0;           // of a block: 64 or 256
  std::int64_t vectors = 0;  // of 16 bytes, of the packed weight
  const void *grad_output = nullptr, *image = nullptr, *mask = nullptr, *map = nullptr;
  uint4* slices = nullptr;
  float *map_sums = nullptr, *mask_sums = nullptr;
  void *grad_map = nullptr, *grad_mask = nullptr, *zeros = nullptr;
  std::int64_t map_part = 0, mask_part = 0, zeros_count = 0;
  unsigned* flags = nullptr;  // of each block; null if images are not taken to be finite

  /// Takes images to be finite at first, where each pixel is the middle of a position, which tells, and where that was faster.
  /// What is added up could not be written again.
  void lay_out_flags(const Conv2dGeometry& c, Workspace& workspace) {
    const auto covers = [](const Sampler<float>& sampler, const Axis& axis) {
      return axis.kernel_size % 2 == 1 && axis.stride == 1 && sampler.shift <= 0 && sampler.shift + axis.out_size >= axis.size;
    };
    if (type != DType::float32 || outputs > 64 || !covers(params.y, c.geometry.h) || !covers(params.x, c.geometry.w)) return;
    flags = workspace.take<unsigned>(
        std::max<std::int64_t>(current_device().multiprocessors, params.by_output_blocks.divisor * c.weight_groups));
  }
};

/// What a block of so many outputs and warpgroups takes.
inline std::int64_t corners_shared_bytes(const CornersParams& p, int outputs, int groups, bool of_mask) {
  const std::int64_t ring = outputs > 64 ? CornersRing<256, true>::kBytes : CornersRing<64, true>::kBytes;
  // As CornersParams::table_bytes(), of windows of any size.
  const std::int64_t table = (std::int64_t{p.kernel_h} + p.kernel_w) * CornersParams::kTableBytes;
  const std::int64_t of_warp = table + (of_mask ? std::int64_t{p.taps} * kWarpRun * std::int64_t{sizeof(float)} : 0);
  return ring + groups * (kWarpgroupThreads / 32) * of_warp;
}

/// What is known of a call before its tensors are: `params` says how its channels are divided.
inline CornersCall corners_call(const Conv2dGeometry& c, DType type, const ConvBackwardParams& params) {
  const auto bytes = static_cast<std::int64_t>(size_of(type));
  CornersCall call;
  call.type = type;
  CornersParams& p = call.params;
  static_cast<ConvBackwardParams&>(p) = params;
  p.out_height = static_cast<int>(c.geometry.h.out_size);
  p.kernel_h = static_cast<int>(c.geometry.h.kernel_size);
  p.unit_blocks = static_cast<int>(ceil_div(p.unit_channels * bytes, std::int64_t{kStepBytes}));
  p.unit_vectors = static_cast<int>(ceil_div(p.unit_channels * bytes, std::int64_t{16}));
  const bool wide =
      c.weight_group_outputs() > 64 && corners_shared_bytes(p, 256, 1, c.has_mask) <= current_device().shared_per_block;
  call.outputs = wide ? 256 : 64;
  p.row_vectors = static_cast<unsigned>(p.row * bytes / 16);
  p.pixel_vectors = static_cast<unsigned>(p.rows.pixel * bytes / 16);
  p.by_output_blocks = Divider(static_cast<unsigned>(ceil_div(c.weight_group_outputs(), std::int64_t{call.outputs})));
  p.by_weight_groups = Divider(static_cast<unsigned>(c.weight_groups));
  call.vectors =
      c.weight_groups * p.by_output_blocks.divisor * p.weight_units * p.unit_blocks * p.taps * call.outputs * (kStepBytes / 16);
  return call;
}

/// Whether the current device has the shared memory that the call's taps take, and an image's vectors can be counted.
inline bool corners_fit(const CornersCall& call, bool of_mask) {
  return corners_shared_bytes(call.params, call.outputs, 1, of_mask) <= current_device().shared_per_block &&
         call.params.rows.image / kVec<std::uint16_t> < 1 << 29;
}

/// With products of warps, or of warpgroups where has_warpgroup_kernels().
void launch_corners_kernel(const CornersCall& call, const Geometry& geometry, Stream stream);
void launch_corners_warpgroup_kernel(const CornersCall& call, const Geometry& geometry, Stream stream);

/// All that a call takes.
inline void launch_corners_kernels(CornersCall call, const Geometry& geometry, Stream stream) {
  const auto launch_kernel = has_warpgroup_kernels() ? launch_corners_warpgroup_kernel : launch_corners_kernel;
  call.params.finite = call.flags != nullptr;
  launch_kernel(call, geometry, stream);
  if (!call.params.finite) return;
  call.params.finite = false;
  call.zeros_count = 0;
  launch_kernel(call, geometry, stream);
}
}  // namespace ddu::cuda::convolution
