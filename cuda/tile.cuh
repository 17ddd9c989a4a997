#pragma once

// A tile: the output positions of one block, one a thread, and the window of the zero-extended input that holds all their
// taps. The window lies in shared memory with a zero wherever there is no pixel, so that no tap needs a bounds test.

#include <cfloat>

#include "../cpp/src/sampling.h"
#include "ddu/geometry.h"
#include "numeric.cuh"

namespace ddu::cuda {

/// Of a kernel whose launch may overlap with the one before: waits until that has ended and what it wrote can be read.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
/// The next kernel, if its launch may overlap with this one, is launched as soon as every block has come here or ended.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

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

/// What the kernels need of a call, in the widths that they compute with.
template <class Acc>
struct Layout {
  Sampler<Acc> y, x;
  int height, width;
  int out_height, out_width;
  int kernel_h, kernel_w;
  int channels, groups, group_channels;
  bool shared_map;  // one map for all images
  DType map_type;
  int tile_height, tile_width;  // positions
  int tile_rows, tile_columns;  // tiles
  int chunk;                    // channels of one block
  bool quads = false;           // quads of pixels of the input lie aligned
  unsigned part_bytes = 0;      // of what one block asks L2 for, ahead of its reading; 0 for none
  unsigned ahead = 0;           // how many blocks ahead
  unsigned burst = 1;           // parts that each of the first blocks takes, to get there
  int capacity;                 // elements of a window in shared memory
  Divider by_tile_width, by_tile_columns, by_tiles, by_chunks, by_groups;

  __device__ int taps() const { return kernel_h * kernel_w; }
  __device__ std::int64_t pixels() const { return std::int64_t{height} * width; }
  __device__ std::int64_t positions() const { return std::int64_t{out_height} * out_width; }
};

/// Which part of the work a block does: a tile of one image, and a run of channels of one group.
struct Job {
  int tile_y, tile_x, image, group, part;
  int channel, channels;  // first of the run, within the image; and how many

  /// `rest` counts parts, then groups, then images.
  template <class Acc>
  __device__ Job(const Layout<Acc>& p, unsigned tile, unsigned rest) {
    tile_y = int(p.by_tile_columns.take(tile));
    tile_x = int(tile);
    unsigned plane = p.by_chunks.take(rest);
    part = int(rest);
    image = int(p.by_groups.take(plane));
    group = int(plane);
    channel = group * p.group_channels + part * p.chunk;
    channels = min(p.chunk, p.group_channels - part * p.chunk);
  }
  /// One block for each: tiles run fastest, so that neighbours in time are neighbours in memory.
  template <class Acc>
  __device__ static Job of_block(const Layout<Acc>& p) {
    unsigned tile = blockIdx.x;
    const unsigned rest = p.by_tiles.take(tile);
    return Job(p, tile, rest);
  }
  template <class Acc>
  __device__ std::int64_t plane(const Layout<Acc>& p) const {
    return std::int64_t{image} * p.channels + channel;
  }
  template <class Acc>
  __device__ std::int64_t map_plane(const Layout<Acc>& p) const {
    return std::int64_t{p.shared_map ? 0 : image} * p.groups + group;
  }
};

/// One thread's output position.
template <class Acc>
struct Position {
  bool active;
  int base_y, base_x;
  std::int64_t index;  // within a plane of the output or of the map
  Acc rate;

  __device__ Position(const Layout<Acc>& p, const Job& job, const void* map) {
    unsigned column = threadIdx.x;
    const int row = int(p.by_tile_width.take(column));
    const int oy = job.tile_y * p.tile_height + row, ox = job.tile_x * p.tile_width + int(column);
    active = row < p.tile_height && oy < p.out_height && ox < p.out_width;
    base_y = p.y.base(oy);
    base_x = p.x.base(ox);
    index = std::int64_t{oy} * p.out_width + ox;
    rate = active ? load_rate<Acc>(map, p.map_type, job.map_plane(p) * p.positions() + index) : Acc(0);
  }
  __device__ bool sampled() const { return active && is_finite(rate); }
};

__device__ __forceinline__ int warp_min(int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(~0u, value);
#else
  for (int step = 16; step > 0; step /= 2) value = min(value, __shfl_xor_sync(~0u, value, step));
  return value;
#endif
}
__device__ __forceinline__ int warp_max(int value) { return ~warp_min(~value); }

/// A maximum over the block. `slots` is one int a warp; it is free again after the next barrier.
template <int kThreads>
__device__ __forceinline__ int block_max(int value, int* slots) {
  const int most = warp_max(value);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = most;
  __syncthreads();
  return warp_max(slots[threadIdx.x % (kThreads / 32)]);
}

/// The part of the zero-extended input that a tile's taps touch: it follows from the largest rate.
struct Window {
  int first_y, first_x, rows, columns;
  int pitch;  // elements from one row to the next

