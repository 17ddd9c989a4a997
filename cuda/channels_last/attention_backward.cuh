#pragma once

// Every gradient of attention in one kernel, which computes the weights again from the normalizers that the forward kept:
//
//   key ---> sampled . query        --> score --> weight w = e^score / sum of coverage x e^score
//   value -> sampled . grad_output  --> slope --> gradient of the score  ds = w x (slope - coverage x D)
//
//   D = output . grad_output of the head, which is the sum over taps of w x slope
//   ds x sampled key, summed over taps ------------------------------------> gradient of the query
//   ds x query, and w x grad_output, x corner weights ---------------------> gradients of key and value
//       by PixelLists, or where windows are too large for them to sums in L2
//   both x differences of corners, and -w x D x those of the coverage -----> gradient of the map
//
// Without lists, what bounds it is how many bytes L2 adds in a second: twice those of an outer product.

#include "attention.cuh"
#include "heads_backward.cuh"
#include "pixel_lists.cuh"

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
  int batch;  // taps whose additions to a pixel are made one; 0: none
};

/// d(coverage)/d(rate): the same differences of corners that are 1 inside the image.
template <class Acc>
__device__ __forceinline__ Acc coverage_slope(unsigned inside, const SlopeWeights<Acc>& of) {
  if (inside == 15) return 0;
  const int a = inside & 1, b = inside >> 1 & 1, c = inside >> 2 & 1, d = inside >> 3 & 1;
  return of.left * Acc(c - a) + of.right * Acc(d - b) + of.top * Acc(b - a) + of.bottom * Acc(d - c);
}

/// What the lanes of a block share of its positions, in shared memory.
template <int kN>
struct PositionBoard {
  using Values = Vec<float, kN>;
  struct alignas(8) Softmax {
    float normalizer, mean;  // of a head; the latter is D above
  };
  struct alignas(16) Shares {
    float score;   // the gradient of a tap's score, in units of log2: ds
    float weight;  // w
    float moves;   // w x D x what the rate moves of the coverage
    float unused;
  };
  static constexpr int kValues = kRowThreads * kHeadPositions;

  char* shared;

  /// [position of the block, vector]: scaled, in units of log2; and of the output's gradient.
  __device__ Values* queries() const { return reinterpret_cast<Values*>(shared); }
  __device__ Values* grads() const { return queries() + kValues; }
  /// [position of the block, unit of its lanes], as the next.
  __device__ Shares* shares() const { return reinterpret_cast<Shares*>(grads() + kValues); }
  __device__ Softmax* softmax(int log_unit_lanes) const {
    return reinterpret_cast<Softmax*>(shares() + (kValues >> log_unit_lanes));
  }
  static int bytes(int log_unit_lanes) {
    return 2 * kValues * int(sizeof(Values)) + (kValues >> log_unit_lanes) * int(sizeof(Shares) + sizeof(Softmax));
  }

  /// A lane's places: of its position i, and of that one's unit.
  template <class Work>
  __device__ __forceinline__ static int position(const Work& work, int i) {
    return int(threadIdx.x) / 32 * work.run + work.first + i;
  }
  template <class Work>
  __device__ __forceinline__ static int unit(const HeadParams<float>& p, const Work& work, int i) {
    return (position(work, i) << (p.log_lanes - p.log_unit_lanes)) + (work.vector >> p.log_unit_lanes);
  }

  /// Fills in what is the same for all taps.
  template <class T, class Work>
  __device__ void load(const HeadParams<float>& p, float scale, const AttentionBackwardPointers<T>& tensors, const Work& work,
                       std::int64_t normalizers, int positions) const {
    const std::int64_t values = work.values(p);
    ValueSquare<T, kN> square, grad;
    square.load(tensors.output + values, p.values, positions, work.channels);
    grad.load(tensors.grad_output + values, p.values, positions, work.channels);
    float mean[kHeadPositions] = {};
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
#pragma unroll
      for (int c = 0; c < kN; ++c) mean[i] += square.at[i][c] * grad.at[i][c];
    }
    add_in_all_lanes(mean, p.log_unit_lanes);
    square.load(tensors.query + values, p.values, positions, work.channels);
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      Values query, of_output;
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        query.value[c] = square.at[i][c] * scale;
        of_output.value[c] = grad.at[i][c];
      }
      const int at = (position(work, i) << p.log_lanes) + work.vector;
      VecBits<Values>::write(queries()[at], query);
      VecBits<Values>::write(grads()[at], of_output);
      softmax(p.log_unit_lanes)[unit(p, work, i)] = {
          i < positions ? __ldg(tensors.normalizers + normalizers + i) : kInfinite<float>, mean[i]};
    }
    __syncwarp();
  }
};

