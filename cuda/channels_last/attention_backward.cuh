#pragma once

// Every gradient of attention in one kernel, which computes the weights again from the normalizers that the forward kept:
//
//   key ---> sampled . query        --> score --> weight w = e^score / sum of coverage x e^score
//   value -> sampled . grad_output  --> slope --> gradient of the score  ds = w x (slope - coverage x D)
//
//   D = output . grad_output of the head, which is the sum over taps of w x slope
//   ds x sampled key, summed over taps ------------------------------------> gradient of the query
//   ds x query, and w x grad_output, x corner weights, to sums in L2 ------> gradients of key and value
//   both x differences of corners, and -w x D x those of the coverage -----> gradient of the map
//
// What bounds it is how many bytes L2 adds in a second: twice those of an outer product.

#include "attention.cuh"
#include "columns_backward.cuh"
#include "shared_gradient.cuh"

namespace ddu::cuda {

template <class T>
struct AttentionBackwardPointers {
  using Acc = accumulator_t<T>;
  const T *query, *key, *value, *output, *grad_output;  // key and value channels-last
  const void* map;
  const Acc* normalizers;
  FloatingSums<T> key_sums, value_sums;  // no words if not wanted
  T* grad_query;                         // null if not wanted, as the next two
  Acc* grad_scores;
  Acc* grad_map;  // sums, in as many arrays as warps meet, or where map_part is 0 added to
  std::int64_t map_part;
};

/// d(coverage)/d(rate): the same differences of corners that are 1 inside the image.
template <class Acc>
__device__ __forceinline__ Acc coverage_slope(unsigned inside, const SlopeWeights<Acc>& of) {
  if (inside == 15) return 0;
  const int a = inside & 1, b = inside >> 1 & 1, c = inside >> 2 & 1, d = inside >> 3 & 1;
  return of.left * Acc(c - a) + of.right * Acc(d - b) + of.top * Acc(b - a) + of.bottom * Acc(d - c);
}

/// What a lane's channels of a tap give: their dot product with a vector, and what the rate moves of that.
template <class Acc>
struct AttentionSample {
  Acc dot, moves;
};

/// Reads a tap, an entry of the table, of an image; `sampled` gets its values.
template <class T, int kN, class CornerWeights>
__device__ __forceinline__ AttentionSample<accumulator_t<T>> sample(
    const T* image, long long where, const HeadParams<accumulator_t<T>>& p, const CornerWeights& weights,
    const SlopeWeights<accumulator_t<T>>& slope, const accumulator_t<T> (&with)[kN], accumulator_t<T> (&sampled)[kN]) {
  using Acc = accumulator_t<T>;
  const auto corners = Corners<T, kN>::template load<true>(image + (where >> 8), p.rows.pixel, p.row, unsigned(where) & 15, kN);
  blend(corners, weights, sampled);
  Acc dot = 0;
#pragma unroll
  for (int c = 0; c < kN; ++c) dot += with[c] * sampled[c];
  SlopeSums<Acc> differences;
  differences.template add<T, kN>(corners, with);
  return {dot, where & 15 ? differences.slope(slope) : Acc(0)};
}

/// What a lane has of its positions while it goes through the taps.
template <class T, int kN>
struct AttentionLane {
  using Acc = accumulator_t<T>;
  ValueSquare<T, kN> query, grad, grad_query;            // the first in units of log2 and scaled, the last summed over taps
  Acc normalizer[kHeadPositions], mean[kHeadPositions];  // of the head; the latter is D above
  Acc moves[kHeadPositions] = {};                        // the map's gradient, summed over taps and the lane's channels

  /// `values` and `normalizers` are offsets of the lane's first elements.
  __device__ __forceinline__ void load(const HeadParams<Acc>& p, Acc scale, const AttentionBackwardPointers<T>& tensors,
                                       std::int64_t values, std::int64_t normalizers, int positions, int channels) {
    query.load(tensors.output + values, p.values, positions, channels);  // which is needed once
    grad.load(tensors.grad_output + values, p.values, positions, channels);
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      mean[i] = 0;
#pragma unroll
      for (int c = 0; c < kN; ++c) mean[i] += query.at[i][c] * grad.at[i][c];
    }
    add_in_all_lanes(mean, p.log_unit_lanes);
    query.load(tensors.query + values, p.values, positions, channels);
    grad_query.clear();
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      normalizer[i] = i < positions ? __ldg(tensors.normalizers + normalizers + i) : kInfinite<Acc>;
#pragma unroll
      for (int c = 0; c < kN; ++c) query.at[i][c] *= scale;
    }
  }
  /// Position i of a tap whose score has a gradient of `factor`, in units of log2. The columns' gradients are returned in
  /// of_key and of_value.
  __device__ __forceinline__ void spread(int i, Acc factor, Acc weight, const Acc (&key)[kN], Acc (&of_key)[kN],
                                         Acc (&of_value)[kN]) {
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      grad_query.at[i][c] += factor * key[c];
      of_key[c] = factor * query.at[i][c];
      of_value[c] = weight * grad.at[i][c];
    }
  }
  __device__ __forceinline__ void store_query(T* to, const ValueLayout& layout, Acc scale, int positions, int channels) {
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
#pragma unroll
      for (int c = 0; c < kN; ++c) grad_query.at[i][c] *= scale;
    }
    grad_query.store(to, layout, positions, channels);
  }
};

