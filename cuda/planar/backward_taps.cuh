#pragma once

// What one tap does in the backward: it scatters its gradient onto the corners of its cell (grad_input), and adds gradient
// times derivative to what its rate gets (grad_map). Both from and to the window in shared memory.

#include "fixed_point.cuh"
#include "window.cuh"

namespace ddu::cuda {

/// A tap of one position, in the window.
struct Tap {
  int element;           // of the window: the upper left corner of its cell
  float fy, fx;          // fractions of the cell
  float step_y, step_x;  // taps from the middle of the kernel: 0 where the rate does not move it
};

/// d(loss)/d(rate) of one position, from steps in units of taps: the base dilation is a factor of the whole sum.
struct RateGradient {
  float y = 0, x = 0;

  __device__ __forceinline__ float of_rate(const Params<float>& p) const { return p.y.dilation * y + p.x.dilation * x; }
};

template <class T, int K, bool kInput, bool kMap, int kThreads, int kVec>
struct BackwardTaps {
  using Element = Vec<T, kVec>;
  using Values = FloatVec<kVec>;

  const Params<float>& p;
  const Position<float>& position;
  const Window& window;
  const Element* pixels;  // of the input
  int* sums;              // of grad_input in fixed point: a window for each channel of the step

  /// Adds scaled gradients onto a cell's corners. A tap that is centered in one axis has weight on half of them only.
  __device__ __forceinline__ void scatter(const Tap& tap, const Values& scaled) const {
    const bool centered_y = tap.step_y == 0, centered_x = tap.step_x == 0;
    const Weights<float> weights(tap.fy, tap.fx);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      int* sum = sums + j * p.capacity + tap.element;
      int* below = sum + window.pitch;
      const float grad = scaled.value[j];
      if (centered_y && centered_x) {
        atomicAdd(sum, __float2int_rn(grad));
        continue;
      }
      atomicAdd(sum, __float2int_rn(weights.a() * grad));
      if (!centered_x) atomicAdd(sum + 1, __float2int_rn(weights.b() * grad));
      if (!centered_y) atomicAdd(below, __float2int_rn(weights.c() * grad));
      if (!centered_y && !centered_x) atomicAdd(below + 1, __float2int_rn(weights.d() * grad));
    }
  }

  /// Adds gradient times derivative. Unless all pixels are `finite`, every corner counts: one that weighs nothing may be NaN.
  __device__ __forceinline__ void add_derivative(const Tap& tap, bool finite, const Values& grad, RateGradient& sum) const {
    const bool centered_y = finite && tap.step_y == 0, centered_x = finite && tap.step_x == 0;
    const Element* cell = pixels + tap.element;
    const Element* below = cell + window.pitch;
    if (centered_y && centered_x) return;
    const Values a = Values::of(cell[0]);
    if (centered_y) return add_products(grad, tap.step_x, Values::of(cell[1]) - a, sum.x);
    if (centered_x) return add_products(grad, tap.step_y, Values::of(below[0]) - a, sum.y);
    const Values b = Values::of(cell[1]), c = Values::of(below[0]), d = Values::of(below[1]);
    add_products(grad, tap.step_y, slope_y(a, b, c, d, tap.fx), sum.y);
    add_products(grad, tap.step_x, slope_x(a, b, c, d, tap.fy), sum.x);
  }
  __device__ __forceinline__ static void add_products(const Values& grad, float step, const Values& slope, float& sum) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) sum = __fmaf_rn(step * grad.value[j], slope.value[j], sum);
  }

  /// What a tap gives to the gradients that are wanted.
  __device__ __forceinline__ void add(const Tap& tap, const Values& grad, const FixedPointScales<kVec>& scales, bool finite,
                                      RateGradient& rate_grad) const {
    if (kInput) scatter(tap, scales.scaled(grad));
    if (kMap) add_derivative(tap, finite, grad, rate_grad);
  }

  /// The tap `i` of a kernel whose cells are known, in registers.
  __device__ __forceinline__ static Tap unrolled(const TapCells<K>& cells, int i) {
    const int ky = i / (K ? K : 1), kx = i % (K ? K : 1);
    const float step_y = ky - 0.5f * (K - 1), step_x = kx - 0.5f * (K - 1);
    return {cells.row[ky] + cells.column[kx], step_y == 0 ? 0.f : cells.fy[ky], step_x == 0 ? 0.f : cells.fx[kx], step_y,
            step_x};
  }
  /// Calls body(i, tap) for the taps of any kernel, with cells worked out one by one.
  template <class Body>
  __device__ __forceinline__ void for_each_tap(Body body) const {
    int i = 0;
#pragma unroll 1
    for (int ky = 0; ky < p.kernel_h; ++ky) {
      const Cell<float> y = p.y.cell(position.base_y, p.y.offset(ky), position.rate);
#pragma unroll 1
      for (int kx = 0; kx < p.kernel_w; ++kx, ++i) {
        const Cell<float> x = p.x.cell(position.base_x, p.x.offset(kx), position.rate);
        const int element = (y.index - window.first_y) * window.pitch + x.index - window.first_x;
        body(i, Tap{element, y.fraction, x.fraction, float(ky) - p.y.middle, float(kx) - p.x.middle});
      }
    }
  }

  /// How many taps can put weight on one pixel: those of its own cell and of the three beside it. Leaves the sums zero.
  __device__ __forceinline__ float max_taps_in_a_pixel(const TapCells<K>& cells, int* slots) const {
    for (int i = threadIdx.x; i < window.elements(); i += kThreads) {
#pragma unroll
      for (int j = 0; j < kVec; ++j) sums[j * p.capacity + i] = 0;
    }
    __syncthreads();
    if (position.sampled()) {
      if constexpr (K != 0) {
#pragma unroll
        for (int i = 0; i < K * K; ++i) atomicAdd(sums + cells.row[i / K] + cells.column[i % K], 1);
      } else {
        for_each_tap([&](int, const Tap& tap) { atomicAdd(sums + tap.element, 1); });
      }
    }
    __syncthreads();
    int largest = 0;
    for (int i = threadIdx.x; i < window.elements(); i += kThreads) {
      const int r = small_quotient(i, window.pitch), c = i - r * window.pitch;
      const int iy = window.first_y + r, ix = window.first_x + c;
      // Taps far outside all pile up in cells that hold no pixel; their sums may overflow, nobody reads them.
      if (iy >= -1 && iy < p.height && ix >= -1 && ix < p.width) largest = max(largest, sums[i]);
      sums[i] = 0;
    }
    return 4.f * float(block_max<kThreads>(largest, slots));
  }
};

}  // namespace ddu::cuda