  /// Its columns start and end on multiples of four pixels; kPadding elements follow each row.
  template <int kThreads, int kPadding, class Acc>
  __device__ static Window of_tile(const Layout<Acc>& p, const Job& job, const Position<Acc>& at, int* slots) {
    // Floats that are not negative have the order of their bits.
    const int mine = at.sampled() ? __float_as_int(not_less_than(at.rate < 0 ? -at.rate : at.rate)) : 0;
    const Acc reach = __int_as_float(block_max<kThreads>(mine, slots));
    const int oy = job.tile_y * p.tile_height, ox = job.tile_x * p.tile_width;
    Window window;
    span(p.y, p.kernel_h, oy, min(oy + p.tile_height, p.out_height) - 1, reach, window.first_y, window.rows);
    span(p.x, p.kernel_w, ox, min(ox + p.tile_width, p.out_width) - 1, reach, window.first_x, window.columns);
    window.columns = (window.columns + (window.first_x & 3) + 3) & ~3;
    window.first_x &= ~3;
    window.pitch = window.columns + kPadding;
    return window;
  }
  __device__ bool fits(int capacity) const { return std::int64_t{rows} * pitch <= capacity && columns < 512; }
  __device__ int elements() const { return rows * pitch; }

  /// Whether the window stays within the pixels of its tile and of the tiles around it.
  __device__ bool near_tile(const Layout<float>& p, const Job& job) const {
    return near_tile(p.y, first_y, rows, job.tile_y, p.tile_height) &&
           near_tile(p.x, first_x, columns, job.tile_x, p.tile_width);
  }

 private:
  __device__ static bool near_tile(const Sampler<float>& axis, int first, int extent, int tile, int positions) {
    const int from = axis.base(tile * positions), pixels = positions * axis.stride;
    return first >= from - pixels && first + extent <= from + 2 * pixels;
  }

  __device__ static float not_less_than(float rate) { return rate; }
  __device__ static float not_less_than(double rate) { return rate < FLT_MAX ? __double2float_ru(rate) : FLT_MAX; }

  // Offsets are symmetric and cells grow with the position: the extremes are the outer taps of a tile's corners.
  template <class Acc>
  __device__ static void span(const Sampler<Acc>& axis, int kernel, int from, int to, Acc reach, int& first, int& extent) {
    first = axis.cell(axis.base(from), axis.offset(0), reach).index;
    extent = axis.cell(axis.base(to), axis.offset(kernel - 1), reach).index - first + 2;
  }
};

/// a / b for 0 <= a < 2^16 and 0 < b < 2^9 without an integer division.
__device__ __forceinline__ int small_quotient(int a, int b) { return int(__fdividef(float(a) + 0.5f, float(b))); }

/// Where the taps of one thread's position lie in the window. For a kernel size K known at compile time they are worked
/// out once and kept in registers; K = 0 works them out tap by tap.
template <int K>
struct Cells {
  static constexpr int kCount = K ? K : 1;
  int row[kCount], column[kCount];  // of the window, rows already times its pitch
  float fy[kCount], fx[kCount];

  __device__ Cells(const Layout<float>& p, const Position<float>& at, const Window& window) {
    const bool sampled = at.sampled();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Cell<float> y = p.y.cell(at.base_y, p.y.offset(k), at.rate);
      const Cell<float> x = p.x.cell(at.base_x, p.x.offset(k), at.rate);
      row[k] = sampled ? (y.index - window.first_y) * window.pitch : 0;
      column[k] = sampled ? x.index - window.first_x : 0;
      fy[k] = y.fraction;
      fx[k] = x.fraction;
    }
  }
};

}  // namespace ddu::cuda
