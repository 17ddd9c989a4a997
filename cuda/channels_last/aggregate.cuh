#pragma once

// The weighted sum over taps, from channels-last pixels, for any rates:
//
//   TapTable: where each tap of the run lies --16 bytes of channels for each corner--> value --times its head's weight--> sums,
//   a square of positions by channels in registers --after the last tap--> output, by rows or by planes
//
// What bounds it is how many bytes of pixels L1 and L2 give: four corners of all channels for each tap and position.
//
// A depthwise convolution is the same with a weight for each channel and tap beside (channel_weights.cuh); its mask, if it has
// one, are the weights of heads.

#include "../core/memory.cuh"
#include "channel_weights.cuh"
#include "conversion.cuh"

namespace ddu::cuda {

template <class T>
struct AggregatePointers {
  const T* input;    // channels-last
  const T* weights;  // null for ones, beside weights of channels
  const void* map;
  T* output;
  StrangePixels strange;
};

/// kN: channels of a lane, 16 bytes of them or one. Channels: NoChannelWeights, or ChannelWeights of a depthwise convolution.
template <class T, int kN, class Channels>
__global__ void __launch_bounds__(kRowThreads, 2)
    aggregate_kernel(const HeadParams<accumulator_t<T>> p, const AggregatePointers<T> tensors, const Channels channels) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, false>;
  constexpr int kSome = kPositionsAtOnce<kN>;
  extern __shared__ char shared[];
  const HeadWork<T, kN> work(p);
  wait_for_previous();
  const int shift = tensors.strange.corner_shift_of_block(work.image);
  if (!Channels::kAny && !work.any) return;
  const Table table(shared, work.run);
  table.load_rates(p, work, tensors.map);
  const bool weighted = !Channels::kAny || tensors.weights;
  const T* weights = weighted ? tensors.weights + work.factors(p, p.shared_factors) : nullptr;
  const T* input = tensors.input + work.pixels(p);
  const int positions = work.any && work.any_unit ? work.there : 0;
  const unsigned mine = work.channels > 0 ? 15 : 0;
  if (kN > 1 && positions > 0 &&
      weighted) {  // weights come from memory, a tap after the other: all of them are asked for at once
    const int unit_lanes = 1 << p.log_unit_lanes;
#pragma unroll 1
    for (int tap = work.vector & (unit_lanes - 1); tap < p.taps; tap += unit_lanes) prefetch_line(weights + tap * p.positions);
  }
  ValueSquare<T, kN> sum;
  sum.clear();
  typename Channels::template OfBlock<kN> block(p, channels, shared + kRowWarps * Table::bytes(work.run));
  if constexpr (Channels::kAny) block.fill_with_bias(p, work, sum);
  const int at_once = Table::entries(work.run) / work.run;
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap, weights += p.positions) {
    const int t = tap & (at_once - 1);
    if (t == 0) table.fill(p, work, tap);
    Acc weight[kHeadPositions] = {1, 1, 1, 1};
    if (weighted) load_factors(weights, p.factor_vectors, positions, weight);
    Acc of_channel[kN];
    if constexpr (Channels::kAny) block.load(p, work, tap, of_channel);
    // Of a `whole` tap all corners lie in the image, in all lanes of the warp.
    const auto add = [&](auto whole) {
#pragma unroll 1
      for (int i0 = 0; i0 < kHeadPositions; i0 += kSome) {
#pragma unroll
        for (int i = 0; i < kSome; ++i) {
          const int entry = t * work.run + work.first + i0 + i;
          const typename Table::Where where = table.where[entry];
          const unsigned corners_read = decltype(whole)::value ? 15u : (unsigned(where) >> shift) & mine;
          const auto corners =
              Corners<T, kN>::template load<(kN > 1)>(input + (where >> 8), p.rows.pixel, p.row, corners_read, work.channels);
          Acc value[kN];
          blend(corners, table.weights[entry], value);
#pragma unroll
          for (int c = 0; c < kN; ++c) {
            if constexpr (Channels::kAny) value[c] *= of_channel[c];
            sum.at[i][c] += weight[i] * value[c];
          }
        }
        if constexpr (kSome < kHeadPositions) {
          sum.template rotate_positions<kSome>();
          rotate<kSome>(weight);
        }
      }
    };
    if constexpr (kN > 1 &&
                  sizeof(T) == 4) {  // where it is worth a second loop: no load is conditional, nothing is set to zero
      unsigned all = mine;
#pragma unroll
      for (int i = 0; i < kHeadPositions; ++i) all &= unsigned(table.where[t * work.run + work.first + i]) >> shift;
      if (!__any_sync(~0u, all != 15)) {
        add(std::true_type{});
        continue;
      }
    }
    add(std::false_type{});
  }
  sum.store(tensors.output + work.values(p), p.values, positions, work.channels);
}

}  // namespace ddu::cuda
