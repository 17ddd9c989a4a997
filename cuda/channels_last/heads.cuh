#pragma once

// How the kernels without columns divide a call. Channels belong to groups, which share rates, and to heads, which share
// factors (weights of aggregate, scores of correlate); a *unit* is a run of channels that lies in one group and in one head:
//
//   channels | c0 c1 c2 c3 | c4 c5 c6 c7 | c8 c9 …            unit = gcd(channels of a group, channels of a head)
//   lanes    |   lane 0    |   lane 1    | lane 2             a vector of channels each; no vector spans two units
//   units    |      unit 0               |    unit 1          2^log_unit_lanes lanes each, some of which may have nothing
//   position |                  2^log_lanes lanes             several units of one group, if they have so few channels
//
// A warp takes a run of consecutive positions, kHeadPositions of them a lane, and goes through all taps. A lane keeps what it
// sums over taps in registers; what is summed over the channels of a head is added up by the lanes of a unit.

#include "gather.cuh"

namespace ddu::cuda {

/// Consecutive positions of a lane that takes up to 16 bytes of channels.
constexpr int kHeadPositions = 4;

/// A lane's channels come in pieces of at most 16 bytes, one load each; lanes with two pieces have half as many positions.
template <class T, int kChannels>
constexpr int kPieces = kChannels > kVec<T> ? 2 : 1;
template <class T, int kChannels>
constexpr int kLanePositions = kHeadPositions / kPieces<T, kChannels>;

/// Where a lane's channel `c` lies behind its first one. Of eight lanes, which read together, four take their second piece
/// first: else all of them would ask half of L1's banks twice.
template <class T, int kChannels>
__device__ __forceinline__ int lane_channel(int c) {
  if constexpr (kPieces<T, kChannels> == 1) return c;
  return c ^ (threadIdx.x & 4 ? kVec<T> : 0);
}

/// How many of them a lane takes at once. One channel a lane is for layouts that have no vectors: there, code counts for more
/// than speed.
template <int kChannels>
constexpr int kPositionsAtOnce = kChannels > 1 ? kHeadPositions : 1;

/// How the elements of [batch, channels, output height, output width] lie: aggregate's output, correlate's query.
struct ValueLayout {
  std::int64_t image, channel, position;   // elements from one to the next
  bool channel_vectors, position_vectors;  // whether a lane's channels, or its positions, can be moved at once
};

template <class Acc>
struct HeadParams : RowParams<Acc> {
  int heads;
  bool shared_factors;              // one array of factors for all images
  bool factor_vectors;              // whether a lane's positions of the factors can be moved at once
  int units, head_units;            // of a group, and of a head
  int unit_channels, unit_stride;   // channels, and elements from one unit's pixel to that of the next
  int log_unit_lanes, unit_slices;  // lanes of a unit, and how many times them its channels take
  std::int64_t row;                 // elements from one pixel to the one below
  Divider by_unit_slices, by_units, by_head_units;
  int rounds;  // a warp that sums over a head's channels: slices of channels one after the other; else 0
  ValueLayout values;
};

/// What one warp does. A lane takes kLanePositions positions and kChannels channels.
template <class T, int kChannels>
struct HeadWork : WarpWork<T, kChannels> {
  using Base = WarpWork<T, kChannels>;
  int first;              // this lane's first position within the run
  int there;              // how many positions it has; none if not positive
  int unit, head;         // of all units and heads of an image
  int head_part;          // which of the parts of its head's channels this is: units, and slices of them
  bool any_unit;          // whether there is such a unit
  std::int64_t pixel_of;  // this lane's first channel within a pixel, in elements

