#pragma once

// The operator straight from and to global memory, one position a thread: for float64, for tiles whose window does not fit
// shared memory, and for what integer sums cannot hold. Slower than the tiled kernels, and right for anything.

#include "tile.cuh"

namespace ddu::cuda {

template <class T>
struct ForwardPointers {
  const T* input;
  const void* map;
  T* output;
};

template <class T>
struct BackwardPointers {
  const T* grad_output;
  const T* input;
  const void* map;
  accumulator_t<T>* grad_input;  // sums, added to; null if not wanted
  accumulator_t<T>* grad_map;    // sums, written or added to; null if not wanted
  bool clears;                   // blocks clear the planes of grad_input that they add to: nobody else does
  std::int64_t map_part;         // elements between the sums for the map that different blocks write; 0 where they add theirs
  // For a deterministic backward, where nothing may be added in an order that changes; null otherwise.
  float* windows;            // sums of a plane's tiles: [image, channel, tile, capacity]
  int4* places;              // first row and column, rows and columns of each tile's window, or none: [image, group, tile]
  unsigned char* left_over;  // 1 where a tile leaves a pack to scatter_kernel, after whether any does: [image, group, pack,
                             // 1 + tile]; null where all do
  unsigned long long* high;  // ExactSums like the input, in the memory of the windows
  unsigned* low;
  unsigned long long* largest;  // gradient left over, as the bits of a double: [image, group, pack]
};

constexpr int kBackwardPack = 2;

/// The zero-extended image at (y, x).
template <class T>
__device__ __forceinline__ accumulator_t<T> pixel(const T* plane, int height, int width, int y, int x) {
  const bool inside = unsigned(y) < unsigned(height) && unsigned(x) < unsigned(width);
  return inside ? widen(__ldg(plane + std::int64_t{y} * width + x)) : accumulator_t<T>(0);
}

/// Any tile, straight from global memory: slower, for windows that do not fit and for float64.
template <class T>
__device__ __forceinline__ void forward_direct(const Layout<accumulator_t<T>>& p, const Job& job,
                                               const Position<accumulator_t<T>>& at, const ForwardPointers<T>& tensors) {
  using Acc = accumulator_t<T>;
  if (!at.active) return;
  const std::int64_t plane = job.plane(p);
#pragma unroll 1
  for (int ky = 0; ky < p.kernel_h; ++ky) {
    const Cell<Acc> y = p.y.cell(at.base_y, p.y.offset(ky), at.rate);
#pragma unroll 1
    for (int kx = 0; kx < p.kernel_w; ++kx) {
      const Cell<Acc> x = p.x.cell(at.base_x, p.x.offset(kx), at.rate);
      const T* input = tensors.input + plane * p.pixels();
      T* out = tensors.output + (plane * p.taps() + ky * p.kernel_w + kx) * p.positions() + at.index;
#pragma unroll 1
      for (int c = 0; c < job.channels; ++c, input += p.pixels(), out += p.taps() * p.positions()) {
        const Acc v = interpolate(pixel(input, p.height, p.width, y.index, x.index),
                                  pixel(input, p.height, p.width, y.index, x.index + 1),
                                  pixel(input, p.height, p.width, y.index + 1, x.index),
                                  pixel(input, p.height, p.width, y.index + 1, x.index + 1), y.fraction, x.fraction);
        *out = narrow<T>(v + (at.rate - at.rate));
      }
    }
  }
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    forward_direct_kernel(const Layout<accumulator_t<T>> p, const ForwardPointers<T> tensors) {
  const Job job = Job::of_block(p);
  const Position<accumulator_t<T>> at(p, job, tensors.map);
  forward_direct(p, job, at, tensors);
}

/// Adds in floating point, in any order.
template <class Acc>
struct AddTo {
  Acc* sums;
  __device__ __forceinline__ void operator()(std::int64_t i, Acc term) const { atomicAdd(sums + i, term); }
};

/// Calls add(pixel, term) for the terms of some channels' gradients. All corners: a gradient may be NaN.
template <class T, class Add>
__device__ __forceinline__ void scatter_direct(const Layout<accumulator_t<T>>& p, const Position<accumulator_t<T>>& at,
                                               const T* grad_output, int channels, Add add) {
  using Acc = accumulator_t<T>;
  if (!at.sampled()) return;
#pragma unroll 1
  for (int tap = 0; tap < p.taps(); ++tap) {
    const int ky = tap / p.kernel_w, kx = tap - ky * p.kernel_w;
    const Cell<Acc> y = p.y.cell(at.base_y, p.y.offset(ky), at.rate), x = p.x.cell(at.base_x, p.x.offset(kx), at.rate);
#pragma unroll 1
    for (int c = 0; c < channels; ++c) {
      const Acc g = widen(grad_output[(std::int64_t{c} * p.taps() + tap) * p.positions() + at.index]);
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner) {
        const int iy = y.index + corner / 2, ix = x.index + corner % 2;
        const Acc weight = (corner / 2 ? y.fraction : 1 - y.fraction) * (corner % 2 ? x.fraction : 1 - x.fraction);
        if (unsigned(iy) < unsigned(p.height) && unsigned(ix) < unsigned(p.width)) {
          add(c * p.pixels() + std::int64_t{iy} * p.width + ix, weight * g);
        }
      }
    }
  }
}

/// This position's gradient of the rate over some channels, straight from global memory.
template <class T>
__device__ __forceinline__ accumulator_t<T> slopes_direct(const Layout<accumulator_t<T>>& p,
                                                          const Position<accumulator_t<T>>& at, const T* grad_output,
                                                          const T* input, int channels) {
  using Acc = accumulator_t<T>;
  Acc sum = 0;
  if (!at.sampled()) return sum;
#pragma unroll 1
  for (int tap = 0; tap < p.taps(); ++tap) {
    const int ky = tap / p.kernel_w, kx = tap - ky * p.kernel_w;
    const Acc offset_y = p.y.offset(ky), offset_x = p.x.offset(kx);
    const Cell<Acc> y = p.y.cell(at.base_y, offset_y, at.rate), x = p.x.cell(at.base_x, offset_x, at.rate);
#pragma unroll 1
    for (int c = 0; c < channels; ++c) {
      const T* plane = input + c * p.pixels();
      const Acc g = widen(grad_output[(std::int64_t{c} * p.taps() + tap) * p.positions() + at.index]);
      sum += g * slope(pixel(plane, p.height, p.width, y.index, x.index), pixel(plane, p.height, p.width, y.index, x.index + 1),
                       pixel(plane, p.height, p.width, y.index + 1, x.index),
                       pixel(plane, p.height, p.width, y.index + 1, x.index + 1), y.fraction, x.fraction, offset_y, offset_x);
    }
  }
  return sum;
}

template <class Acc>
__device__ __forceinline__ void add_map(const Layout<Acc>& p, const Job& job, const Position<Acc>& at, Acc sum, Acc* grad_map,
                                        std::int64_t map_part) {
  if (!at.active) return;
  sum += at.rate - at.rate;  // NaN where the rate is not finite
  Acc* target = grad_map + job.map_plane(p) * p.positions() + at.index;
  if (map_part == 0) {
    atomicAdd(target, sum);
  } else {
    const int part = (p.shared_map ? job.image : 0) * int(p.by_chunks.divisor) + job.part;
    target[part * map_part] = sum;
  }
}

/// Index of a tile's window in BackwardPointers::places.
template <class Acc>
__device__ __forceinline__ std::int64_t place_index(const Layout<Acc>& p, const Job& job) {
  return (std::int64_t{job.image} * p.groups + job.group) * p.by_tiles.divisor + job.tile_y * p.tile_columns + job.tile_x;
}

/// Index of a pack in BackwardPointers::left_over.
template <class Acc>
__device__ __forceinline__ std::int64_t left_over_index(const Layout<Acc>& p, int image, int group, int pack) {
  const std::int64_t packs = (p.group_channels + kBackwardPack - 1) / kBackwardPack;
  return ((std::int64_t{image} * p.groups + group) * packs + pack) * (1 + std::int64_t{p.by_tiles.divisor});
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    backward_direct_kernel(const Layout<accumulator_t<T>> p, const BackwardPointers<T> tensors) {
  const Job job = Job::of_block(p);
  const Position<accumulator_t<T>> at(p, job, tensors.map);
  const T* grad_output = tensors.grad_output + job.plane(p) * p.taps() * p.positions();
  if (tensors.grad_input) {
    scatter_direct(p, at, grad_output, job.channels, AddTo<accumulator_t<T>>{tensors.grad_input + job.plane(p) * p.pixels()});
  }
  if (tensors.grad_map) {
    add_map(p, job, at, slopes_direct(p, at, grad_output, tensors.input + job.plane(p) * p.pixels(), job.channels),
            tensors.grad_map, tensors.map_part);
  }
}

}  // namespace ddu::cuda
