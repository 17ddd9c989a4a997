#pragma once

// Both gradients of columns, from and to channels-last pixels, for any rates.

#ifndef CL_L2HINT
#define CL_L2HINT ""
#endif
#ifndef CL_DEPTH
#define CL_DEPTH 3
#endif
#include "../core/async_copy.cuh"
#include "../core/dependent_launch.cuh"
#include "scatter.cuh"

#ifndef CL_BWD_MIN
#define CL_BWD_MIN 3
#endif
#ifndef CL_STAGE
#define CL_STAGE 4
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

/// Channels of a lane: 16 bytes of sums.
template <class T>
constexpr int kBackwardChannels = kVec<accumulator_t<T>>;

/// Sums over channels that the slopes of a tap follow from. Differences come first: pixels may be alike and large.
template <class Acc>
struct SlopeSums {
  Acc left = 0, right = 0, top = 0, bottom = 0;  // of c-a, d-b, b-a, d-c

  template <class T, int kN>
  __device__ __forceinline__ void add(const Corners<T, kN>& corners, const Acc (&grad)[kN]) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
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

/// How many positions of a lane are staged at once.
template <class T>
constexpr int kStaged = kVec<T> < CL_STAGE ? kVec<T> : CL_STAGE;

/// A lane's gradients of the columns, tap after tap: for each of its channels 16 bytes of positions. They are asked for kDepth - 1
/// taps ahead, since memory needs that many of them on their way.
template <class T>
struct ColumnSquares {
  static constexpr int kDepth = CL_DEPTH, kChannels = kBackwardChannels<T>;
  static constexpr int kBytes = kDepth * kChannels * 32 * 16;  // of shared memory, for a warp

  uint4* ring;          // this lane's
  const T* columns;     // of the tap that is asked for next
  const T* now;         // of the tap that is read next
  std::int64_t from_channel, from_tap;
  int channels, positions;  // how many there are of each
  bool whole;

  __device__ __forceinline__ ColumnSquares(char* shared, const T* columns, std::int64_t from_channel, std::int64_t from_tap, int channels, int positions, bool whole)
    : ring(reinterpret_cast<uint4*>(shared + int(threadIdx.x) / 32 * kBytes) + threadIdx.x % 32), columns(columns), now(columns), from_channel(from_channel), from_tap(from_tap), channels(positions > 0 ? channels : 0), positions(positions), whole(whole) {}

  /// Asks for one more tap, if there is one.
  __device__ __forceinline__ void ask(int slot, bool any) {
    if (whole && any) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c < channels) copy_async(ring + (slot * kChannels + c) * 32, columns + c * from_channel);
      }
      columns += from_tap;
    }
    commit_copies();
  }
  __device__ __forceinline__ void read(int slot, Bits16<T> (&square)[kChannels]) {
    if (whole) wait_for_copies<kDepth - 2>();
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      square[c] = Bits16<T>();
      if (c >= channels) continue;
      if (whole) square[c].whole = ring[(slot * kChannels + c) * 32];
      else square[c] = load_positions<false>(now + c * from_channel, positions);
    }
    now += from_tap;
  }
};

/// kRows: pixels start at multiples of 16 bytes. kBulk: 16 lanes share a position, and add its channels as one row.
/// `whole`: columns start at multiples of 16 bytes.
template <class T, bool kInput, bool kMap, bool kRows, bool kBulk>
__global__ void __launch_bounds__(kRowThreads, CL_BWD_MIN)
    columns_backward_kernel(const RowParams<accumulator_t<T>> p, const ColumnsBackwardPointers<T> tensors, bool whole) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, kMap>;
  using Stage = ScatterStage<Acc, kStaged<T>>;
  constexpr int kPositions = kVec<T>, kChannels = kBackwardChannels<T>;
  extern __shared__ char shared[];

  const WarpWork<T, kChannels> work(p);
  if (!work.any || !work.any_marked(p)) return;
  const Stage stage(shared, work.quad);
  const Table table(shared + (kBulk ? kRowWarps * Stage::kBytes : 0), work.run);
  char* squares_memory = shared + (kBulk ? kRowWarps * Stage::kBytes : 0) + kRowWarps * Table::bytes(work.run);
  table.load_rates(p, work, tensors.map);

  const T* input = tensors.input + work.pixels(p);
  Acc* sums = tensors.grad_input + work.pixels(p);
  const std::int64_t row = p.width * p.rows.pixel, from_channel = p.taps * p.positions;
  const int first = work.quad * kPositions, there = int(min(p.positions - work.first_position - first, std::int64_t{kPositions}));
  const T* columns = tensors.grad_output + (work.plane(p) * p.taps + work.first_tap) * p.positions + work.first_position + first;
  unsigned marked = 0;  // a bit for each of this lane's positions
  for (int i = 0; i < kPositions; ++i) marked |= work.marked(p, first + i) ? 1u << i : 0;
  const bool some = work.channels > 0;
  // Of a staged row: elements up to the end of the group's last vector.
  const int row_count = (min(p.group_channels - (work.channel - work.vector * kChannels), work.lanes * kChannels) + kChannels - 1) / kChannels * kChannels;
  const bool adjacent = row_count == p.rows.pixel && row_count == Stage::kRow;
  const int at_once = Table::entries(work.run) / work.run;
  Acc slopes[kPositions] = {};

  ColumnSquares<T> squares(squares_memory, columns, from_channel, p.positions, work.channels, there, whole);
