#pragma once

// What kernels know of a call (Params), and what a block of them does (WorkTile).

#include <cstdint>

#include "../../cpp/src/sampling.h"
#include "ddu/dtype.h"

namespace ddu::cuda {

/// Division by a number that is known before the kernel starts: one multiplication (Granlund & Montgomery 1994, for 31 bits).
struct Divider {
  unsigned divisor = 1, magic = 0, shift = 0;

  Divider() = default;
  explicit Divider(unsigned d) : divisor(d) {
    while (shift < 31 && (1u << shift) < d) ++shift;
    magic = unsigned(((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - d)) / d + 1);
  }
  /// Returns n / divisor and leaves the remainder in n.
  __device__ __forceinline__ unsigned take(unsigned& n) const {
    const unsigned quotient = (__umulhi(n, magic) + n) >> shift;
    n -= quotient * divisor;
    return quotient;
  }
};

/// The sizes of a call and how it is cut into tiles, in the widths that kernels compute with. The host makes it (make_params),
/// and it travels by value.
template <class Acc>
struct Params {
  Sampler<Acc> y, x;
  int height, width;
  int out_height, out_width;
  int kernel_h, kernel_w;
  int channels, groups, group_channels;
  bool shared_map;  // one map for all images
  DType map_type;
  int tile_height, tile_width;     // of a tile, in positions
  int tile_rows, tile_columns;     // of the output, in tiles
  int block_channels;              // how many channels a block takes, but for the last of a group
  bool vec4 = false;               // whether four pixels of the input, from a multiple of four on, can be moved at once
  unsigned prefetch_bytes = 0;     // of the input, that a block asks L2 for ahead of need; 0 for none
  unsigned prefetch_distance = 0;  // how many blocks ahead
  unsigned prefetch_burst = 1;     // how many such runs each of the first blocks asks for, to get ahead
  int capacity;                    // elements of a window in shared memory
  Divider by_tile_width, by_tile_columns, by_tiles, by_channel_blocks, by_groups;

  __device__ int taps() const { return kernel_h * kernel_w; }
  __device__ std::int64_t pixels() const { return std::int64_t{height} * width; }
  __device__ std::int64_t positions() const { return std::int64_t{out_height} * out_width; }
};

/// What one block does: a tile of positions of one image, and a run of channels of one group.
struct WorkTile {
  int tile_y, tile_x, image, group;
  int channel_block;      // which run of the group's channels
  int channel, channels;  // the run's first channel, within the image, and how many there are

  /// `rest` counts runs of channels, then groups, then images.
  template <class Acc>
  __device__ WorkTile(const Params<Acc>& p, unsigned tile, unsigned rest) {
    tile_y = int(p.by_tile_columns.take(tile));
    tile_x = int(tile);
    unsigned plane = p.by_channel_blocks.take(rest);
    channel_block = int(rest);
    image = int(p.by_groups.take(plane));
    group = int(plane);
    channel = group * p.group_channels + channel_block * p.block_channels;
    channels = min(p.block_channels, p.group_channels - channel_block * p.block_channels);
  }
  /// One block for each: tiles run fastest, so that neighbours in time are neighbours in memory.
  template <class Acc>
  __device__ static WorkTile of_block(const Params<Acc>& p) {
    unsigned tile = blockIdx.x;
    const unsigned rest = p.by_tiles.take(tile);
    return WorkTile(p, tile, rest);
  }

  /// Index of the first channel's plane in the input.
  template <class Acc>
  __device__ std::int64_t plane(const Params<Acc>& p) const {
    return std::int64_t{image} * p.channels + channel;
  }
  /// Index of the group's plane in the map.
  template <class Acc>
  __device__ std::int64_t map_plane(const Params<Acc>& p) const {
    return std::int64_t{p.shared_map ? 0 : image} * p.groups + group;
  }
};

}  // namespace ddu::cuda
