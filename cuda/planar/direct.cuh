#pragma once

// Gradients of the columns straight onto planes in global memory, one position a thread: for channels of a tile whose gradients
// are not finite, or span too wide a range for one fixed-point unit. Slow, and right for anything.

#include "pointers.cuh"

namespace ddu::cuda {

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

}  // namespace ddu::cuda
