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

/// Adds one lane's gradients onto the corners of taps.
template <class T, class Sums, bool kBulk, int kChannels = kBackwardChannels<T>>
struct RowScatter {
  using Acc = accumulator_t<T>;
  using Word = typename Sums::Word;
  static constexpr int kN = kChannels;
  // Positions that are staged at once: 8 KiB of a warp.
  static constexpr int kStep = kVec<T> < (sizeof(Word) == 4 ? 4 : 2) ? kVec<T> : (sizeof(Word) == 4 ? 4 : 2);
  using Stage = ScatterStage<Sums, kN, kStep>;
  static constexpr int kBytes = kBulk ? Stage::kBytes : 0;

  const Sums& sums;
  Stage stage;
  typename Sums::template Lane<kN> lane;
  std::int64_t first, pixel, row;  // this lane's first channel in the image; from one pixel to the next, and to the one below
  int channels, vector;
  int row_words;  // of a staged row: up to the end of the group's last vector

  template <class Params, class Work>
  __device__ __forceinline__ RowScatter(const Sums& sums, char* shared, const Params& p, const Work& work)
      : sums(sums),
        stage(shared, work.quad),
        lane(sums, work.plane(p), work.channels),
        first(work.pixels(p)),
        pixel(p.rows.pixel),
        row(p.width * p.rows.pixel),
        channels(work.channels),
        vector(work.vector),
        row_words(min(int(ceil_div(p.group_channels - work.slice * Stage::kRow, kN)) * kN, Stage::kRow)) {}

  __device__ __forceinline__ std::int64_t corner_offset(int corner) const {
    return (corner & 1 ? pixel : 0) + (corner & 2 ? row : 0);
  }
  /// Which corners get anything: a gradient that is not finite goes to all of them, weight or not.
  __device__ __forceinline__ static unsigned corners_of(long long where, bool strange) {
    return strange && !Sums::kOrdered ? unsigned(where) & 15 : unsigned(where) >> 4 & 15;
  }

  /// Takes out what is not finite, and notes where it goes.
  __device__ __forceinline__ void take_out(Acc (&grad)[kN], long long where, const Acc (&weight)[4]) const {
    if constexpr (Sums::kOrdered) {
#pragma unroll 1
      for (int c = 0; c < kN; ++c) {
        if (c >= channels || is_finite(grad[c])) continue;
        for (int corner = 0; corner < 4; ++corner) {
          if (where >> corner & 1) sums.mark(first + (where >> 8) + corner_offset(corner) + c, weight[corner] * grad[c]);
        }
        grad[c] = 0;
      }
    }
  }
  /// Position `i` of this lane's; `where` is 0 if it is not one of ours. `rows` says that pixels start at multiples of 16
  /// bytes.
  __device__ __forceinline__ void add(int i, long long where, const Acc (&weight)[4], Acc (&grad)[kN], bool strange,
                                      bool rows) const {
    if (strange) take_out(grad, where, weight);
    lane.scale(grad);
    if (kBulk && i % kStep == 0) {
      wait_for_bulk_reads();
      __syncwarp();
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (!kBulk && !(corners_of(where, strange) >> corner & 1)) continue;
      Acc term[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) term[c] = weight[corner] * grad[c];
      Word word[Sums::kWords][kN];
      sums.convert(term, word, lane);
      if constexpr (kBulk) {
        stage.write(i % kStep, corner, vector, word);
      } else {
#pragma unroll
        for (int array = 0; array < Sums::kWords; ++array) {
          Word* to = array_of(array) + first + (where >> 8) + corner_offset(corner);
          rows ? add_channels<true>(to, word[array], channels) : add_channels<false>(to, word[array], channels);
        }
      }
    }
  }
  /// Once the last of kStep positions is there, each lane has a corner of one of them added: `where` is that position's.
  __device__ __forceinline__ int staged_position(int i) const { return i - (kStep - 1) + vector / 4; }
  __device__ __forceinline__ bool has_staged() const { return vector < 4 * kStep; }
  __device__ __forceinline__ void add_staged(long long where, bool strange) const {
    const int corner = vector % 4;
    if (!has_staged() || !(corners_of(where, strange) >> corner & 1)) return;
    const std::int64_t to = first - vector * kN + (where >> 8) + corner_offset(corner);
#pragma unroll
    for (int array = 0; array < Sums::kWords; ++array) {
      add_bulk(array_of(array) + to, stage.row(array, vector / 4, corner), row_words * int(sizeof(Word)));
    }
  }

 private:
  __device__ __forceinline__ Word* array_of(int array) const {
    if constexpr (Sums::kWords > 1) {
      return sums.words + array * sums.array;
    } else {
      return sums.words;
    }
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
            scatter.add(i, where, w.corner, grad, strange, rows);
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
    for (unsigned block = turns ? p.tiles.take_piece(1) : blockIdx.x; block < blocks;) {
      __syncwarp();  // the shared memory of the block before is free
      columns_backward<T, Sums, kKind>(p, tensors, block, shared);
      if (turns) p.tiles.finish_piece(1);
      block = turns ? p.tiles.take_piece(1) : block + gridDim.x;
    }
    if constexpr (kTurnsPlanes<T, Sums, kKind>) {
      if (!turns) return;
      p.tiles.wait_for_pieces(1, blocks);
      planes.run(p.tiles, float_sums(tensors.sums));
    }
  }
}

}  // namespace ddu::cuda
