#pragma once

// Attention in one kernel, from channels-last pixels, for any rates. Scores live in registers, for one tap:
//
//   query ----\                            bias, coverage                 largest score, sum of coverage x e^score
//   key ------ dot over the lanes of a head ----------> score of a tap --/
//   value --> sampled --times e^(score - largest)--> sums of the output, scaled down when a larger score comes
//
// (the online softmax of Milakov & Gimelshein 2018). A head lies in one unit, and a unit's channels in the lanes of one
// position, so that every lane of a head has the same score. Scores are in units of log2: 2^x is one instruction.

#include "conversion.cuh"
#include "heads.cuh"

namespace ddu::cuda {

/// How a score follows from a dot product, and where the bias of a score lies.
template <class Acc>
struct ScoreParams {
  Acc scale;
  const Acc* bias;                                              // null for none
  std::int64_t bias_image, bias_head, bias_tap, bias_position;  // elements from one to the next; 0 where one serves all
};

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

template <class Acc>
constexpr Acc kInfinite = std::numeric_limits<Acc>::infinity();

/// A lane's biases, of its positions, in units of log2.
template <class Acc>
struct BiasOfLane {
  const Acc* of_tap;
  std::int64_t tap, position;
  int there;

  template <class Work>
  __device__ __forceinline__ BiasOfLane(const ScoreParams<Acc>& scores, const Work& work, int there)
      : of_tap(scores.bias), tap(scores.bias_tap), position(scores.bias_position), there(there) {
    if (of_tap) {
      of_tap += work.image * scores.bias_image + work.head * scores.bias_head + (work.first_position + work.first) * position;
    }
  }
  __device__ __forceinline__ Acc at(int i) const {
    return of_tap && i < there ? Acc(kLog2E) * __ldg(of_tap + i * position) : Acc(0);
  }
  __device__ __forceinline__ void to_next_tap() {
    if (of_tap) of_tap += tap;
  }
};

/// Adds up each position's sum over the lanes of a unit, in all of them.
template <class Acc, int kCount>
__device__ __forceinline__ void add_in_all_lanes(Acc (&sum)[kCount], int log_lanes) {
  for (int step = 1; step < 1 << log_lanes; step *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] += __shfl_xor_sync(~0u, sum[i], step);
  }
}

/// The share of a tap that lies on pixels.
template <class CornerWeights>
__device__ __forceinline__ auto coverage_of(const CornerWeights& weights) {
  return weights.corner[0] + weights.corner[1] + weights.corner[2] + weights.corner[3];
}

/// What a lane has summed over taps: values and coverages, times e^(score - largest score so far).
template <class T, int kN>
struct OnlineSoftmax {
  using Acc = accumulator_t<T>;
  ValueSquare<T, kN> sum;
  Acc largest[kHeadPositions], total[kHeadPositions];

  __device__ __forceinline__ void clear() {
    sum.clear();
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      largest[i] = -kInfinite<Acc>;
      total[i] = 0;
    }
  }
  /// Takes note of a tap's scores, where it meets a pixel. What was summed is scaled down where one is larger than those
  /// before: a branch, as the more taps have been, the fewer are.
  __device__ __forceinline__ void look_at(const Acc (&score)[kHeadPositions], const Acc (&coverage)[kHeadPositions]) {
    Acc now[kHeadPositions];
    bool larger = false;
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      now[i] = coverage[i] == 0 ? largest[i] : max(largest[i], score[i]);
      larger = larger || now[i] != largest[i];
    }
    if (!larger) return;
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      const Acc down = largest[i] == now[i] ? Acc(1) : exp2(largest[i] - now[i]);
      largest[i] = now[i];
      total[i] *= down;
