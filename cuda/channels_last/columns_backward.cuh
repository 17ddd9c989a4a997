#pragma once

// Both gradients of columns, from and to channels-last pixels, for any rates.
//
//   columns' gradient --async copies, a tap ahead--> ColumnSquares --a position's channels--> Scatter: weight * gradient to L2
//                                                                                       \--> SlopeSums: gradient * differences
//
// What bounds it is how many bytes L2 adds in a second, and then that enough of the columns' gradient is on its way from
// memory.

#include "../core/async_copy.cuh"
#include "../core/dependent_launch.cuh"
#include "../core/integer.h"
#include "ordered_sums.cuh"
#include "row_scatter.cuh"
#include "rows_to_planes.cuh"

namespace ddu::cuda {

template <class T, class Sums>
struct ColumnsBackwardPointers {
  const T* grad_output;
  const T* input;  // channels-last
  const void* map;
  Sums sums;                   // of grad_input
  accumulator_t<T>* grad_map;  // sums, written or added to; null if not wanted
  std::int64_t map_part;       // elements between the sums for the map that different blocks write; 0 where they add theirs
  bool whole;                  // whether columns start at multiples of 16 bytes
  bool rows;                   // whether pixels do, and all of their vectors are whole
};

/// What a kernel is made for. Those for `both` gradients and for the `map`'s alone are for whole vectors, and take all of a
/// lane's positions at once. The others take two at a time, which keeps them small, and ask which gradients are wanted: `any`
/// serves every layout; `bulk` adds rows of 256 bytes or more at once, where 16 lanes share a position and vectors are whole.
enum class BackwardKind { both, map, any, bulk };
template <BackwardKind kKind>
constexpr bool kAsks = kKind == BackwardKind::any || kKind == BackwardKind::bulk;

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
  __device__ __forceinline__ Acc slope(const SlopeWeights<Acc>& of) const {
    return of.left * left + of.right * right + of.top * top + of.bottom * bottom;
  }
};

/// A lane's gradients of the columns, tap after tap: for each of its channels 16 bytes of positions. They are asked for a tap
/// ahead: the more of them are on their way, the nearer is memory's speed. A lane reads only what it asked for itself.
template <class T>
struct ColumnSquares {
  static constexpr int kSlots = 2, kChannels = kBackwardChannels<T>;
  static constexpr int kBytes = kSlots * kChannels * 32 * 16;  // of shared memory, for a warp

  uint4* ring;                    // this lane's
  const T *ahead, *now;           // columns of the tap that is asked for next, and of the one that is read next
  std::int64_t channel, tap;      // elements from one to the next
  int channels, positions, slot;  // how many there are, and where the tap lies that is read next
  bool whole;

  __device__ __forceinline__ ColumnSquares(char* shared, const T* columns, std::int64_t channel, std::int64_t tap, int channels,
                                           int positions, bool whole)
      : ring(reinterpret_cast<uint4*>(shared + int(threadIdx.x) / 32 * kBytes) + threadIdx.x % 32),
        ahead(columns),
        now(columns),
        channel(channel),
        tap(tap),
        channels(positions > 0 ? channels : 0),
        positions(positions),
        slot(0),
        whole(whole) {
    ask(0, true);
  }
  /// Reads a tap and, if there is one `more`, asks for the next.
  __device__ __forceinline__ void next(Bits16<T> (&square)[kChannels], bool more) {
    if (whole) wait_for_copies();
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      square[c] = Bits16<T>();
      if (c >= channels) continue;
      if (whole) {
        square[c].whole = ring[(slot * kChannels + c) * 32];
      } else {
        square[c] = load_positions<false>(now + c * channel, positions);
      }
    }
    now += tap;
    slot ^= 1;
    ask(slot, more);
  }

 private:
  __device__ __forceinline__ void ask(int to, bool any) {
    if (!whole || !any) return;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < channels) copy_async(ring + (to * kChannels + c) * 32, ahead + c * channel);
    }
    ahead += tap;
  }
};

