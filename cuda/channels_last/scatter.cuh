#pragma once

// The transpose of gather: a gradient of 16 bytes of channels onto the four corners of a tap, in sums whose channels lie side
// by side. Consecutive positions often share a column of pixels: what goes there is added up before it goes to memory.

#include "gather.cuh"

namespace ddu::cuda {

/// Adds the first `count` of kN values to memory; in vectors, and all of them, where they lie aligned.
template <bool kAligned, int kN>
__device__ __forceinline__ void add_channels(float* to, const float (&value)[kN], int count) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kAligned) {
#pragma unroll
    for (int i = 0; i < kN; i += 4) {
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + i), "f"(value[i]), "f"(value[i + 1]),
                   "f"(value[i + 2]), "f"(value[i + 3])
                   : "memory");
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (i < count) atomicAdd(to + i, value[i]);
    }
  }
}
template <bool kAligned, int kN>
__device__ __forceinline__ void add_channels(double* to, const double (&value)[kN], int count) {
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i < count) atomicAdd(to + i, value[i]);
  }
}

/// Scatters one lane's channels, position after position of a tap.
template <class Acc, int kN, bool kAligned>
struct Scatter {
  Acc* sums;  // the image's, from the lane's first channel on
  std::int64_t pixel, row;
  int count;  // channels

  // The right column of the position before, not yet added: its upper pixel, and bits 0 and 1 for upper and lower.
  Acc upper[kN] = {}, lower[kN] = {};
  std::int64_t column = 0;
  unsigned held = 0;

  __device__ __forceinline__ Scatter(Acc* sums, std::int64_t pixel, std::int64_t row, int count)
      : sums(sums), pixel(pixel), row(row), count(count) {}

  /// Adds weight times grad to the corners that `needed` has a bit for.
  __device__ __forceinline__ void add(std::int64_t offset, const Acc (&weight)[4], unsigned needed, const Acc (&grad)[kN]) {
    if (held == 0 || column != offset) flush();
    if (needed == 0) return;
    const unsigned left = held | (needed & 1) | (needed >> 1 & 2);
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      upper[c] += weight[0] * grad[c];
      lower[c] += weight[2] * grad[c];
    }
    Acc* to = sums + offset;
    if (left & 1) add_channels<kAligned>(to, upper, count);
    if (left & 2) add_channels<kAligned>(to + row, lower, count);
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      upper[c] = weight[1] * grad[c];
      lower[c] = weight[3] * grad[c];
    }
    column = offset + pixel;
    held = (needed >> 1 & 1) | (needed >> 2 & 2);
#ifdef CL_NOCARRY
    flush();
#endif
  }
  /// Adds what is held.
  __device__ __forceinline__ void flush() {
    if (held & 1) add_channels<kAligned>(sums + column, upper, count);
    if (held & 2) add_channels<kAligned>(sums + column + row, lower, count);
    held = 0;
#pragma unroll
    for (int c = 0; c < kN; ++c) upper[c] = lower[c] = 0;
  }
};

}  // namespace ddu::cuda
