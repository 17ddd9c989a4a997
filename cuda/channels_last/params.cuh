#pragma once

// How a channels-last kernel walks over a call. A warp takes a run of consecutive positions and a slice of channels:
//
//   lane = (position run) * lanes + (channel vector)         kVec = 16 bytes of channels, and as many positions a lane
//
//   positions   | 0 .. kVec-1 | kVec .. 2*kVec-1 | …         32 / lanes of them: a warp's run
//   channels    | vector 0 | vector 1 | … | lanes - 1        a slice; lanes is 8 (a line of 128 bytes) where there are so many
//
// So every lane has a square of kVec positions by kVec channels: it loads 16 bytes of channels for one position, and stores 16
// bytes of positions for one channel. The square is turned in registers: no shared memory, no barrier of the block.

#include <climits>

#include "../core/numeric.cuh"
#include "../core/params.cuh"
#include "marks.cuh"

namespace ddu::cuda {

/// Channels of one element of T that make 16 bytes.
template <class T>
constexpr int kVec = 16 / int(sizeof(T));

/// Where the pixels of a tensor lie whose channels are side by side: distances in elements.
struct RowLayout {
  std::int64_t image, group, pixel;
};

/// What the channels-last kernels need of a call.
template <class Acc>
struct RowParams {
  Sampler<Acc> y, x;
  int width;  // of the input
  int out_width;
  int kernel_w, taps;
  int group_channels, groups, images;
  bool shared_map;  // one map for all images
  DType map_type;
  std::int64_t positions;
  RowLayout rows;  // of the input, and of its gradient's sums

  int log_lanes;  // channel vectors of a slice
  int run;        // positions of a warp
  int slices;     // of a group's channels
  int tap_chunk;  // taps of one block
  int tap_chunks;
  int run_columns;    // runs that make about one row of the output
  int block_columns;  // runs side by side in a block; its other warps take those below
  int column_blocks, row_blocks;
  Divider by_out_width, by_kernel_w, by_column_blocks, by_row_blocks, by_tap_chunks, by_slices, by_groups;
  TileMarks tiles;
};

constexpr int kRowWarps = 8;
constexpr int kRowThreads = 32 * kRowWarps;

/// What one warp does. A lane takes kVec<T> positions and kChannels channels.
template <class T, int kChannels = kVec<T>>
struct WarpWork {
  int image, group, slice, first_tap, last_tap, part;
  bool any;                      // whether there is anything for it to do
  std::int64_t first_position;   // of the run
  int row, column;               // of that position
  int lanes, run, vector, quad;  // of this lane: its channel vector and its positions, `quad * kVec` on
  int channel, channels;         // the lane's first channel within the group, and how many of kVec there are

  template <class Acc>
  __device__ explicit WarpWork(const RowParams<Acc>& p, unsigned block = blockIdx.x, int warp = int(threadIdx.x) / 32) {
    unsigned rest = block, runs_x = rest;
    rest = p.by_column_blocks.take(runs_x);
    unsigned runs_y = rest;
    rest = p.by_row_blocks.take(runs_y);
    unsigned chunk = rest;
    rest = p.by_tap_chunks.take(chunk);
    unsigned part_of_channels = rest;
    rest = p.by_slices.take(part_of_channels);
    unsigned plane = rest;
    image = int(p.by_groups.take(plane));
    group = int(plane);
    slice = int(part_of_channels);
    part = slice * p.tap_chunks + int(chunk);
    first_tap = int(chunk) * p.tap_chunk;
    last_tap = min(first_tap + p.tap_chunk, p.taps);

    const int lane = int(threadIdx.x) % 32;
    lanes = 1 << p.log_lanes;
    vector = lane & (lanes - 1);
    quad = lane >> p.log_lanes;
    run = p.run;
    const int run_x = int(runs_x) * p.block_columns + warp % p.block_columns;
    const int run_y = int(runs_y) * (kRowWarps / p.block_columns) + warp / p.block_columns;
    first_position = (std::int64_t{run_y} * p.run_columns + run_x) * run;
    any = run_x < p.run_columns && first_position < p.positions;
    divide_position(p);
    channel = (slice * lanes + vector) * kChannels;
    channels = min(p.group_channels - channel, kChannels);
  }

  /// Row and column of the first position. A division of 64 bits would be a tenth of a kernel's code.
  template <class Acc>
  __device__ __forceinline__ void divide_position(const RowParams<Acc>& p) {
    if (p.positions <= INT_MAX) {
      auto rest = unsigned(first_position);
      row = int(p.by_out_width.take(rest));
      column = int(rest);
      return;
    }
    std::int64_t rest = first_position;
    row = 0;
#pragma unroll 1
    for (int bit = 29; bit >= 0; --bit) {
      if (const std::int64_t part = std::int64_t{p.out_width} << bit; rest >= part) {
        rest -= part;
        row |= 1 << bit;
      }
    }
    column = int(rest);
  }

  /// The output position `index` of the run: its row, and its column.
  template <class Acc>
  __device__ void place(const RowParams<Acc>& p, int index, int& oy, int& ox) const {
    unsigned x = unsigned(column + index);
    oy = row + int(p.by_out_width.take(x));
    ox = int(x);
  }
  /// The planar kernels' tile of that position.
  template <class Acc>
  __device__ std::int64_t tile(const RowParams<Acc>& p, int index) const {
    int oy, ox;
    place(p, index, oy, ox);
    unsigned x = unsigned(ox);
    return std::int64_t{oy / p.tiles.tile_height} * p.tiles.tile_columns + p.tiles.by_tile_width.take(x);
  }
  /// Whether that position is one of ours.
  template <class Acc>
  __device__ bool marked(const RowParams<Acc>& p, int index) const {
    if (first_position + index >= p.positions) return false;
    if (!p.tiles.marks) return true;
    return p.tiles.marks[(std::int64_t{image} * p.groups + group) * p.tiles.tiles + tile(p, index)] & TileMarks::kMarked;
  }
  /// Whether any of the warp's positions is; the same in all lanes.
  template <class Acc>
  __device__ bool any_marked(const RowParams<Acc>& p) const {
    if (!p.tiles.marks) return true;
    bool some = false;
    for (int i = int(threadIdx.x) % 32; i < run; i += 32) some = some || marked(p, i);
    return __any_sync(~0u, some);
  }
  template <class Acc>
  __device__ std::int64_t map_plane(const RowParams<Acc>& p) const {
    return std::int64_t{p.shared_map ? 0 : image} * p.groups + group;
  }
  /// The first of this lane's channels within the image.
  template <class Acc>
  __device__ std::int64_t plane(const RowParams<Acc>& p) const {
    return (std::int64_t{image} * p.groups + group) * p.group_channels + channel;
  }
  template <class Acc>
  __device__ std::int64_t pixels(const RowParams<Acc>& p) const {
    return image * p.rows.image + group * p.rows.group + channel;
  }
};

}  // namespace ddu::cuda