/// What a lane's channels of a tap give: their dot product with a vector, and what the rate moves of that.
template <class T, int kN, class CornerWeights>
__device__ __forceinline__ void sample(const Corners<T, kN>& corners, const CornerWeights& weights,
                                       const SlopeWeights<accumulator_t<T>>& slope, bool inside, const Vec<float, kN>& with,
                                       accumulator_t<T> (&sampled)[kN], accumulator_t<T>& dot, accumulator_t<T>& moves) {
  using Acc = accumulator_t<T>;
  blend(corners, weights, sampled);
  Acc vector[kN];
  dot = 0;
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    vector[c] = with.value[c];
    dot += vector[c] * sampled[c];
  }
  SlopeSums<Acc> differences;
  differences.template add<T, kN>(corners, vector);
  moves = inside ? differences.slope(slope) : Acc(0);
}

/// What a lane has of its positions while it goes through the taps.
template <class T, int kN>
struct AttentionLane {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, true>;
  using Board = PositionBoard<kN>;
  ValueSquare<T, kN> grad_query, key;  // the first summed over taps, the second sampled at one
  Acc moves[kHeadPositions] = {};      // the map's gradient, summed over taps and the lane's channels
  // Of a tap, over the lane's channels: dot products and what the rate moves of them.
  Acc by_key[kHeadPositions], by_value[kHeadPositions], key_moves[kHeadPositions], value_moves[kHeadPositions];

