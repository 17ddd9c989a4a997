#pragma once

// The memory of a call, as its kernels get it.

#include "../channels_last/params.cuh"
#include "../core/dependent_launch.cuh"
#include "../core/integer.h"
#include "../core/numeric.cuh"
#include "../core/position.cuh"

namespace ddu::cuda {

/// A copy of the input, channels side by side, that the channels-last kernel reads where tiles are left to it. Blocks that have
/// no window turn a share of it each.
template <class T>
struct SharedCopy {
  T* rows = nullptr;  // null where nobody turns any
  RowLayout layout{};
  int share = 0;                     // pixels of a tile's share
  unsigned char* strange = nullptr;  // of each block that turned some: whether anything it read is not finite
};

template <class T>
struct ForwardPointers {
  const T* input;
  const void* map;
  T* output;
  unsigned char* marks;  // of tiles whose window does not fit: [image, group, tile], as in TileMarks; null if all do
  float most_reach;      // of a tile that has a window, where there are marks
  SharedCopy<T> copy;    // what such tiles' blocks do instead
};

/// Index of a tile in arrays of [image, group, tile].
template <class Acc>
__device__ __forceinline__ std::int64_t tile_index(const Params<Acc>& p, const WorkTile& work) {
  return (std::int64_t{work.image} * p.groups + work.group) * p.by_tiles.divisor + work.tile_y * p.tile_columns + work.tile_x;
}

/// What marks say of a tile: nothing where the planar kernels have done it, else which kernels do.
enum TileMark : unsigned char { kDone = 0, kLeftToRows = 1, kLeftToWideTiles = 2 };

/// Marks a tile, or not, and lets the next kernel start: it reads the marks (TileMarks::nothing_left). By one thread of a tile.
template <class Acc>
__device__ __forceinline__ void mark_tile(const Params<Acc>& p, const WorkTile& work, TileMark mark, unsigned char* marks) {
  const std::int64_t tile = tile_index(p, work);
  marks[tile] = mark;
  if (tile == 0) TileMarks::clear_counters(marks);
  if (mark != kDone) publish();
  let_next_start();
}

constexpr int kBackwardVec = 2;  // channels of a step of the backward kernels

/// Wide tiles: several tiles of a first kernel, one below the other, and windows that hold what these reach together. (No
/// larger than this: with a word more of arguments, all kernels that have them come out with 5 to 8 % more instructions.)
struct WideTiles {
  static constexpr int kAll = 1 << 30;
  // For the first kernel, which leaves them what fits.
  int capacity = 0;     // elements of their windows; 0 where there are none
  int tile_height = 0;  // positions
  // For the kernel that takes them.
  int part_height = 0;  // positions of a tile of the first kernel; 0 where it is the first itself
};

/// Where a tile's stored window lies in the image. No rows: the tile stores none.
struct alignas(16) WindowRect {
  int first_y, first_x, rows, columns;
};

template <class T>
struct BackwardPointers {
  const T* grad_output;
  const T* input;
  const void* map;
  accumulator_t<T>* grad_input;  // sums, added to; null if not wanted
  accumulator_t<T>* grad_map;    // sums, written or added to; null if not wanted
  bool block_clears;             // each block clears the planes of grad_input that it adds to: nobody else does
  std::int64_t map_stride;       // elements between the sums for the map that different blocks write; 0 where they add
  unsigned char* marks;          // TileMark of each tile: [image, group, tile]; null if all windows fit
  WideTiles wide;
  // For a deterministic backward, where nothing may be added in an order that changes; null otherwise.
  float* window_sums;             // sums of a plane's tiles: [image, channel, tile, capacity]
  WindowRect* window_rects;       // of each tile: [image, group, tile]
  unsigned char* fallback_marks;  // of what tiles leave to the fallback, behind a FallbackHead
  unsigned long long* high;       // FixedPointSums like the input, in the memory of the windows
  unsigned* low;
  unsigned long long* largest;  // gradient that the fallback adds, as the bits of a double: [image, channel]
  // For BackwardForm::ordered `high` and `largest` are what OrderedPlanes has.
};

/// Adds, or writes, one position's share of the map's gradient.
template <class Acc>
__device__ __forceinline__ void add_map(const Params<Acc>& p, const WorkTile& work, const Position<Acc>& position, Acc sum,
                                        Acc* grad_map, std::int64_t map_stride) {
  if (!position.active) return;
  sum += nan_unless_finite(position.rate);
  Acc* target = grad_map + work.map_plane(p) * p.positions() + position.index;
  if (map_stride == 0) {
    atomicAdd(target, sum);
  } else {
    const int array = (p.shared_map ? work.image : 0) * int(p.by_channel_blocks.divisor) + work.channel_block;
    target[array * map_stride] = sum;
  }
}

}  // namespace ddu::cuda