/// Whether a lane's gradients are not all finite; with bulk additions, whether any lane's of the warp are.
template <class T, bool kBulk, int kChannels>
__device__ __forceinline__ bool any_strange(const Bits16<T> (&square)[kChannels]) {
  accumulator_t<T> check = 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) check += square[c].get(i) * 0;
  }
  return kBulk ? __any_sync(~0u, check != 0) : check != 0;
}

/// Adds, or writes, the map's gradient of this lane's positions; `marked` has a bit for each that is ours.
template <class Acc, int kPositions, class Params, class Work, class Table, class Pointers>
__device__ __forceinline__ void store_slopes(const Params& p, const Pointers& tensors, const Work& work, const Table& table,
                                             Acc (&slopes)[kPositions], unsigned marked) {
  const int first = work.quad * kPositions;
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
    for (int step = 1; step < work.lanes; step *= 2) slopes[i] += __shfl_xor_sync(~0u, slopes[i], step);
    if (work.vector != 0 || !(marked >> i & 1)) continue;
    const Acc sum = slopes[i] + nan_unless_finite(table.rates[first + i]);
    Acc* target = tensors.grad_map + work.map_plane(p) * p.positions + work.first_position + first + i;
    if (tensors.map_part == 0) {
      atomicAdd(target, sum);
    } else {
      const int parts = p.slices * p.tap_chunks;
      target[((p.shared_map ? work.image : 0) * std::int64_t{parts} + work.part) * tensors.map_part] = sum;
    }
  }
}

/// Leaves a position's gradient of one of a lane's channels to the planar kernels' fallback.
template <class T, class Sums>
struct LeaveOut {
  const RowParams<accumulator_t<T>>& p;
  const ColumnsBackwardPointers<T, Sums>& tensors;
  const WarpWork<T, kBackwardChannels<T>>& work;
  long long where;  // 0: nothing of it counts
  int index;        // of the position in the run

  __device__ __forceinline__ void operator()(int c) const {
    if constexpr (Sums::kOrdered) {
      if (where == 0) return;
      leave_to_fallback(tensors.sums.fallback_marks, work.plane(p) + c, p.tiles.tiles, work.tile(p, index), kGradientsBeyond);
    }
  }
};

/// One block of `columns_backward_kernel`.
template <class T, class Sums, BackwardKind kKind>
__device__ __forceinline__ void columns_backward(const RowParams<accumulator_t<T>>& p,
                                                 const ColumnsBackwardPointers<T, Sums>& tensors, unsigned block,
                                                 char* shared) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, true>;
  constexpr bool kBulk = kKind == BackwardKind::bulk;
  using Scatter = RowScatter<T, Sums, kBulk>;
  constexpr int kPositions = kVec<T>, kChannels = kBackwardChannels<T>, kAtOnce = kAsks<kKind> ? 2 : kPositions;
  const WarpWork<T, kChannels> work(p, block);
  const bool any = work.any && work.any_marked(p);
  if (!any) return;
  const bool with_input = kAsks<kKind> ? tensors.sums.words != nullptr : kKind == BackwardKind::both;
  const bool with_map = !kAsks<kKind> || tensors.grad_map, rows = kKind != BackwardKind::any || tensors.rows;
  char* memory = shared + kRowWarps * Scatter::kBytes;
  const int first = work.quad * kPositions,
            there = int(min(p.positions - work.first_position - first, std::int64_t{kPositions}));
  ColumnSquares<T> squares(
      memory, tensors.grad_output + (work.plane(p) * p.taps + work.first_tap) * p.positions + work.first_position + first,
      p.taps * p.positions, p.positions, work.channels, there, tensors.whole);
  const Table table(memory + kRowWarps * ColumnSquares<T>::kBytes, work.run);
  table.load_rates(p, work, tensors.map);
  wait_for_previous();
  const Scatter scatter(tensors.sums, shared, p, work);
  unsigned marked = 0;  // a bit for each of this lane's positions
  for (int i = 0; i < kPositions; ++i) marked |= work.marked(p, first + i) ? 1u << i : 0;
  const T* input = tensors.input + work.pixels(p);
  const int at_once = Table::entries(work.run) / work.run;
  Acc slopes[kPositions] = {};