  /// Samples a tap, whose entries of the table start at `entry`. `keys` and `values` are the lane's first elements of both.
  template <class Work>
  __device__ __forceinline__ void read(const HeadParams<Acc>& p, const Work& work, const Board& board, const Table& table,
                                       int entry, unsigned ours, const T* keys, const T* values) {
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      const typename Table::Where where = ours >> i & 1 ? table.where[entry + i] : 0;
      const auto weights = table.weights[entry + i];
      const SlopeWeights<Acc> slope = table.slopes[entry + i].of;
      const int at = (Board::position(work, i) << p.log_lanes) + work.vector;
      Corners<T, kN> of_key, of_value;
      const auto load = [&](unsigned inside) {
        of_key = Corners<T, kN>::template load<true>(keys + (where >> 8), p.rows.pixel, p.row, inside, kN);
        of_value = Corners<T, kN>::template load<true>(values + (where >> 8), p.rows.pixel, p.row, inside, kN);
      };
      // Most often all corners lie in the image: no load is conditional then, and nothing is set to zero. Half types are no
      // faster for it.
      if (sizeof(T) < 4 || __any_sync(~0u, (where & 15) != 15)) {
        load(unsigned(where) & 15);
      } else {
        load(15);
      }
      Acc value[kN];
      const bool inside = where & 15;
      sample(of_key, weights, slope, inside, VecBits<typename Board::Values>::read(board.queries()[at]), key.at[i], by_key[i],
             key_moves[i]);
      sample(of_value, weights, slope, inside, VecBits<typename Board::Values>::read(board.grads()[at]), value, by_value[i],
             value_moves[i]);
    }
  }
  /// Adds to the gradients of query and map, once all shares of the tap are known. `speaks`: for its unit.
  template <class Work>
  __device__ __forceinline__ void add(const HeadParams<Acc>& p, const Work& work, const Board& board, bool speaks) {
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      const auto shares =
          VecBits<Vec<float, 4>>::read(reinterpret_cast<const Vec<float, 4>&>(board.shares()[Board::unit(p, work, i)]));
      moves[i] += shares.value[0] * key_moves[i] + shares.value[1] * value_moves[i];
      if (speaks) moves[i] -= shares.value[2];
#pragma unroll
      for (int c = 0; c < kN; ++c) grad_query.at[i][c] += shares.value[0] * key.at[i][c];
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

/// Adds a tap's columns of both gradients to sums in L2, one position after the other.
template <class T, int kN, class Scatter, class Work>
__device__ __forceinline__ void scatter_tap(const HeadParams<accumulator_t<T>>& p, const Work& work,
                                            const AttentionBackwardPointers<T>& tensors, const PositionBoard<kN>& board,
                                            const TapTable<accumulator_t<T>, true>& table, int entry, unsigned ours,
                                            char* shared) {
  using Board = PositionBoard<kN>;
  const Scatter to_key(tensors.key_sums, shared, p, work), to_value(tensors.value_sums, shared, p, work);
#pragma unroll 1
  for (int i = 0; i < kHeadPositions; ++i) {
    const long long where = ours >> i & 1 ? table.where[entry + i] : 0;
    const auto weights = table.weights[entry + i];
    const auto shares = board.shares()[Board::unit(p, work, i)];
    const bool strange = !is_finite(shares.score) || !is_finite(shares.weight);
    const auto add = [&](const Scatter& to, float share, const typename Board::Values* of) {
      const auto values = VecBits<typename Board::Values>::read(of[(Board::position(work, i) << p.log_lanes) + work.vector]);
      float grad[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) grad[c] = share * values.value[c];
      to.add(i, where, weights.corner, grad, strange, true);
    };
    if (tensors.key_sums.words) add(to_key, shares.score, board.queries());
    if (tensors.value_sums.words) add(to_value, shares.weight, board.grads());
  }
}

/// kN: channels of a lane, 16 bytes of sums.
template <class T, int kN>
__global__ void __launch_bounds__(kRowThreads, 2)
    attention_backward_kernel(const HeadParams<accumulator_t<T>> p, const ScoreParams<accumulator_t<T>> scores,
                              const AttentionBackwardPointers<T> tensors) {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, true>;
  using Board = PositionBoard<kN>;
  using Scatter = RowScatter<T, FloatingSums<T>, false, kN>;
  extern __shared__ char shared[];
  const HeadWork<T, kN> work(p);
  wait_for_previous();
  if (!work.any && tensors.batch == 0) return;
  const HeadTaps<Acc> taps(p, work, shared, tensors.map);
  const Table& table = taps.table;
  const int positions = taps.positions;
  const bool speaks = (work.vector & ((1 << p.log_unit_lanes) - 1)) == 0;  // for its head, of which all lanes know the same
  const std::int64_t at = work.first_position + work.first, of_head = std::int64_t{work.image} * p.heads + work.head;
  const T *keys = tensors.key + work.pixels(p), *images = tensors.value + work.pixels(p);
  const Board board{shared + kRowWarps * Table::bytes(work.run)};
  board.load(p, scores.scale, tensors, work, of_head * p.positions + at, positions);
  PixelLists<kN> lists(reinterpret_cast<char*>(board.softmax(p.log_unit_lanes) + (Board::kValues >> p.log_unit_lanes)),
                       work.run);
  if (tensors.batch > 0) lists.start(p, work, table.rates);
  AttentionLane<T, kN> lane;
  lane.grad_query.clear();
  BiasOfLane<Acc> bias(scores, work, positions);
  Acc* grad_scores = tensors.grad_scores ? tensors.grad_scores + of_head * p.taps * p.positions + at : nullptr;
  const int at_once = Table::entries(work.run) / work.run, batch = tensors.batch > 0 ? tensors.batch : p.taps;
#pragma unroll 1
  for (int first_tap = 0, tap = 0; tap < p.taps; first_tap = tap) {
    const int end = min(first_tap + batch, p.taps);
    if (tensors.batch > 0) lists.begin(p, first_tap, end - 1);
#pragma unroll 1
    for (; tap < end; ++tap) {
      const int t = (tap - first_tap) & (at_once - 1), entry = t * work.run + work.first;
      if (t == 0) table.fill(p, work, tap, [&](int e, int y, int x) { lists.note(work.run, e, y, x); });
      lane.read(p, work, board, table, entry, taps.ours, keys, images);
      // Each of the unit's lanes goes on with one position, and tells the others.
      add_both_over_lanes(
          lane.by_key, lane.by_value, p.log_unit_lanes, [&](int i, Acc score, Acc slope, int number, int lanes) {
            const unsigned where = taps.there >> i & 1 ? unsigned(table.where[entry + i]) : 0;
            const auto softmax = board.softmax(p.log_unit_lanes)[Board::unit(p, work, i)];
            const Acc coverage = coverage_of(table.weights[entry + i]);
            const Acc weight = coverage == 0 ? Acc(0) : exp2(score + bias.at(i) - softmax.normalizer);
            const Acc grad_score = weight * (slope - coverage * softmax.mean), share = grad_score * Acc(kLn2);
            const Acc moves =
                where & 15 ? weight * softmax.mean * coverage_slope(where & 15, table.slopes[entry + i].of) : Acc(0);
            if (number == 0) {
              board.shares()[Board::unit(p, work, i)] = {share, weight, moves};
              if (grad_scores && i < positions) grad_scores[i] = grad_score;
            }
            if (!lists.any) return;
            const unsigned corners = Scatter::corners_of(where, !is_finite(share) || !is_finite(weight));
            const int index =
                ((tap - first_tap) * (kRowWarps * work.run) << (p.log_lanes - p.log_unit_lanes)) + Board::unit(p, work, i);
#pragma unroll 1
            for (int corner = number; corner < 4; corner += lanes) {
              if (!(corners >> corner & 1)) continue;
              const Acc of_corner = table.weights[entry + i].corner[corner];
              lists.add(p, index, corner, lists.pixels(work.run)[entry + i], work.vector >> p.log_unit_lanes,
                        {share * of_corner, weight * of_corner, Board::position(work, i) << p.log_lanes});
            }
          });
      __syncwarp();
      lane.add(p, work, board, speaks);
      if (!lists.any) scatter_tap<T, kN, Scatter>(p, work, tensors, board, table, entry, taps.ours, shared);
      __syncwarp();
      bias.to_next_tap();
      if (grad_scores) grad_scores += p.positions;
    }
    if (lists.any) lists.add_up(p, work, board.queries(), board.grads(), tensors.key_sums.words, tensors.value_sums.words);
  }
  if (tensors.grad_map) taps.store_map_gradient(p, work, lane.moves, tensors.grad_map, tensors.map_part);
  if (tensors.grad_query)
    lane.store_query(tensors.grad_query + work.values(p), p.values, scores.scale, positions, work.channels);
}

}  // namespace ddu::cuda
