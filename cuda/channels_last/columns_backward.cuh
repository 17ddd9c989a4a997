#pragma once

// Both gradients of columns, from and to channels-last pixels, for any rates.

#include "scatter.cuh"

#ifndef CL_BWD_MIN
#define CL_BWD_MIN 2
#endif
#ifndef CL_SKIP
#define CL_SKIP 0
#endif

namespace ddu::cuda {

template <class T>
struct ColumnsBackwardPointers {
  const T* grad_output;
  const T* input;  // channels-last
  const void* map;
  accumulator_t<T>* grad_input;  // sums, channels-last, added to; null if not wanted
  accumulator_t<T>* grad_map;    // sums, written or added to; null if not wanted
  std::int64_t map_part;         // elements between the sums for the map that different blocks write; 0 where they add theirs
};

/// Sums over channels that the slopes of a tap follow from. Differences come first: pixels may be alike and large.
template <class Acc>
struct SlopeSums {
  Acc left = 0, right = 0, top = 0, bottom = 0;  // of c-a, d-b, b-a, d-c

  template <class T>
  __device__ __forceinline__ void add(const Corners<T>& corners, const Acc (&grad)[kVec<T>]) {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      const Acc a = corners.a.get(i), b = corners.b.get(i), c = corners.c.get(i), d = corners.d.get(i);
      left += grad[i] * (c - a);
      right += grad[i] * (d - b);
      top += grad[i] * (b - a);
      bottom += grad[i] * (d - c);
    }
  }
  __device__ __forceinline__ Acc slope(Acc fy, Acc fx, Acc offset_y, Acc offset_x) const {
    return offset_y * ((1 - fx) * left + fx * right) + offset_x * ((1 - fy) * top + fy * bottom);
  }
};

/// kRows: pixels start at multiples of 16 bytes. `whole`: columns do.
template <class T, bool kInput, bool kMap, bool kRows>
__global__ void __launch_bounds__(kRowThreads, CL_BWD_MIN)
    columns_backward_kernel(const RowParams<accumulator_t<T>> p, const ColumnsBackwardPointers<T> tensors, bool whole) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, kMap>;
  constexpr int kN = kVec<T>;
  extern __shared__ char shared[];

  const WarpWork<T> work(p);
  if (!work.any || !work.any_marked(p)) return;
  const Table table(shared, work.run);
  table.load_rates(p, work, tensors.map);

  const T* input = tensors.input + work.pixels(p);
  const std::int64_t row = p.width * p.rows.pixel, from_channel = p.taps * p.positions;
  const int first = work.quad * kN, there = int(min(p.positions - work.first_position - first, std::int64_t{kN}));
  const T* columns = tensors.grad_output + (work.plane(p) * p.taps + work.first_tap) * p.positions + work.first_position + first;
  unsigned marked = 0;  // a bit for each of this lane's positions
  for (int i = 0; i < kN; ++i) marked |= work.marked(p, first + i) ? 1u << i : 0;
  const unsigned mine = work.channels > 0 ? 255 : 0;
  const int at_once = Table::entries(work.run) / work.run;
  Acc slopes[kN] = {};
#pragma unroll 1
  for (int tap = work.first_tap; tap < work.last_tap; tap += at_once) {
    table.fill(p, work, tap);
#pragma unroll 1
    for (int t = 0; t < at_once && tap + t < work.last_tap; ++t, columns += p.positions) {
      const int entry = t * work.run + first;
      Bits16<T> square[kN];  // a channel's positions side by side
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (c >= work.channels || there <= 0) continue;
        square[c] = whole ? load_positions<true>(columns + c * from_channel, there)
                          : load_positions<false>(columns + c * from_channel, there);
      }
      const int ky = (tap + t) / p.kernel_w;
      const Acc offset_y = p.y.offset(ky), offset_x = p.x.offset(tap + t - ky * p.kernel_w);
      Scatter<Acc, kN, kRows> scatter(tensors.grad_input + work.pixels(p), p.rows.pixel, row, work.channels);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const typename Table::Where where = table.where[entry + i];
        const typename Table::CornerWeights w = table.weights[entry + i];
        const unsigned corners_of = (marked >> i & 1) ? unsigned(where) & mine : 0;
        Acc grad[kN], poison = 0;
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          grad[c] = square[c].get(i);
          poison += grad[c] - grad[c];
        }
        if constexpr (kMap) {
          SlopeSums<Acc> sums;
          sums.add(Corners<T>::template load<kRows>(input + (where >> 8), p.rows.pixel, row, CL_SKIP ? corners_of >> 4 : corners_of & 15, work.channels), grad);
          const typename Table::Fractions f = table.fractions[entry + i];
          if (corners_of & 15) slopes[i] += sums.slope(f.y, f.x, offset_y, offset_x);
        }
        // A gradient that is not finite goes to all corners, weight or not.
        if constexpr (kInput) scatter.add(where >> 8, w.corner, poison == 0 ? corners_of >> 4 : corners_of & 15, grad);
      }
      if constexpr (kInput) scatter.flush();
    }
  }
  if constexpr (kMap) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      for (int step = 1; step < work.lanes; step *= 2) slopes[i] += __shfl_xor_sync(~0u, slopes[i], step);
      if (work.vector != 0 || !(marked >> i & 1)) continue;
      const Acc rate = table.rates[first + i], sum = slopes[i] + nan_unless_finite(rate);
      Acc* target = tensors.grad_map + work.map_plane(p) * p.positions + work.first_position + first + i;
      if (tensors.map_part == 0) {
        atomicAdd(target, sum);
      } else {
        const int parts = p.slices * p.tap_chunks;
        target[((p.shared_map ? work.image : 0) * std::int64_t{parts} + work.part) * tensors.map_part] = sum;
      }
    }
  }
}

}  // namespace ddu::cuda