#pragma unroll
  for (int ahead = 0; ahead < ColumnSquares<T>::kDepth - 1; ++ahead) squares.ask(ahead, work.first_tap + ahead < work.last_tap);
  int slot_now = 0;
  wait_for_previous();
#pragma unroll 1
  for (int tap = work.first_tap; tap < work.last_tap; tap += at_once) {
    table.fill(p, work, tap);
#pragma unroll 1
    for (int t = 0; t < at_once && tap + t < work.last_tap; ++t) {
      const int entry = t * work.run + first;
      Bits16<T> square[kChannels];
      squares.read(slot_now, square);
      squares.ask(slot_now == 0 ? ColumnSquares<T>::kDepth - 1 : slot_now - 1, tap + t + ColumnSquares<T>::kDepth - 1 < work.last_tap);
      slot_now = slot_now == ColumnSquares<T>::kDepth - 1 ? 0 : slot_now + 1;
      const int ky = (tap + t) / p.kernel_w;
      const Acc offset_y = p.y.offset(ky), offset_x = p.x.offset(tap + t - ky * p.kernel_w);
#ifndef CL_NOMASK
      const bool still_y = p.y.half == 0 && offset_y == 0, still_x = p.x.half == 0 && offset_x == 0;
      const unsigned sloping = still_y ? still_x ? 0 : 3 : still_x ? 5 : 15;
#else
      const unsigned sloping = 15;
#endif
      unsigned strange = 0;
      if constexpr (kInput) {  // A gradient that is not finite goes to all corners, weight or not.
        Acc poison = 0;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
#pragma unroll
          for (int i = 0; i < kPositions; ++i) poison += square[c].get(i) * Acc(0);
        }
        strange = poison == 0 ? 0 : 1;
        if constexpr (kBulk) strange = __any_sync(~0u, strange != 0);
      }
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        const typename Table::Where where = table.where[entry + i];
        const typename Table::CornerWeights w = table.weights[entry + i];
        Acc grad[kChannels];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) grad[c] = square[c].get(i);
        const unsigned there_is = (marked >> i & 1) && some ? unsigned(where) : 0;
        if constexpr (kMap) {
          SlopeSums<Acc> slope_sums;
          slope_sums.template add<T, kChannels>(Corners<T, kChannels>::template load<kRows>(input + (where >> 8), p.rows.pixel, row, there_is & sloping, work.channels), grad);
          const typename Table::Fractions f = table.fractions[entry + i];
          if (there_is & 15) slopes[i] += slope_sums.slope(f.y, f.x, offset_y, offset_x);
        }
        if constexpr (kInput && !kBulk) {
          const unsigned corners = strange ? there_is & 15 : there_is >> 4 & 15;
          Acc* to = sums + (where >> 8);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            Acc value[kChannels];
#pragma unroll
            for (int c = 0; c < kChannels; ++c) value[c] = w.corner[corner] * grad[c];
            if (corners >> corner & 1) {
              add_channels<kRows>(to + (corner & 1 ? p.rows.pixel : 0) + (corner & 2 ? row : 0), value, work.channels);
            }
          }
        }
        if constexpr (kInput && kBulk) {
          constexpr int kStep = kStaged<T>;
          if (i % kStep == 0) {
            wait_for_bulk_reads();
            __syncwarp();
          }
          stage.write(i % kStep, work.vector, w.corner, grad);
          if (i % kStep == kStep - 1) {
            publish_to_bulk();
            __syncwarp();
            if (const int slot = work.vector; slot < 4 * kStep) {
              const int of = i - (kStep - 1) + slot / 4, corner = slot % 4;
              const typename Table::Where at = table.where[entry + of];
              const unsigned corners = strange ? unsigned(at) & 15 : unsigned(at) >> 4 & 15;
              // Where nothing lies between two pixels, the two of a row are added at once.
              const bool pair = adjacent && (corners >> (corner & 2) & 3) == 3;
              if ((marked >> of & 1) && (corners >> corner & 1) && !(pair && (corner & 1))) {
                add_bulk(sums - work.vector * kChannels + (at >> 8) + (corner & 1 ? p.rows.pixel : 0) + (corner & 2 ? row : 0),
                         stage.rows + slot * Stage::kRow, pair ? 2 * row_count : row_count);
              }
            }
            commit_bulk();
          }
        }
      }
    }
  }
  if constexpr (kInput && kBulk) wait_for_bulk_reads();
  if constexpr (kMap) {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
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
