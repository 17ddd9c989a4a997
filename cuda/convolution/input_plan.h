#pragma once

// How a call's gradient of the input is computed: gathered, or scattered from its columns.

#include <climits>

#include "ddu/conv2d.h"
#include "input.h"
#include "square.h"

namespace ddu::cuda::convolution {

/// Whether it is gathered: where warpgroups multiply, of few taps and few outputs, whose weights are in shared memory from
/// start to end, with grad_output in whole vectors. Each tile looks at all boxes of its image, which would be most of the work
/// of an image with a million positions. Not where an edge extends the image, and may get more taps than all other pixels
/// together. Emulated, products of warps take part, so that tests see the rest of it.
inline bool can_gather(const ConvBackwardParams& p, int element_bytes) {
#if defined(DDU_CUDA_EMULATION)
  const bool has_kernels = true;
#else
  const bool has_kernels = has_warpgroup_kernels();
#endif
  return has_kernels && p.output_vectors && !p.y.border && p.taps <= kGatherTaps && p.group_outputs <= kGatherOutputs &&
         p.positions <= kGatherPositions && p.outputs.pixel <= INT_MAX / element_bytes;
}
inline void run_gather(const GatherCall& call, Stream stream) {
#if defined(DDU_CUDA_EMULATION)
  launch_gather<false>(call, stream);
#else
  launch_gather_warpgroup_kernel(call, stream);
#endif
}

inline std::int64_t all_units(const ConvBackwardParams& p) { return std::int64_t{p.units} * p.groups; }

inline InputGatherParams gather_params(const Conv2dGeometry& c, const ConvBackwardParams& of_call, int element_bytes) {
  const Geometry& g = c.geometry;
  InputGatherParams p{};
  static_cast<ConvBackwardParams&>(p) = of_call;
  p.out_height = static_cast<int>(g.h.out_size);
  p.kernel_h = static_cast<int>(g.h.kernel_size);
  p.output_bytes = static_cast<int>(p.outputs.pixel * element_bytes);
  const auto tiles_of = [](std::int64_t size) { return static_cast<unsigned>(ceil_div(size, std::int64_t{kGatherTile})); };
  p.by_tile_columns = Divider(tiles_of(g.w.size));
  p.by_tile_rows = Divider(tiles_of(g.h.size));
  p.tiles = static_cast<int>(grid_size(std::int64_t{p.by_tile_columns.divisor} * p.by_tile_rows.divisor * p.images));
  p.box_columns = static_cast<int>(ceil_div(g.w.out_size, std::int64_t{kBoxWidth}));
  p.boxes = p.box_columns * static_cast<int>(ceil_div(g.h.out_size, std::int64_t{kBoxHeight}));
  p.by_box_columns = Divider(static_cast<unsigned>(p.box_columns));
  p.by_channel_slices = Divider(static_cast<unsigned>(ceil_div(p.unit_channels, kGatherChannels)));
  const std::int64_t slices = all_units(p) * p.by_channel_slices.divisor;
  p.tiles_at_once = static_cast<int>(std::clamp<std::int64_t>(current_device().multiprocessors / slices, 1, p.tiles));
  return p;
}
inline std::int64_t packed_vectors(const InputGatherParams& p, int element_bytes) {
  return all_units(p) * p.by_channel_slices.divisor * p.taps * (kGatherOutputs * kGatherChannels * element_bytes / 16);
}
inline std::int64_t all_boxes(const Conv2dGeometry& c, const InputGatherParams& p) {
  return std::int64_t{p.boxes} * c.geometry.map_batch * c.geometry.groups;
}
inline unsigned blocks_of(const InputGatherParams& p) {
  return grid_size(all_units(p) * p.by_channel_slices.divisor * p.tiles_at_once);
}

inline ConvInputParams input_params(const Conv2dGeometry& c, const ConvBackwardParams& of_call, int element_bytes) {
  const Geometry& g = c.geometry;
  ConvInputParams p{};
  static_cast<ConvBackwardParams&>(p) = of_call;
  p.out_height = static_cast<int>(g.h.out_size);
  p.kernel_h = static_cast<int>(g.h.kernel_size);
  p.chunk_columns = std::min(p.kernel_w, kInputTaps);
  p.chunk_rows = std::min(p.kernel_h, std::max(1, kInputTaps / p.chunk_columns));
  p.by_chunk_columns = Divider(static_cast<unsigned>(p.chunk_columns));
  p.tiles = p.unit_channels > 2 * kMmaRows ? kInputTiles : 2;
  p.depths = static_cast<int>(ceil_div(p.group_outputs * std::int64_t{element_bytes}, std::int64_t{kStepBytes}));
  p.depths_at_once = std::min(p.depths, kInputDepths);
  // Two blocks on a multiprocessor, or at least one.
  const Device& device = current_device();
  const auto bytes = [&] { return InputMemory::bytes(p, c.has_mask); };
  while (p.chunk_rows > 1 && 2 * (bytes() + 1024) > device.shared_per_multiprocessor) --p.chunk_rows;
  while (p.depths_at_once > 1 && bytes() > device.shared_per_block) p.depths_at_once /= 2;
  p.by_tile_columns = Divider(static_cast<unsigned>(ceil_div(g.w.out_size, std::int64_t{kInputTile})));
  p.by_tile_rows = Divider(static_cast<unsigned>(ceil_div(g.h.out_size, std::int64_t{kInputTile})));
  p.by_channel_slices = Divider(static_cast<unsigned>(ceil_div(p.unit_channels, p.slice_channels())));
  p.by_all_units = Divider(static_cast<unsigned>(all_units(p)));
  return p;
}
inline std::int64_t packed_vectors(const ConvInputParams& p) {
  return all_units(p) * p.by_channel_slices.divisor * p.taps * p.packed_tap();
}
inline unsigned blocks_of(const ConvInputParams& p) {
  return grid_size(std::int64_t{p.by_tile_columns.divisor} * p.by_tile_rows.divisor * p.by_channel_slices.divisor *
                   p.by_all_units.divisor * p.images);
}

}  // namespace ddu::cuda::convolution
