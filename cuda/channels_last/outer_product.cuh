#pragma once

// The backward of both operators without columns. The gradient of a column is an outer product, which is never stored:
//
//   column gradient [channel, tap] = value [channel] * factor [tap]      values: aggregate's grad_output, correlate's query
//                                                                        factors: aggregate's weights, correlate's grad_scores
//   four corners of a tap ---\--- sum over channels of value * sampled ----> gradient of the factors (aggregate)
//                             \-- sum over taps of factor * sampled -------> gradient of the values (correlate)
//                              \- sums of column gradient * differences ---> gradient of the map
//   column gradient * corner weights, to sums in L2 -----------------------> gradient of the image
//
// A depthwise convolution has a weight of each channel and tap beside (channel_weights.cuh), by which its values are multiplied
// first, and factors only if it has a mask:
//
//   value [channel] * factor [tap] * sampled, summed over positions --------> gradient of the weights
//
// What bounds it is how many bytes L2 adds in a second: four corners of all channels for each tap and position.

#include "channel_weights.cuh"
#include "heads_backward.cuh"

namespace ddu::cuda {

template <class T, class Sums>
struct OuterProductPointers {
  using Acc = accumulator_t<T>;
  const T* values;
  const T* factors;  // null for ones, beside weights of channels
  const T* image;    // channels-last
  const void* map;
  Sums sums;  // of the image's gradient; no words if that is not wanted
  T* grad_values;
  // Of the gradient of the factors: what it is, or sums of it. As of the map's, null if not wanted; the sums are written to, in
  // as many arrays as warps meet, or where factors_part or map_part is 0 added to.
  T* grad_factors;
  Acc *factor_sums, *grad_map;
  std::int64_t factors_part, map_part;
};

/// What a lane has of its positions while it goes through the taps. kFactors: beside the gradients of image and map there is
/// that of the factors, else that of the values. kWeights: channels have weights.
template <class T, int kN, bool kFactors, bool kWeights>
struct OuterProductLane {
  using Acc = accumulator_t<T>;
  ValueSquare<T, kN> value, grad_value;  // the latter summed over taps
  Acc slopes[kHeadPositions] = {};       // summed over taps and the lane's channels
  Acc factor[kHeadPositions];            // of this tap
  Acc sum[kHeadPositions];               // of value x sampled, over the lane's channels
  Acc weight[kN], grad_weight[kN];       // of this tap; the latter summed over the lane's positions

  /// The value of position i and channel c, times its weight.
  __device__ __forceinline__ Acc weighted(int i, int c) const {
    if constexpr (kWeights) return value.at[i][c] * weight[c];
    return value.at[i][c];
  }
  /// Starts a tap: its factors lie at `at`, or are ones.
  __device__ __forceinline__ void start(const T* factors, std::int64_t at, bool vectors, int positions) {
    for (Acc& each : factor) each = 1;
    if (!kWeights || factors) load_factors(factors + at, vectors, positions, factor);
    for (Acc& each : sum) each = 0;
    if constexpr (kWeights) {
      for (Acc& each : grad_weight) each = 0;
    }
  }
  /// Adds what position i sees of a tap, an entry of the table. `moves`: some of its corners are pixels.
  template <class Table>
  __device__ __forceinline__ void add_sampled(int i, const Corners<T, kN>& corners, const Table& table, int entry, bool moves) {
    Acc sampled[kN], column[kN];
    blend(corners, table.weights[entry], sampled);
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      column[c] = weighted(i, c);
      if constexpr (kWeights) grad_weight[c] += factor[i] * value.at[i][c] * sampled[c];
      if constexpr (kFactors) {
        sum[i] += column[c] * sampled[c];
      } else {
        grad_value.at[i][c] += factor[i] * sampled[c];
      }
    }
    SlopeSums<Acc> differences;
    differences.template add<T, kN>(corners, column);
    const typename Table::Slopes slope = table.slopes[entry];
    if (moves) slopes[i] += factor[i] * differences.slope(slope.of);
  }
  /// The column's gradient at position i. Returns whether some of it is not finite.
  __device__ __forceinline__ bool column_gradient(int i, Acc (&grad)[kN]) const {
    Acc check = 0;
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      grad[c] = factor[i] * weighted(i, c);
      check += grad[c] * 0;
    }
    return check != 0;
  }
  /// Moves positions kBy places down, and the first ones to the end.
  template <int kBy>
  __device__ __forceinline__ void rotate_positions() {
    value.template rotate_positions<kBy>();
    if constexpr (!kFactors) grad_value.template rotate_positions<kBy>();
    rotate<kBy>(factor);
    rotate<kBy>(sum);
    rotate<kBy>(slopes);
  }
};

