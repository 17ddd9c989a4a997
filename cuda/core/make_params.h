#pragma once

// The host cuts a call into tiles and runs of channels, one block for each.

#include <algorithm>
#include <climits>

#include "ddu/error.h"
#include "ddu/geometry.h"
#include "device.h"
#include "integer.h"
#include "launch.h"
#include "params.cuh"
#include "tile_config.h"

namespace ddu::cuda {

/// Whether offsets within a plane fit 32 bits, as the planar kernels need.
inline bool fits_planar(const Geometry& g, DType type) {
  const std::int64_t limit = (std::int64_t{1} << 32) / static_cast<std::int64_t>(size_of(type)) / 2;
  return g.pixels() < limit && g.positions() < limit;
}

/// How the input of a call may be read. One channel lies alike in both formats: a plane that is too large for the planar
/// kernels is then read as it lies, instead of through a copy whose channels are padded to a vector.
inline MemoryFormat format_to_read(const Geometry& g, Types types, MemoryFormat given) {
  return g.channels == 1 && !fits_planar(g, types.input) ? MemoryFormat::channels_last : given;
}

/// Elements of a window for which a block has shared memory, where so many share a multiprocessor.
inline std::int64_t elements_of_block(const TileConfig& config, const Device& device, std::int64_t blocks) {
  if (config.element_bytes == 0) return 0;
  const std::int64_t bytes = std::min<std::int64_t>(device.shared_per_block, device.shared_per_multiprocessor / blocks);
  return (bytes - 2048) / static_cast<std::int64_t>(config.element_bytes);  // which CUDA and the kernel's static arrays take
}

/// Tiles have a multiple of `part_rows` rows, where that is not more than there are threads for.
template <class Acc>
Params<Acc> make_params(const Geometry& g, Types types, const TileConfig& config, const Device& device,
                        std::int64_t part_rows = 1) {
  if (g.channels > INT_MAX || g.taps() > INT_MAX / 64) {
    throw invalid_argument("the tensors are too large for one launch: split the channels, or use a smaller kernel_size");
  }
  Params<Acc> p;
  // Windows are of the zero-extended input; calls with another padding mode have other kernels.
  p.y = Sampler<Acc>(g.h, PaddingMode::zeros);
  p.x = Sampler<Acc>(g.w, PaddingMode::zeros);
  p.height = static_cast<int>(g.h.size);
  p.width = static_cast<int>(g.w.size);
  p.out_height = static_cast<int>(g.h.out_size);
  p.out_width = static_cast<int>(g.w.out_size);
  p.kernel_h = static_cast<int>(g.h.kernel_size);
  p.kernel_w = static_cast<int>(g.w.kernel_size);
  p.channels = static_cast<int>(g.channels);
  p.groups = static_cast<int>(g.groups);
  p.group_channels = static_cast<int>(g.group_channels());
  p.shared_map = g.map_batch == 1;
  p.map_type = types.map;

  // Tiles of equal width, none wider than the kernel likes by half, and then as many rows as there are threads for.
  const std::int64_t across = std::max<std::int64_t>(1, (g.w.out_size + config.tile_width / 2) / config.tile_width);
  p.tile_width = static_cast<int>(std::min<std::int64_t>(ceil_div(g.w.out_size, across), config.threads));
  const std::int64_t parts = ceil_div(g.h.out_size, part_rows);
  const std::int64_t most = std::min<std::int64_t>(config.threads / p.tile_width / part_rows, parts);
  p.tile_height = static_cast<int>(ceil_div(parts, ceil_div(parts, most)) * part_rows);
  p.tile_rows = static_cast<int>(ceil_div(g.h.out_size, p.tile_height));
  p.tile_columns = static_cast<int>(ceil_div(g.w.out_size, p.tile_width));
  p.by_tile_width = Divider(static_cast<unsigned>(p.tile_width));
  p.by_tile_columns = Divider(static_cast<unsigned>(p.tile_columns));
  p.by_tiles = Divider(grid_size(std::int64_t{p.tile_rows} * p.tile_columns));
  p.by_groups = Divider(static_cast<unsigned>(p.groups));

  // A block's channels share the geometry, so many are good; but every place on the device wants a block.
  const std::int64_t wanted = std::int64_t{config.min_waves} * device.multiprocessors * config.min_blocks;
  const std::int64_t others = std::int64_t{p.tile_rows} * p.tile_columns * g.groups * g.batch;
  const std::int64_t channel_blocks =
      std::max<std::int64_t>(ceil_div(wanted, others), ceil_div(g.group_channels(), config.max_channels));
  const std::int64_t steps = ceil_div(g.group_channels(), config.vec);
  const std::int64_t steps_of_block = ceil_div(steps, std::min(channel_blocks, steps));
  p.block_channels = static_cast<int>(std::max<std::int64_t>(1, steps_of_block)) * config.vec;
  p.by_channel_blocks = Divider(static_cast<unsigned>(ceil_div(g.group_channels(), p.block_channels)));

  p.capacity = static_cast<int>(
      std::min<std::int64_t>(config.max_elements, elements_of_block(config, device, config.min_blocks)) / 32 * 32);
  return p;
}

/// Tiles of one image with a run of channels of one group.
template <class Acc>
std::int64_t work_tiles(const Params<Acc>& p, const Geometry& g) {
  return std::int64_t{p.tile_rows} * p.tile_columns * p.by_channel_blocks.divisor * g.groups * g.batch;
}
/// One block for each of them.
template <class Acc>
unsigned blocks_of(const Params<Acc>& p, const Geometry& g) {
  return grid_size(work_tiles(p, g));
}

/// Where blocks are so few that a window can hold the whole image, of `elements`: makes windows so large. Not where the planar
/// kernels are asked for: there tests see tiles without a window.
template <class Acc>
void hold_whole_image(const Geometry& g, const TileConfig& config, const Device& device, std::int64_t elements,
                      Params<Acc>& p) {
  const std::int64_t together = std::max<std::int64_t>(1, ceil_div(work_tiles(p, g), std::int64_t{device.multiprocessors}));
  if (together >= config.min_blocks || requested_path() == Path::planar) return;
  const std::int64_t capacity = ceil_div(elements, 32) * 32;
  if (capacity <= elements_of_block(config, device, together)) p.capacity = std::max(p.capacity, static_cast<int>(capacity));
}

}  // namespace ddu::cuda
