#pragma once

// The sum over a head's channels of query times value, from channels-last pixels, for any rates:
//
//   query, a square of positions by channels in registers
//   TapTable: where each tap of the run lies --16 bytes of channels for each corner--> value --times query--> a lane's part of
//   a score --the lanes of a head--> scores
//
// Where a head has more channels than lanes take at once, or channels of several groups, a warp goes through them in rounds.

#include "conversion.cuh"
#include "heads.cuh"

namespace ddu::cuda {

template <class T>
struct CorrelatePointers {
  const T* query;
  const T* key;  // channels-last
  const void* map;
  T* scores;
  StrangePixels strange;
};

/// kN: channels of a lane, 32 or 16 bytes of them or one. kOneRound: a warp has all channels of its heads at once. Lanes of 32
/// bytes have fewer positions to sum over lanes, and one more block at a time.
template <class T, int kN, bool kOneRound>
__global__ void __launch_bounds__(kRowThreads, 1 + kPieces<T, kN>)
    correlate_kernel(const HeadParams<accumulator_t<T>> p, const CorrelatePointers<T> tensors) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, false>;
  constexpr int kPositions = kLanePositions<T, kN>, kSome = kN > 1 ? kPositions : 1, kPiece = kN / kPieces<T, kN>;
  extern __shared__ char shared[];
  HeadWork<T, kN> work(p);
  wait_for_previous();
  const int shift = tensors.strange.corner_shift_of_block(work.image);
  if (!work.any) return;
  const Table table(shared, work.run);
  T* scores = tensors.scores + work.factors(p, false);
  const int positions = work.any_unit ? work.there : 0, rounds = kOneRound ? 1 : p.rounds;
  ValueSquare<T, kN> query;
  const int at_once = Table::entries(work.run) / work.run;
  bool first = true;
  if constexpr (kOneRound) {
    work.to_round(p, 0);
    table.load_rates(p, work, tensors.map);
    query.load(tensors.query + work.values(p), p.values, positions, work.channels);
  }
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap, scores += p.positions) {
    const int t = tap & (at_once - 1);
    Acc sum[kPositions] = {};
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      bool fill = round == 0 && t == 0;
      if (!kOneRound && (first || rounds > 1)) {
        if (work.to_round(p, round) || first) {
          __syncwarp();  // the rates have been read
          table.load_rates(p, work, tensors.map);
          fill = true;
        }
        query.load(tensors.query + work.values(p), p.values, positions, work.channels);
        first = false;
      }
      if (fill) table.fill(p, work, tap - t);
      const T* key = tensors.key + work.pixels(p);
      const unsigned mine = work.channels > 0 ? 15 : 0;
#pragma unroll 1
      for (int i0 = 0; i0 < kPositions; i0 += kSome) {
#pragma unroll
        for (int i = 0; i < kSome; ++i) {
          const int entry = t * work.run + work.first + i0 + i;
          const typename Table::Where where = table.where[entry];
#pragma unroll
          for (int c0 = 0; c0 < kN; c0 += kPiece) {
            const T* from = key + lane_channel<T, kN>(c0) + (where >> 8);
            const auto corners = Corners<T, kPiece>::template load<(kN > 1)>(from, p.rows.pixel, p.row,
                                                                             (unsigned(where) >> shift) & mine, work.channels);
            Acc value[kPiece];
            blend(corners, table.weights[entry], value);
#pragma unroll
            for (int c = 0; c < kPiece; ++c) sum[i] += query.at[i][c0 + c] * value[c];
          }
        }
        if constexpr (kSome < kPositions) {
          query.template rotate_positions<kSome>();
          rotate<kSome>(sum);
        }
      }
    }
    add_over_lanes(sum, p.log_unit_lanes, [&](int i, Acc score) {
      if (i < positions) scores[i] = narrow<T>(score);
    });
  }
}

}  // namespace ddu::cuda