  template <class Acc>
  __device__ explicit HeadWork(const HeadParams<Acc>& p) : Base(p) {
    constexpr int kPositions = kLanePositions<T, kChannels>;
    first = this->quad * kPositions;
    there = int(min(p.positions - this->first_position - first, std::int64_t{kPositions}));
    auto slice = unsigned(p.rounds > 0 ? 0 : this->slice);
    const int unit_block = p.rounds > 0 ? this->slice : int(p.by_unit_slices.take(slice));
    const int slot = this->vector >> p.log_unit_lanes, slots = p.log_lanes - p.log_unit_lanes;
    // Where a head has units in several groups, blocks are counted by heads instead of groups.
    const bool by_heads = p.rounds > 0 && p.head_units > 1;
    const int within = (unit_block << slots) + slot;
    any_unit = by_heads || within < p.units;
    select(p, this->group * (by_heads ? p.head_units : p.units) + within, int(slice));
  }
  /// Turns to a slice of channels of a unit.
  template <class Acc>
  __device__ void select(const HeadParams<Acc>& p, int of_unit, int slice) {
    unit = of_unit;
    auto of_head = unsigned(unit), of_group = unsigned(unit);
    head = int(p.by_head_units.take(of_head));
    const int its_group = int(p.by_units.take(of_group));
    if (any_unit) this->group = its_group;
    head_part = int(of_head) * p.unit_slices + slice;
    const int lane = this->vector & ((1 << p.log_unit_lanes) - 1);
    const int within = ((slice << p.log_unit_lanes) + lane) * kChannels;
    this->channels = any_unit ? max(min(p.unit_channels - within, kChannels), 0) : 0;
    this->channel = int(of_group) * p.unit_channels + within;
    pixel_of = std::int64_t{unit} * p.unit_stride + within;
  }
  /// Of a warp that goes through all channels of a head: turns to a part of them. Returns whether it has another group.
  template <class Acc>
  __device__ bool to_round(const HeadParams<Acc>& p, int round) {
    const int before = this->group;
    auto slice = unsigned(round);
    const int more = int(p.by_unit_slices.take(slice));
    select(p, p.head_units > 1 ? head * p.head_units + more : unit, int(slice));
    return this->group != before;
  }
  /// This lane's first channel in the image.
  template <class Acc>
  __device__ std::int64_t pixels(const HeadParams<Acc>& p) const {
    return this->image * p.rows.image + pixel_of;
  }
  /// This lane's first position of the first tap of its head's factors. `shared`: one array for all images.
  template <class Acc>
  __device__ std::int64_t factors(const HeadParams<Acc>& p, bool shared) const {
    return (std::int64_t{shared ? 0 : this->image} * p.heads + head) * p.taps * p.positions + this->first_position + first;
  }
  /// This lane's first value.
  template <class Acc>
  __device__ std::int64_t values(const HeadParams<Acc>& p) const {
    return this->image * p.values.image + (std::int64_t{this->group} * p.group_channels + this->channel) * p.values.channel +
           (this->first_position + first) * p.values.position;
  }
};

/// Keeps a flag that is the same all through a loop from being asked once, before one of several copies of the loop.
__device__ __forceinline__ void ask_in_loop([[maybe_unused]] unsigned& flags) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(flags));
#endif
}

/// Loads kN elements that lie at a multiple of their bytes, or of 16.
template <class T, int kN>
__device__ __forceinline__ void load_vector(const T* from, accumulator_t<T> (&to)[kN]) {
  constexpr int kPiece = kN * int(sizeof(T)) > 16 ? 16 / int(sizeof(T)) : kN;
#pragma unroll
  for (int i = 0; i < kN; i += kPiece) {
    const Vec<T, kPiece> piece = VecBits<Vec<T, kPiece>>::load(from + i).vec;
#pragma unroll
    for (int j = 0; j < kPiece; ++j) to[i + j] = widen(piece.value[j]);
  }
}
template <class T, int kN>
__device__ __forceinline__ void store_vector(T* to, const accumulator_t<T> (&from)[kN]) {
  constexpr int kPiece = kN * int(sizeof(T)) > 16 ? 16 / int(sizeof(T)) : kN;
#pragma unroll
  for (int i = 0; i < kN; i += kPiece) {
    Vec<T, kPiece> piece;
#pragma unroll
    for (int j = 0; j < kPiece; ++j) piece.value[j] = narrow<T>(from[i + j]);
    VecBits<Vec<T, kPiece>>::write(*reinterpret_cast<Vec<T, kPiece>*>(to + i), piece);
  }
}

