#pragma once

// Fixed-point accumulators of 32 bits, for the sums of a tile in shared memory. Shared memory adds integers natively and floats
// only by a compare-and-swap loop; and integer sums do not depend on the order of their terms.
//
//     |gradient| <= top, and at most `taps` of them meet in one pixel:   |sum| <= taps * top <= (2^31 - 2^21) * unit
//     sum += round(gradient * weight / unit)                             unit: a power of two, for each tile and channel
//
// What is left up to 2^31 is for the halves that rounding adds, one for each of fewer than 2^20 taps.
//
// A channel whose gradients are not finite, or whose warps have gradients too far apart for one unit, has no scale.

#include <climits>

#include "../core/reduce.cuh"
#include "../core/vec.cuh"

namespace ddu::cuda {

/// Between the largest gradients of a tile's warps, for one unit.
constexpr float kWidestRange = 4096;

/// The units of the channels of one step.
template <int kVec>
struct FixedPointScales {
  float to_fixed[kVec], to_float[kVec];  // 1 / unit and unit
  bool usable;                           // whether all channels have one

  __device__ __forceinline__ FloatVec<kVec> scaled(FloatVec<kVec> grad) const {
#pragma unroll
    for (int j = 0; j < kVec; ++j) grad.value[j] *= to_fixed[j];
    return grad;
  }

  /// `largest` is this thread's largest |gradient| of each channel, as bits: floats that are not negative have their order.
  /// `taps` is how many can meet in a pixel. `slots` is one int of shared memory for each warp and channel.
  template <int kThreads>
  __device__ static FixedPointScales of_block(const int (&largest)[kVec], float taps, int* slots) {
    constexpr int kWarps = kThreads / 32;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int of_warp = warp_max(largest[j]);
      if (threadIdx.x % 32 == 0) slots[j * kWarps + threadIdx.x / 32] = of_warp;
    }
    __syncthreads();
    FixedPointScales scales;
    scales.usable = true;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int of_warp = slots[j * kWarps + threadIdx.x % kWarps];
      const int of_block = warp_max(of_warp);
      const int least = warp_min(of_warp == 0 ? INT_MAX : of_warp);  // of the warps that have any gradient
      const float top = __int_as_float(of_block);
      // Not finite, or so small that its unit is not, or a range that would cost the small ones their precision.
      const bool usable =
          of_block == 0 || (of_block < 0x7f800000 && top > 1e-30f && top <= kWidestRange * __int_as_float(least));
      scales.usable = scales.usable && usable;
      // The next power of two: scaling then rounds nothing, and gradients that are whole numbers add up exactly.
      const int unit = (__float_as_int(taps * (1.f / 2145386496) * top) + 0x7fffff) & 0x7f800000;
      scales.to_float[j] = of_block == 0 ? 0.f : __int_as_float(unit);
      scales.to_fixed[j] = of_block == 0 ? 0.f : __int_as_float((254 << 23) - unit);
    }
    return scales;
  }
};

}  // namespace ddu::cuda
