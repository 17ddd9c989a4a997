#pragma once

// One lane's part in adding gradients to rows of channels: straight to L2, or by way of a stage in shared memory (scatter.cuh).

#include "../core/integer.h"
#include "scatter.cuh"

namespace ddu::cuda {

/// Channels of a lane: 16 bytes of sums.
template <class T>
constexpr int kBackwardChannels = kVec<accumulator_t<T>>;

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
  /// Takes out scaled gradients for which sums have no units, and calls leave_out(channel) for them.
  template <class LeaveOut>
  __device__ __forceinline__ void take_out_beyond(Acc (&grad)[kN], LeaveOut leave_out) const {
    if constexpr (Sums::kOrdered) {
      if (!sums.fallback_marks) return;
      bool any = false;
#pragma unroll
      for (int c = 0; c < kN; ++c) any = any || sums.is_beyond(grad[c]);
      if (!any) return;
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (!sums.is_beyond(grad[c])) continue;
        if (c < channels) leave_out(c);
        grad[c] = 0;
      }
    }
  }
  struct NoneBeyond {
    __device__ void operator()(int) const {}
  };
  /// Position `i` of this lane's; `where` is 0 if it is not one of ours. `rows` says that pixels start at multiples of 16
  /// bytes.
  template <class LeaveOut = NoneBeyond>
  __device__ __forceinline__ void add(int i, long long where, const Acc (&weight)[4], Acc (&grad)[kN], bool strange, bool rows,
                                      LeaveOut leave_out = {}) const {
    if (strange) take_out(grad, where, weight);
    lane.scale(grad);
    take_out_beyond(grad, leave_out);
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

}  // namespace ddu::cuda
