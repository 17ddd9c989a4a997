#pragma once

// Between columns and planes in global memory, without a window, one position a thread: columns of one channel whose window
// does not fit, and gradients that are not finite, or span too wide a range for one fixed-point unit. Right for anything, and
// slow: each corner of a tap is a load, or an addition, of its own.

#include "../core/memory.cuh"
#include "pointers.cuh"

namespace ddu::cuda {

/// Stores a position's columns of one channel, of K x K taps; `out` is its place in the first. All corners: a pixel may be NaN.
template <int K, class T>
__device__ __forceinline__ void store_without_window(const Params<float>& p, const Position<float>& position, const T* plane,
                                                     char* out, unsigned column_bytes) {
  if (!position.active) return;
  const float nan = nan_unless_finite(position.rate);  // or 0, which is subtracted: added, it would make +0 of a -0
#pragma unroll 1
  for (int ky = 0; ky < K; ++ky) {
    const Cell<float> y = p.y.cell(position.base_y, p.y.offset(ky), position.rate);
#pragma unroll
    for (int kx = 0; kx < K; ++kx, out += column_bytes) {
      const Cell<float> x = p.x.cell(position.base_x, p.x.offset(kx), position.rate);
      const auto corner = [&](int down, int right) {
        const int iy = y.index + down, ix = x.index + right;
        return unsigned(iy) < unsigned(p.height) && unsigned(ix) < unsigned(p.width) ? widen(__ldg(plane + iy * p.width + ix))
                                                                                     : 0.f;
      };
      const float a = corner(0, 0);
      float value = interpolate(a, corner(0, 1), corner(1, 0), corner(1, 1), y.fraction, x.fraction);
      if (value == 0 && y.fraction == 0 && x.fraction == 0) value = a;  // a zero on a pixel keeps its sign
      store_non_temporal(out, narrow<T>(value - nan));
    }
  }
}

/// Adds in floating point, in any order.
template <class Acc>
struct AddTo {
  Acc* sums;
  __device__ __forceinline__ void operator()(std::int64_t i, Acc term) const { atomicAdd(sums + i, term); }
};

struct TakeAll {
  template <class Acc>
  __device__ __forceinline__ bool operator()(Acc) const {
    return true;
  }
};

/// Calls add(pixel, term) for the terms of some channels' gradients, of those that take(gradient). All corners: a gradient may
/// be NaN.
template <class T, class Add, class Take = TakeAll>
__device__ __forceinline__ void scatter_without_window(const Params<accumulator_t<T>>& p,
                                                       const Position<accumulator_t<T>>& position, const T* grad_output,
                                                       int channels, Add add, Take take = {}) {
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
      if (g == 0 || !take(g)) continue;
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

}  // namespace ddu::cuda