#pragma unroll 1
  for (int tap = work.first_tap; tap < work.last_tap; tap += at_once) {
    table.fill(p, work, tap);
#pragma unroll 1
    for (int t = 0; t < at_once && tap + t < work.last_tap; ++t) {
      Bits16<T> square[kChannels];
      squares.next(square, tap + t + 1 < work.last_tap);
      const int entry = t * work.run + first;
      const bool strange = with_input && any_strange<T, kBulk>(square);
#pragma unroll 1
      for (int i0 = 0; i0 < kPositions; i0 += kAtOnce) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int i = i0 + j;
          const auto where_of = [&](int of) { return marked >> of & 1 ? table.where[entry + of] : 0; };
          const typename Table::Where where = work.channels > 0 ? where_of(i) : 0;
          const typename Table::CornerWeights w = table.weights[entry + i];
          Acc grad[kChannels];
#pragma unroll
          for (int c = 0; c < kChannels; ++c) grad[c] = square[c].get(j);
          if (with_map) {
            SlopeSums<Acc> sums;
            sums.template add<T, kChannels>(Corners<T, kChannels>::load(rows, input + (where >> 8), scatter.pixel, scatter.row,
                                                                        unsigned(where) & 15, work.channels),
                                            grad);
            const typename Table::Slopes slope = table.slopes[entry + i];
            if (where & 15) slopes[j] += sums.slope(slope.of);
          }
          if (with_input) {
            scatter.add(i, where, w.corner, grad, strange, rows, LeaveOut<T, Sums>{p, tensors, work, where, first + i});
            if constexpr (kBulk) {
              if (i % Scatter::kStep == Scatter::kStep - 1) {
                publish_to_bulk();
                __syncwarp();
                if (scatter.has_staged()) scatter.add_staged(where_of(scatter.staged_position(i)), strange);
                commit_bulk();
              }
            }
          }
        }
        if constexpr (kAtOnce < kPositions) {
          rotate<kAtOnce>(slopes);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) square[c].template skip<kAtOnce>();
        }
      }
    }
  }
  if constexpr (kBulk) wait_for_bulk_reads();
  if (with_map) store_slopes(p, tensors, work, table, slopes, marked);
}

/// Whether a kernel that has only marked tiles to do turns planes to rows before, and adds the sums to planes after: it is one
/// launch then, which most often finds nothing. (For single gradients the code would be too large; ordered sums have kernels
/// between these.)
template <class T, class Sums, BackwardKind kKind>
constexpr bool kTurnsPlanes = kKind == BackwardKind::both && !Sums::kOrdered && sizeof(T) < 8;

/// Does `blocks` blocks' work: one each, or, where only marked tiles are wanted, as many as there are.
template <class T, class Sums, BackwardKind kKind>
__global__ void __launch_bounds__(kRowThreads, 2)
    columns_backward_kernel(const RowParams<accumulator_t<T>> p, const ColumnsBackwardPointers<T, Sums> tensors,
                            unsigned blocks, const PlanesToRows<T> rows, const SumsToPlanes planes) {
  if constexpr (kKind != BackwardKind::bulk || kBulkReductions) {
    extern __shared__ char shared[];
    if (p.tiles.marks) {
      if (tensors.sums.words) let_next_start();  // what adds the sums to planes, or rounds them
      if (p.tiles.nothing_left()) return;
    }
    const bool turns = kTurnsPlanes<T, Sums, kKind> && p.tiles.marks;  // blocks take each phase's work in turn
    if constexpr (kTurnsPlanes<T, Sums, kKind>) {
      if (turns) turn_marked_planes(rows, p.tiles, shared);
    }
#pragma unroll 1
    for (unsigned block = turns ? p.tiles.work().take(1) : blockIdx.x; block < blocks;) {
      __syncwarp();  // the shared memory of the block before is free
      columns_backward<T, Sums, kKind>(p, tensors, block, shared);
      if (turns) p.tiles.work().finish(1);
      block = turns ? p.tiles.work().take(1) : block + gridDim.x;
    }
    if constexpr (kTurnsPlanes<T, Sums, kKind>) {
      if (!turns) return;
      p.tiles.work().wait(1, blocks);
      planes.run(p.tiles, float_sums(tensors.sums));
    }
  }
}

}  // namespace ddu::cuda