#pragma unroll
      for (int c = 0; c < kN; ++c) sum.at[i][c] *= down;
    }
  }
  /// Adds a tap at position i. One that meets no pixel weighs nothing, but may be NaN.
  __device__ __forceinline__ void add(int i, Acc score, Acc coverage, const Acc (&sampled)[kN]) {
    const Acc weight = coverage == 0 ? Acc(0) : score == largest[i] ? Acc(1) : exp2(score - largest[i]);
    total[i] += coverage * weight;
#pragma unroll
    for (int c = 0; c < kN; ++c) sum.at[i][c] += weight * sampled[c];
  }
  /// Divides the sums at position i by their weights, which makes them the output, and returns the normalizer. 0 where no tap
  /// meets the image; NaN where the largest score is not finite, as a softmax has it.
  __device__ __forceinline__ Acc normalize(int i) {
    const bool nowhere = total[i] == 0;
    const Acc share = nowhere ? Acc(0) : 1 / total[i] + nan_unless_finite(largest[i]);
#pragma unroll
    for (int c = 0; c < kN; ++c) sum.at[i][c] *= share;
    return nowhere ? kInfinite<Acc> : log2(total[i]) + largest[i] + nan_unless_finite(largest[i]);
  }
};

template <class T>
struct AttentionPointers {
  using Acc = accumulator_t<T>;
  const T *query, *key, *value;  // the latter two channels-last
  const void* map;
  T* output;
  Acc* normalizers;  // log2 of the sum of coverage x e^score; may be null
  StrangePixels strange_keys, strange_values;
};

/// kN: channels of a lane, 16 bytes of them.
template <class T, int kN>
__global__ void __launch_bounds__(kRowThreads, 2)
    attention_kernel(const HeadParams<accumulator_t<T>> p, const ScoreParams<accumulator_t<T>> scores,
                     const AttentionPointers<T> tensors) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, false>;
  extern __shared__ char shared[];
  const HeadWork<T, kN> work(p);
  wait_for_previous();
  const int shift =
      min(tensors.strange_keys.corner_shift_of_block(work.image), tensors.strange_values.corner_shift_of_block(work.image));
  if (!work.any) return;
  const Table table(shared, work.run);
  table.load_rates(p, work, tensors.map);
  const int positions = work.any_unit ? work.there : 0;
  const unsigned mine = work.channels > 0 ? 15 : 0;
  const std::int64_t pixels = work.pixels(p);
  ValueSquare<T, kN> query;
  query.load(tensors.query + work.values(p), p.values, positions, work.channels);
#pragma unroll
  for (int i = 0; i < kHeadPositions; ++i) {
#pragma unroll
    for (int c = 0; c < kN; ++c) query.at[i][c] *= scores.scale;
  }
  BiasOfLane<Acc> bias(scores, work, positions);
  OnlineSoftmax<T, kN> sums;
  sums.clear();
  const int at_once = Table::entries(work.run) / work.run;
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap) {
    const int t = tap & (at_once - 1);
    if (t == 0) table.fill(p, work, tap);
    const int first = t * work.run + work.first;
    const auto read = [&](const T* image, int i, Acc(&sampled)[kN]) {
      const typename Table::Where where = table.where[first + i];
      const auto corners = Corners<T, kN>::template load<true>(image + pixels + (where >> 8), p.rows.pixel, p.row,
                                                               (unsigned(where) >> shift) & mine, work.channels);
      blend(corners, table.weights[first + i], sampled);
    };
    Acc score[kHeadPositions], coverage[kHeadPositions];
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      Acc sampled[kN];
      read(tensors.key, i, sampled);
      score[i] = 0;
#pragma unroll
      for (int c = 0; c < kN; ++c) score[i] += query.at[i][c] * sampled[c];
    }
    add_in_all_lanes(score, p.log_unit_lanes);
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      score[i] += bias.at(i);
      coverage[i] = coverage_of(table.weights[first + i]);
    }
    bias.to_next_tap();
    sums.look_at(score, coverage);
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      Acc sampled[kN];
      read(tensors.value, i, sampled);
      sums.add(i, score[i], coverage_of(table.weights[first + i]), sampled);
    }
  }
  const bool speaks = (work.vector & ((1 << p.log_unit_lanes) - 1)) == 0;  // for its head, of which all lanes know the same
  const std::int64_t to = (std::int64_t{work.image} * p.heads + work.head) * p.positions + work.first_position + work.first;
#pragma unroll
  for (int i = 0; i < kHeadPositions; ++i) {
    const Acc normalizer = sums.normalize(i);
    if (tensors.normalizers && speaks && i < positions) tensors.normalizers[to + i] = normalizer;
  }
  sums.sum.store(tensors.output + work.values(p), p.values, positions, work.channels);
}

}  // namespace ddu::cuda
