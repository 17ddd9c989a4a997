#pragma once

// Forward: every thread owns one output position, and the block walks over its channels, kPack at a time, from a window in
// shared memory that is filled one step ahead.

#include "direct.cuh"
#include "quads.cuh"

namespace ddu::cuda {

/// One thread's position.
template <class T, int K, int kPack>
struct ForwardTile {
  using Element = Pack<T, kPack>;
  using Values = Floats<kPack>;

  const Layout<float>& p;
  const Position<float>& at;
  const Window& window;
  char* out;              // this thread's position in the first column of the pack
  unsigned column_bytes;  // from one column to the next

  __device__ __forceinline__ void put(int tap, int taps, int valid, const Values& v) const {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if (j < valid) stream_out(out + std::uint64_t(column_bytes) * unsigned(j * taps + tap), narrow<T>(v.value[j]));
    }
  }

  /// Value of a cell. A tap that is still in one axis needs only half of its corners: the others weigh nothing.
  __device__ __forceinline__ Values sample(const Element* cell, float fy, float fx, bool still_y, bool still_x) const {
    const Element* below = cell + window.pitch;
    const Values a = Values::of(cell[0]);
    if (still_y && still_x) return a;
    if (still_y) return (1 - fx) * a + fx * Values::of(cell[1]);
    if (still_x) return (1 - fy) * a + fy * Values::of(below[0]);
    return interpolate(a, Values::of(cell[1]), Values::of(below[0]), Values::of(below[1]), fy, fx);
  }

  /// All taps, with cells from registers: of both axes for a small kernel, else of the columns, row by row.
  __device__ __forceinline__ void unrolled(const Element* w, const Cells<K>& cells, int valid) const {
    if constexpr (K <= 3) {
#pragma unroll
      for (int ky = 0; ky < K; ++ky) tap_row(w + cells.row[ky], cells, ky, cells.fy[ky], valid);
    } else {
#pragma unroll 1
      for (int ky = 0; ky < K; ++ky) {
        const Cell<float> y = p.y.cell(at.base_y, p.y.offset(ky), at.rate);
        tap_row(w + (y.index - window.first_y) * window.pitch, cells, ky, y.fraction, valid);
      }
    }
  }
  __device__ __forceinline__ void tap_row(const Element* row, const Cells<K>& cells, int ky, float fy, int valid) const {
#pragma unroll
    for (int kx = 0; kx < K; ++kx) {
      put(ky * K + kx, K * K, valid, sample(row + cells.column[kx], fy, cells.fx[kx], 2 * ky == K - 1, 2 * kx == K - 1));
    }
  }

  /// All taps, with cells worked out one by one. Unless all values are `finite`, every corner counts: one that weighs nothing
  /// may still be NaN; and so do rates that are not finite.
  __device__ __forceinline__ void rolled(const Element* w, bool finite, int valid) const {
    const float poison = at.rate - at.rate;
    int tap = 0;
#pragma unroll 1
    for (int ky = 0; ky < p.kernel_h; ++ky) {
      const float offset_y = p.y.offset(ky);
      const Cell<float> y = p.y.cell(at.base_y, offset_y, at.rate);
#pragma unroll 1
      for (int kx = 0; kx < p.kernel_w; ++kx, ++tap) {
        const float offset_x = p.x.offset(kx);
        const Cell<float> x = p.x.cell(at.base_x, offset_x, at.rate);
        const int element = (y.index - window.first_y) * window.pitch + x.index - window.first_x;
        const bool still_y = finite && offset_y == 0, still_x = finite && offset_x == 0;
        Values v = sample(w + (at.sampled() ? element : 0), y.fraction, x.fraction, still_y, still_x);
#pragma unroll
        for (int j = 0; j < kPack; ++j) v.value[j] += poison;
        put(tap, p.taps(), valid, v);
      }
    }
  }
};

/// Asks L2 for the part of the input that a block some way ahead will read: blocks run in the order of the input. The first
/// ones take several parts each, while the device has nothing to write yet, and are ahead from then on.
template <class T>
__device__ __forceinline__ void prefetch_part(const Layout<float>& p, const T* input, std::int64_t bytes) {
  const std::int64_t block = blockIdx.x, burst = p.burst;
  const std::int64_t first = min(burst * block, block + p.ahead), last = min(burst * (block + 1), block + 1 + p.ahead);
  const std::int64_t from = first * p.part_bytes, to = min(last * p.part_bytes, bytes);
  prefetch(reinterpret_cast<const char*>(input) + from, to - from);
}

template <class T, int K, int kPack, int kThreads, int kMinBlocks, bool kWalks>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    forward_kernel(const Layout<float> p, const ForwardPointers<T> tensors, std::int64_t input_bytes) {
  using Tile = ForwardTile<T, K, kPack>;
  extern __shared__ char shared[];
  static __shared__ int slots[32];
  auto* windows = reinterpret_cast<typename Tile::Element*>(shared);

  if (p.part_bytes != 0 && threadIdx.x == 0) prefetch_part(p, tensors.input, input_bytes);
  const Job job = Job::of_block(p);
  const Position<float> at(p, job, tensors.map);
  const Window window = Window::of_tile<kThreads, 1>(p, job, at, slots);
  if (!window.fits(p.capacity)) return forward_direct(p, job, at, tensors);

  const T* planes = tensors.input + job.plane(p) * p.pixels();
  const unsigned plane_bytes = unsigned(p.pixels()) * unsigned(sizeof(T));
  const Quad quad(p, window, int(threadIdx.x));
  QuadFetch<T, kPack> fetch;
  fetch.load(p, quad, planes, plane_bytes, job.channels);
  const Cells<K> cells(p, at, window);
  const bool finite_rate = is_finite(at.rate);
  const auto fill_window = [&](typename Tile::Element* target, int valid) {
    return fill<kThreads>(p, window, quad, fetch, planes, plane_bytes, valid, target) && finite_rate;
  };

  Tile tile{p, at, window, reinterpret_cast<char*>(tensors.output + job.plane(p) * p.taps() * p.positions() + at.index),
            unsigned(p.positions()) * unsigned(sizeof(T))};
  bool finite = fill_window(windows, job.channels);
  int buffer = 0;
  for (int left = job.channels;; left -= kPack) {
    const bool last = !kWalks || left <= kPack;
    const bool all_finite = !__syncthreads_or(!finite);
    planes += kPack * p.pixels();
    if (!last) fetch.load(p, quad, planes, plane_bytes, left - kPack);
    if (at.active) {
      if (K != 0 && all_finite) {
        tile.unrolled(windows + buffer, cells, left);
      } else {
        tile.rolled(windows + buffer, all_finite, left);
      }
    }
    if (last) return;
    buffer = p.capacity - buffer;
    finite = fill_window(windows + buffer, left - kPack);
    tile.out += std::uint64_t(tile.column_bytes) * unsigned(kPack * p.taps());
  }
}

}  // namespace ddu::cuda
