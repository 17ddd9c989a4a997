#pragma once

// Columns from channels-last pixels, for any rates: nothing depends on how far the taps reach.

#include "gather.cuh"

#ifndef CL_FWD_MIN
#define CL_FWD_MIN (sizeof(T) == 4 ? 3 : 2)
#endif
#ifndef CL_SKIP
#define CL_SKIP 0
#endif

namespace ddu::cuda {

template <class T>
struct ColumnsPointers {
  const T* input;  // channels-last
  const void* map;
  T* output;
};

/// kRows: pixels start at multiples of 16 bytes. kColumns: the columns do.
template <class T, bool kRows, bool kColumns>
__global__ void __launch_bounds__(kRowThreads, CL_FWD_MIN)
    columns_forward_kernel(const RowParams<accumulator_t<T>> p, const ColumnsPointers<T> tensors) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, false>;
  constexpr int kN = kVec<T>;
  extern __shared__ char shared[];

  const WarpWork<T> work(p);
  if (!work.any || !work.any_marked(p)) return;
  const Table table(shared, work.run);
  table.load_rates(p, work, tensors.map);

  const T* input = tensors.input + work.pixels(p);
  const std::int64_t row = p.width * p.rows.pixel, from_channel = p.taps * p.positions;
  const int first = work.quad * kN, there = int(min(p.positions - work.first_position - first, std::int64_t{kN}));
  T* out = tensors.output + (work.plane(p) * p.taps + work.first_tap) * p.positions + work.first_position + first;
  const unsigned mine = work.channels > 0 ? 15 : 0;
  const int at_once = Table::entries(work.run) / work.run;
#pragma unroll 1
  for (int tap = work.first_tap; tap < work.last_tap; tap += at_once) {
    table.fill(p, work, tap);
#pragma unroll 1
    for (int t = 0; t < at_once && tap + t < work.last_tap; ++t, out += p.positions) {
      const int entry = t * work.run + first;
      Square<T> square;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const typename Table::Where where = table.where[entry + i];
        const typename Table::CornerWeights w = table.weights[entry + i];
        const auto corners = Corners<T>::template load<kRows>(input + (where >> 8), p.rows.pixel, row, (unsigned(where) >> CL_SKIP) & mine, work.channels);
        Acc value[kN];
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          value[c] = w.corner[0] * corners.a.get(c) + w.corner[1] * corners.b.get(c) + w.corner[2] * corners.c.get(c) +
                     w.corner[3] * corners.d.get(c);
        }
        square.set(i, value);
      }
      if (there <= 0) continue;
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (c < work.channels) store_positions<kColumns>(out + c * from_channel, square.channel[c], there);
      }
    }
  }
}

}  // namespace ddu::cuda
