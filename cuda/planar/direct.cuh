#pragma once

// The operator straight from and to global memory, one position a thread: for float64, for tiles whose window does not fit
// shared memory, and for what integer sums cannot hold. Slower than the kernels with windows, and right for anything.

#include "../core/tile_config.h"
#include "pointers.cuh"

namespace ddu::cuda {

constexpr TileConfig kDirectConfig{256, 32, 4, 4, 1, 16, 0, 0};
constexpr TileConfig kBackwardDirectConfig{256, 32, 4, 4, kBackwardVec, 16, 0, 0};

/// The zero-extended image at (y, x).
template <class T>
__device__ __forceinline__ accumulator_t<T> pixel(const T* plane, int height, int width, int y, int x) {
  const bool inside = unsigned(y) < unsigned(height) && unsigned(x) < unsigned(width);
  return inside ? widen(__ldg(plane + std::int64_t{y} * width + x)) : accumulator_t<T>(0);
}

/// Any tile, straight from global memory: slower, for windows that do not fit and for float64.
template <class T>
__device__ __forceinline__ void forward_direct(const Params<accumulator_t<T>>& p, const WorkTile& work,
                                               const Position<accumulator_t<T>>& position, const ForwardPointers<T>& tensors) {
  using Acc = accumulator_t<T>;
  if (!position.active) return;
  const std::int64_t plane = work.plane(p);
#pragma unroll 1
  for (int ky = 0; ky < p.kernel_h; ++ky) {
    const Cell<Acc> y = p.y.cell(position.base_y, p.y.offset(ky), position.rate);
#pragma unroll 1
    for (int kx = 0; kx < p.kernel_w; ++kx) {
      const Cell<Acc> x = p.x.cell(position.base_x, p.x.offset(kx), position.rate);
      const T* input = tensors.input + plane * p.pixels();
      T* out = tensors.output + (plane * p.taps() + ky * p.kernel_w + kx) * p.positions() + position.index;
#pragma unroll 1
      for (int c = 0; c < work.channels; ++c, input += p.pixels(), out += p.taps() * p.positions()) {
        const Acc a = pixel(input, p.height, p.width, y.index, x.index);
        Acc v = interpolate(a, pixel(input, p.height, p.width, y.index, x.index + 1),
                            pixel(input, p.height, p.width, y.index + 1, x.index),
                            pixel(input, p.height, p.width, y.index + 1, x.index + 1), y.fraction, x.fraction);
        if (v == 0 && y.fraction == 0 && x.fraction == 0) v = a;  // a zero on a pixel keeps its sign
        *out = narrow<T>(v - nan_unless_finite(position.rate));
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kDirectConfig.threads)
    forward_direct_kernel(const Params<accumulator_t<T>> p, const ForwardPointers<T> tensors) {
  const WorkTile work = WorkTile::of_block(p);
  const Position<accumulator_t<T>> position(p, work, tensors.map);
  forward_direct(p, work, position, tensors);
}

/// Adds in floating point, in any order.
template <class Acc>
struct AddTo {
  Acc* sums;
  __device__ __forceinline__ void operator()(std::int64_t i, Acc term) const { atomicAdd(sums + i, term); }
};

/// Calls add(pixel, term) for the terms of some channels' gradients. All corners: a gradient may be NaN.
template <class T, class Add>
__device__ __forceinline__ void scatter_direct(const Params<accumulator_t<T>>& p, const Position<accumulator_t<T>>& position,
                                               const T* grad_output, int channels, Add add) {
  using Acc = accumulator_t<T>;
  if (!position.sampled()) return;
#pragma unroll 1
  for (int tap = 0; tap < p.taps(); ++tap) {
    const int ky = tap / p.kernel_w, kx = tap - ky * p.kernel_w;
    const Cell<Acc> y = p.y.cell(position.base_y, p.y.offset(ky), position.rate),
                    x = p.x.cell(position.base_x, p.x.offset(kx), position.rate);
#pragma unroll 1
    for (int c = 0; c < channels; ++c) {
      const Acc g = widen(grad_output[(std::int64_t{c} * p.taps() + tap) * p.positions() + position.index]);
      // Zero adds nothing. The test also waits for the load on every way: where no corner lies in the image nothing else does,
      // and the main loop of backward_kernel would wait for all of its loads when it next uses the register.
      if (g == 0) continue;
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner) {
        const int iy = y.index + corner / 2, ix = x.index + corner % 2;
        const Acc weight = corner_weight(corner / 2, corner % 2, y.fraction, x.fraction);
        if (unsigned(iy) < unsigned(p.height) && unsigned(ix) < unsigned(p.width)) {
          add(c * p.pixels() + std::int64_t{iy} * p.width + ix, weight * g);
        }
      }
    }
  }
}

/// This position's gradient of the rate over some channels, straight from global memory.
template <class T>
__device__ __forceinline__ accumulator_t<T> slopes_direct(const Params<accumulator_t<T>>& p,
                                                          const Position<accumulator_t<T>>& position, const T* grad_output,
                                                          const T* input, int channels) {
  using Acc = accumulator_t<T>;
  Acc sum = 0;
  if (!position.sampled()) return sum;
#pragma unroll 1
  for (int tap = 0; tap < p.taps(); ++tap) {
    const int ky = tap / p.kernel_w, kx = tap - ky * p.kernel_w;
    const Acc offset_y = p.y.offset(ky), offset_x = p.x.offset(kx);
    const Cell<Acc> y = p.y.cell(position.base_y, offset_y, position.rate),
                    x = p.x.cell(position.base_x, offset_x, position.rate);
#pragma unroll 1
    for (int c = 0; c < channels; ++c) {
      const T* plane = input + c * p.pixels();
      const Acc g = widen(grad_output[(std::int64_t{c} * p.taps() + tap) * p.positions() + position.index]);
      sum += g * slope(pixel(plane, p.height, p.width, y.index, x.index), pixel(plane, p.height, p.width, y.index, x.index + 1),
                       pixel(plane, p.height, p.width, y.index + 1, x.index),
                       pixel(plane, p.height, p.width, y.index + 1, x.index + 1), y.fraction, x.fraction, offset_y, offset_x);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kBackwardDirectConfig.threads)
    backward_direct_kernel(const Params<accumulator_t<T>> p, const BackwardPointers<T> tensors) {
  const WorkTile work = WorkTile::of_block(p);
  const Position<accumulator_t<T>> position(p, work, tensors.map);
  const T* grad_output = tensors.grad_output + work.plane(p) * p.taps() * p.positions();
  if (tensors.grad_input) {
    scatter_direct(p, position, grad_output, work.channels,
                   AddTo<accumulator_t<T>>{tensors.grad_input + work.plane(p) * p.pixels()});
  }
  if (tensors.grad_map) {
    add_map(p, work, position,
            slopes_direct(p, position, grad_output, tensors.input + work.plane(p) * p.pixels(), work.channels),
            tensors.grad_map, tensors.map_stride);
  }
}

}  // namespace ddu::cuda