/// Whether some of a column's gradient is not finite.
template <class Acc, int kN>
__device__ __forceinline__ bool is_strange(const Acc (&grad)[kN]) {
  Acc check = 0;
#pragma unroll
  for (int c = 0; c < kN; ++c) check += grad[c] * 0;
  return check != 0;
}

/// kN: channels of a lane, 16 bytes of sums.
template <class T, int kN>
__global__ void __launch_bounds__(kRowThreads, 2)
    attention_backward_kernel(const HeadParams<accumulator_t<T>> p, const ScoreParams<accumulator_t<T>> scores,
                              const AttentionBackwardPointers<T> tensors) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, true>;
  constexpr unsigned kKey = 1, kValue = 2;
  extern __shared__ char shared[];
  const HeadWork<T, kN> work(p);
  wait_for_previous();
  if (!work.any) return;
  const Table table(shared, work.run);
  table.load_rates(p, work, tensors.map);
  const int positions = work.any_unit ? work.there : 0;
  const auto ours = unsigned(work.channels > 0 ? (1 << max(min(positions, kHeadPositions), 0)) - 1 : 0);
  const bool speaks = (work.vector & ((1 << p.log_unit_lanes) - 1)) == 0;  // for its head, of which all lanes know the same
  const std::int64_t values = work.values(p), at = work.first_position + work.first;
  const std::int64_t of_head = std::int64_t{work.image} * p.heads + work.head;
  const T *keys = tensors.key + work.pixels(p), *images = tensors.value + work.pixels(p);
  AttentionLane<T, kN> lane;
  lane.load(p, scores.scale, tensors, values, of_head * p.positions + at, positions, work.channels);
  BiasOfLane<Acc> bias(scores, work, positions);
  const RowScatter<T, FloatingSums<T>, false, kN> to_key(tensors.key_sums, shared, p, work),
      to_value(tensors.value_sums, shared, p, work);
  unsigned wanted = (tensors.key_sums.words ? kKey : 0) | (tensors.value_sums.words ? kValue : 0);
  Acc* grad_scores = tensors.grad_scores ? tensors.grad_scores + of_head * p.taps * p.positions + at : nullptr;
  const int at_once = Table::entries(work.run) / work.run;
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap) {
    const int t = tap & (at_once - 1);
    if (t == 0) table.fill(p, work, tap);
    // One position after the other: two at once had the sums of both in flight, but registers spilt.
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      ask_in_loop(wanted);
      const int entry = t * work.run + work.first + i;
      const typename Table::Where where = ours >> i & 1 ? table.where[entry] : 0;
      const auto weights = table.weights[entry];
      const SlopeWeights<Acc> slope = table.slopes[entry].of;
      Acc key[kN], of_key[kN], of_value[kN];
      const AttentionSample<Acc> by_key(sample(keys, where, p, weights, slope, lane.query.at[i], key)),
          by_value(sample(images, where, p, weights, slope, lane.grad.at[i], of_value));
      Acc sums[2] = {by_key.dot, by_value.dot};
      add_in_all_lanes(sums, p.log_unit_lanes);
      const Acc coverage = coverage_of(weights);
      const Acc weight = coverage == 0 ? Acc(0) : exp2(sums[0] + bias.at(i) - lane.normalizer[i]);
      const Acc grad_score = weight * (sums[1] - coverage * lane.mean[i]), factor = grad_score * Acc(kLn2);
      if (grad_scores && speaks && i < positions) grad_scores[i] = grad_score;
      lane.moves[i] += factor * by_key.moves + weight * by_value.moves;
      if (speaks && where & 15) lane.moves[i] -= weight * lane.mean[i] * coverage_slope(unsigned(where) & 15, slope);
      lane.spread(i, factor, weight, key, of_key, of_value);
      if (wanted & kKey) to_key.add(i, where, weights.corner, of_key, is_strange(of_key), true);
      if (wanted & kValue) to_value.add(i, where, weights.corner, of_value, is_strange(of_value), true);
    }
    bias.to_next_tap();
    if (grad_scores) grad_scores += p.positions;
  }
  if (tensors.grad_map) {
    const std::int64_t map_part = (p.shared_map ? work.image : 0) * p.slices + work.slice;
    add_over_lanes(lane.moves, p.log_lanes, [&](int i, Acc sum) {
      if (i >= work.there) return;
      sum += nan_unless_finite(table.rates[work.first + i]);
      store_sum<Acc>(tensors.grad_map, nullptr, map_part, tensors.map_part, work.map_plane(p) * p.positions + at + i, sum);
    });
  }
  if (tensors.grad_query) {
    lane.store_query(tensors.grad_query + values, p.values, scores.scale, positions, work.channels);
  }
}

}  // namespace ddu::cuda