/// A tap's factors of this lane's positions, zero where there are none.
template <class T>
__device__ __forceinline__ void load_factors(const T* from, bool vectors, int there,
                                             accumulator_t<T> (&factor)[kHeadPositions]) {
#pragma unroll
  for (int i = 0; i < kHeadPositions; ++i) factor[i] = 0;
  if (vectors) {
    if (there > 0) load_vector(from, factor);
  } else {
#pragma unroll
    for (int i = 0; i < kHeadPositions; ++i) {
      if (i < there) factor[i] = widen(__ldg(from + i));
    }
  }
}

/// A lane's square of values, kLanePositions positions by kN channels, zero where there are none.
template <class T, int kN>
struct ValueSquare {
  using Acc = accumulator_t<T>;
  static constexpr int kPositions = kLanePositions<T, kN>, kPiece = kN / kPieces<T, kN>;
  Acc at[kPositions][kN];  // position, channel

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
#pragma unroll
      for (int c = 0; c < kN; ++c) at[i][c] = 0;
    }
  }
  /// Moves positions `kBy` places down, and the first ones to the end.
  template <int kBy>
  __device__ __forceinline__ void rotate_positions() {
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      Acc column[kPositions];
#pragma unroll
      for (int i = 0; i < kPositions; ++i) column[i] = at[i][c];
      rotate<kBy>(column);
#pragma unroll
      for (int i = 0; i < kPositions; ++i) at[i][c] = column[i];
    }
  }
  __device__ __forceinline__ void load(const T* from, const ValueLayout& layout, int positions, int channels) {
    clear();
    if (kN > 1 && layout.channel_vectors) {
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        if (i >= positions || channels <= 0) continue;
#pragma unroll
        for (int c = 0; c < kN; c += kPiece) {
          load_vector(from + i * layout.position + lane_channel<T, kN>(c), reinterpret_cast<Acc(&)[kPiece]>(at[i][c]));
        }
      }
    } else {
      each_channel(channels, [&](int c) {
        Acc column[kPositions] = {};
        if (layout.position_vectors) {
          if (positions > 0) load_vector(from + lane_channel<T, kN>(c) * layout.channel, column);
        } else {
#pragma unroll
          for (int i = 0; i < kPositions; ++i) {
            if (i < positions) column[i] = widen(__ldg(from + lane_channel<T, kN>(c) * layout.channel + i * layout.position));
          }
        }
#pragma unroll
        for (int i = 0; i < kPositions; ++i) at[i][0] = column[i];
      });
    }
  }
  __device__ __forceinline__ void store(T* to, const ValueLayout& layout, int positions, int channels) {
    static_assert(kPiece == kN, "nobody stores two pieces");
    if (kN > 1 && layout.channel_vectors) {
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        if (i < positions && channels > 0) store_vector(to + i * layout.position, at[i]);
      }
    } else {
      each_channel(channels, [&](int c) {
        Acc column[kPositions];
#pragma unroll
        for (int i = 0; i < kPositions; ++i) column[i] = at[i][0];
        if (layout.position_vectors) {
          if (positions > 0) store_vector(to + c * layout.channel, column);
        } else {
#pragma unroll
          for (int i = 0; i < kPositions; ++i) {
            if (i < positions) to[c * layout.channel + i * layout.position] = narrow<T>(column[i]);
          }
        }
      });
    }
  }

 private:
  /// Calls body(channel) for each; that channel's elements are then in at[…][0]. Done once a warp, so it is not unrolled.
  template <class Body>
  __device__ __forceinline__ void each_channel(int channels, Body body) {
#pragma unroll 1
    for (int c = 0; c < kN; ++c) {
      if (c < channels) body(c);
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        if constexpr (kN > 1) rotate<1>(at[i]);
      }
    }
  }
};