/// kN: channels of a lane, 16 bytes of sums or one. Channels: NoChannelWeights, or SomeChannelWeights of a depthwise one.
template <class T, class Sums, int kN, bool kFactors, class Channels>
__global__ void __launch_bounds__(kRowThreads, 2)
    outer_product_kernel(const HeadParams<accumulator_t<T>> p, const OuterProductPointers<T, Sums> tensors,
                         const Channels channels) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, true>;
  constexpr bool kRows = kN > 1;
  constexpr int kSome = kPositionsAtOnce<kN>;
  constexpr unsigned kImage = 1, kMap = 2, kOther = 4, kWeight = 8;
  extern __shared__ char shared[];
  const HeadWork<T, kN> work(p);
  wait_for_previous();
  if (!Channels::kAny && !work.any) return;
  const HeadTaps<Acc> taps(p, work, shared, tensors.map);
  const Table& table = taps.table;
  const int positions = taps.positions;
  OuterProductLane<T, kN, kFactors, Channels::kAny> lane;
  lane.value.load(tensors.values + work.values(p), p.values, positions, work.channels);
  lane.grad_value.clear();
  const RowScatter<T, Sums, false, kN> scatter(tensors.sums, shared, p, work);
  const bool other = kFactors ? tensors.factor_sums || tensors.grad_factors : tensors.grad_values != nullptr;
  unsigned wanted = (tensors.sums.words ? kImage : 0) | (tensors.grad_map ? kMap : 0) | (other ? kOther : 0);
  typename Channels::template OfBlock<kN> block(p, channels, shared + kRowWarps * Table::bytes(work.run));
  if constexpr (Channels::kAny) wanted |= channels.sums ? kWeight : 0;
  const T* image = tensors.image + work.pixels(p);
  const int at_once = Table::entries(work.run) / work.run;
  // With shared factors, other images are other warps' work on the same element, as other channels are.
  const std::int64_t factors_part = (p.shared_factors ? work.image : 0) * (p.head_units * p.unit_slices) + work.head_part;
  const TapRange range = channels.range(p);
  std::int64_t at_factors = work.factors(p, p.shared_factors) + range.first * p.positions;
#pragma unroll 1
  for (int tap = range.first; tap < range.last; ++tap, at_factors += p.positions) {
    const int t = tap & (at_once - 1);
    if (t == 0) table.fill(p, work, tap);
    lane.start(tensors.factors, at_factors, p.factor_vectors, positions);
    if constexpr (Channels::kAny) block.load(p, work, tap, lane.weight);
#pragma unroll 1
    for (int i0 = 0; i0 < kHeadPositions; i0 += kSome) {
#pragma unroll
      for (int i = 0; i < kSome; ++i) {
        ask_in_loop(wanted);
        const int entry = t * work.run + work.first + i0 + i;
        const typename Table::Where where = taps.ours >> (i0 + i) & 1 ? table.where[entry] : 0;
        if (wanted & (kMap | kOther | kWeight)) {
          const auto corners = Corners<T, kN>::template load<kRows>(image + (where >> 8), p.rows.pixel, p.row,
                                                                    unsigned(where) & 15, work.channels);
          lane.add_sampled(i, corners, table, entry, where & 15);
        }
        if (wanted & kImage) {
          Acc grad[kN];
          const bool strange = lane.column_gradient(i, grad);
          scatter.add(i, where, table.weights[entry].corner, grad, strange, kRows);
        }
      }
      if constexpr (kSome < kHeadPositions) lane.template rotate_positions<kSome>();
    }
    if constexpr (Channels::kAny) {
      if (wanted & kWeight) block.add(p, work, tap, lane.grad_weight);
    }
    if (kFactors && wanted & kOther) {
      add_over_lanes(lane.sum, p.log_unit_lanes, [&](int i, Acc sum) {
        if (i < positions)
          store_sum(tensors.factor_sums, tensors.grad_factors, factors_part, tensors.factors_part, at_factors + i, sum);
      });
    }
  }
  if (wanted & kMap) taps.store_map_gradient(p, work, lane.slopes, tensors.grad_map, tensors.map_part);
  if (!kFactors && wanted & kOther)
    lane.grad_value.store(tensors.grad_values + work.values(p), p.values, positions, work.channels);
}

}  // namespace ddu::cuda