/// Of 2 * kKeep sums, this lane keeps the first or, the `upper` one, the second half, and adds what the lane beside it, `step`
/// from it, has of those.
template <int kKeep, class Acc, int kCount>
__device__ __forceinline__ void keep_half(Acc (&sum)[kCount], bool upper, int step) {
#pragma unroll
  for (int i = 0; i < kKeep; ++i) {
    const Acc mine = upper ? sum[kKeep + i] : sum[i], other = upper ? sum[i] : sum[kKeep + i];
    sum[i] = mine + __shfl_xor_sync(~0u, other, step);
  }
}

/// Adds up each position's sum over the 2^log_lanes lanes of a unit, in an order that does not depend on the lane, and calls
/// store(position, sum) in one of them for each position. As there are positions to share out, a lane passes on half of them at
/// each of the first steps, and then keeps one: three exchanges for four positions and four lanes, not eight.
template <class Acc, class Store>
__device__ __forceinline__ void add_over_lanes(Acc (&sum)[kHeadPositions], int log_lanes, Store store) {
  static_assert(kHeadPositions == 4, "two halvings");
  const int lane = int(threadIdx.x) & ((1 << log_lanes) - 1);
  const bool upper = lane & 1, odd = lane & 2;
  if (log_lanes > 0) keep_half<2>(sum, upper, 1);
  if (log_lanes > 1) {  // most often: a lane has one position, and no loop around its store
    keep_half<1>(sum, odd, 2);
    for (int step = 4; step < 1 << log_lanes; step *= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], step);
    if (lane < 4) store(2 * upper + odd, sum[0]);
    return;
  }
  const int first = log_lanes > 0 ? 2 * upper : 0, count = log_lanes > 0 ? 2 : 4;  // this lane's positions
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    store(first + i, sum[0]);
    rotate<1>(sum);
  }
}

/// The same of a lane that has two positions.
template <class Acc, class Store>
__device__ __forceinline__ void add_over_lanes(Acc (&sum)[2], int log_lanes, Store store) {
  const int lane = int(threadIdx.x) & ((1 << log_lanes) - 1);
  if (log_lanes == 0) {
    store(0, sum[0]);
    store(1, sum[1]);
    return;
  }
  keep_half<1>(sum, lane & 1, 1);
  for (int step = 2; step < 1 << log_lanes; step *= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], step);
  if (lane < 2) store(lane, sum[0]);
}

/// The same of two sums of each position. Calls visit(position, a, b, number, lanes) in as many `lanes` as share a position's
/// sums, in each with its number.
template <class Acc, class Visit>
__device__ __forceinline__ void add_both_over_lanes(Acc (&a)[kHeadPositions], Acc (&b)[kHeadPositions], int log_lanes,
                                                    Visit visit) {
  const int lane = int(threadIdx.x) & ((1 << log_lanes) - 1);
  const bool upper = lane & 1, odd = lane & 2;
  if (log_lanes > 0) {
    keep_half<2>(a, upper, 1);
    keep_half<2>(b, upper, 1);
  }
  if (log_lanes > 1) {
    keep_half<1>(a, odd, 2);
    keep_half<1>(b, odd, 2);
    for (int step = 4; step < 1 << log_lanes; step *= 2) {
      a[0] += __shfl_xor_sync(~0u, a[0], step);
      b[0] += __shfl_xor_sync(~0u, b[0], step);
    }
  }
  const int first = 2 * upper + odd, count = kHeadPositions >> min(log_lanes, 2);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    visit(first + i, a[0], b[0], lane >> 2, max(1, 1 << log_lanes >> 2));
    rotate<1>(a);
    rotate<1>(b);
  }
}

/// The value of a tap at each channel, from its corners.
template <class T, int kN, class CornerWeights>
__device__ __forceinline__ void blend(const Corners<T, kN>& corners, const CornerWeights& weights,
                                      accumulator_t<T> (&value)[kN]) {
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    value[c] = weights.corner[0] * corners.a.get(c) + weights.corner[1] * corners.b.get(c) +
               weights.corner[2] * corners.c.get(c) + weights.corner[3] * corners.d.get(c);
  }
}

}  // namespace ddu::cuda
