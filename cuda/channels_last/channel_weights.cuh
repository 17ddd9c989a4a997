#pragma once

// What a depthwise convolution has beside the sums of heads.cuh: a weight of each channel and tap, the same at all positions,
// and its gradient. Both are in shared memory for a chunk of taps, in the order in which lanes have channels.
//
//   weight [channel][tap] --------------> [tap][vector] ---------> a lane's channels of a tap
//
//   value * factor * sampled, summed over a lane's positions and, by shuffles, over the lanes of other positions
//                                    ---> [tap][warp][vector] ---> after the chunk, added up over the warps: the block's sums
//   sums [block][tap][channel] ---------> sum_blocks_kernel -----> gradient [channel][tap]
//
// Every sum has its terms in one order, whatever runs when: the gradient is the same to the bit from run to run.

#include "../core/dependent_launch.cuh"
#include "heads.cuh"

namespace ddu::cuda {

/// Taps of a launch, all but `last`.
struct TapRange {
  int first, last;
};

/// Operators whose channels have no weights.
struct NoChannelWeights {
  static constexpr bool kAny = false;

  template <class Acc>
  __device__ __forceinline__ TapRange range(const HeadParams<Acc>& p) const {
    return {0, p.taps};
  }

  template <int kN>
  struct OfBlock {
    template <class Acc>
    __device__ __forceinline__ OfBlock(const HeadParams<Acc>&, const NoChannelWeights&, char*) {}
  };
};

template <class T, int kN, class Given>
class BlockWeights;

/// Of the forward, one output of each channel of a depthwise convolution: pointers are those of the first channel's.
template <class T>
struct ChannelWeights {
  static constexpr bool kAny = true;
  template <int kN>
  using OfBlock = BlockWeights<T, kN, ChannelWeights>;

  const T* weight;  // [channels, outputs, taps]
  const T* bias;    // [channels, outputs]; null for zeros
  int outputs;      // of a channel
  int chunk;        // taps that are in shared memory at once

  template <class Acc>
  __device__ __forceinline__ TapRange range(const HeadParams<Acc>& p) const {
    return {0, p.taps};
  }
};

/// Of the backward, the same for some of the taps.
template <class T>
struct SomeChannelWeights {
  static constexpr bool kAny = true;
  template <int kN>
  using OfBlock = BlockWeights<T, kN, SomeChannelWeights>;

  const T* weight;
  accumulator_t<T>* sums;  // of the weight's gradient, of each block; null if not wanted
  int outputs;
  TapRange taps;
  int chunk;

  template <class Acc>
  __device__ __forceinline__ TapRange range(const HeadParams<Acc>&) const {
    return taps;
  }
};

/// Settles the chunk of so many taps, for lanes of kN channels, with sums of their weights' gradient or without; returns the
/// bytes of shared memory.
template <int kN, class Acc, class Given>
std::size_t plan_chunk(const HeadParams<Acc>& p, std::int64_t taps, bool has_sums, Given& weights) {
  constexpr int kBytes = 24 * 1024;  // what two blocks on a multiprocessor leave to its cache
  const int arrays = has_sums ? 1 + kRowWarps : 1, of_tap = int(sizeof(Acc)) * arrays * (kN << p.log_lanes);
  const int count = static_cast<int>(taps), chunks = (count - 1) / (kBytes / of_tap) + 1;
  weights.chunk = (count - 1) / chunks + 1;
  return static_cast<std::size_t>(weights.chunk * of_tap);
}

/// Of the weights and their gradient what a block has in shared memory. All of its warps take part, also those that have no
/// positions.
template <class T, int kN, class Given>
class BlockWeights {
 public:
  using Acc = accumulator_t<T>;

  __device__ __forceinline__ BlockWeights(const HeadParams<Acc>& p, const Given& of, char* shared)
      : of_(of),
        weights_(reinterpret_cast<Acc*>(shared)),
        sums_(weights_ + ((of.chunk * kN) << p.log_lanes)),
        next_chunk_(of.range(p).first) {}

  /// Reads this lane's weights of a tap. Taps come in their order, and the first of a chunk brings all of it to shared memory.
  template <class Work>
  __device__ __forceinline__ void load(const HeadParams<Acc>& p, const Work& work, int tap, Acc (&weight)[kN]) {
    if (tap == next_chunk_) fill(p, work, tap);
    read(of_tap_, weight);
    of_tap_ += kN << p.log_lanes;
  }
  /// Sets sums to the bias of this lane's channels.
  template <class Work>
  __device__ __forceinline__ void fill_with_bias(const HeadParams<Acc>& p, const Work& work, ValueSquare<T, kN>& sum) const {
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      const bool there = of_.bias && c < work.channels;
      const Acc bias = there ? widen(__ldg(of_.bias + channel(p, work, c) * of_.outputs)) : Acc(0);
#pragma unroll
      for (int i = 0; i < kHeadPositions; ++i) sum.at[i][c] = bias;
    }
  }
  /// Takes what this lane's positions add to the gradient of the weights that it read last; after a chunk's last tap, the block
  /// stores its sums.
  template <class Work>
  __device__ __forceinline__ void add(const HeadParams<Acc>& p, const Work& work, int tap, Acc (&grad)[kN]) const {
#pragma unroll 1
    for (int step = work.lanes; step < 32; step *= 2) {
#pragma unroll
      for (int c = 0; c < kN; ++c) grad[c] += __shfl_xor_sync(~0u, grad[c], step);
    }
    const int warp = int(threadIdx.x) / 32, first = next_chunk_ - of_.chunk;  // of the chunk
    if (work.quad == 0) store_vector(sums_ + (((tap - first) * kRowWarps + warp) * work.lanes + work.vector) * kN, grad);
    if (tap + 1 == next_chunk_ || tap + 1 == of_.range(p).last) store_sums(p, work, first, tap + 1 - first);
  }

 private:
  template <class Work>
  __device__ __forceinline__ static std::int64_t channel(const HeadParams<Acc>& p, const Work& work, int c) {
    return std::int64_t{work.group} * p.group_channels + work.channel + c;
  }
  __device__ __forceinline__ static void read(const Acc* shared, Acc (&to)[kN]) {
    constexpr int kPiece = kN * int(sizeof(Acc)) > 16 ? 16 / int(sizeof(Acc)) : kN;
    using Piece = Vec<Acc, kPiece>;
#pragma unroll
    for (int i = 0; i < kN; i += kPiece) {
      const Piece piece = VecBits<Piece>::read(*reinterpret_cast<const Piece*>(shared + i));
#pragma unroll
      for (int j = 0; j < kPiece; ++j) to[i + j] = piece.value[j];
    }
  }
  /// Calls body(tap of the chunk) in all lanes that have a first run's positions, each for its share of the taps: a lane knows
  /// which channels its vector has.
  template <class Body>
  __device__ __forceinline__ static void each_tap(const HeadParams<Acc>& p, int taps, Body body) {
#pragma unroll 1
    for (int t = int(threadIdx.x) >> p.log_lanes; t < taps; t += kRowThreads >> p.log_lanes) body(t);
  }
  template <class Work>
  __device__ __forceinline__ void fill(const HeadParams<Acc>& p, const Work& work, int tap) {
    if (tap > of_.range(p).first) __syncthreads();  // the chunk before has been read
    const T* from = of_.weight + channel(p, work, 0) * of_.outputs * p.taps + tap;
    each_tap(p, min(of_.chunk, of_.range(p).last - tap), [&](int t) {
      Acc weight[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        weight[c] = c < work.channels ? widen(__ldg(from + std::int64_t{c} * of_.outputs * p.taps + t)) : Acc(0);
      }
      store_vector(weights_ + (t * work.lanes + work.vector) * kN, weight);
    });
    of_tap_ = weights_ + work.vector * kN;
    next_chunk_ = tap + of_.chunk;
    __syncthreads();
  }
  template <class Work>
  __device__ __forceinline__ void store_sums(const HeadParams<Acc>& p, const Work& work, int first_tap, int taps) const {
    __syncthreads();
    const auto blocks = unsigned(p.column_blocks * p.row_blocks);
    const std::int64_t block = std::int64_t{work.image} * blocks + blockIdx.x % blocks,
                       channels = std::int64_t{p.groups} * p.group_channels;
    const TapRange all = of_.range(p);
    Acc* to = of_.sums + (block * (all.last - all.first) + first_tap - all.first) * channels + channel(p, work, 0);
    each_tap(p, taps, [&](int t) {
      Acc sum[kN] = {};
#pragma unroll
      for (int warp = 0; warp < kRowWarps; ++warp) {
        Acc of_warp[kN];
        read(sums_ + ((t * kRowWarps + warp) * work.lanes + work.vector) * kN, of_warp);
#pragma unroll
        for (int c = 0; c < kN; ++c) sum[c] += of_warp[c];
      }
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (c < work.channels) to[t * channels + c] = sum[c];
      }
    });
  }

  const Given& of_;
  Acc *weights_, *sums_;
  const Acc* of_tap_ = nullptr;  // this lane's weights, of the tap to read next
  int next_chunk_;               // the tap that it starts with
};

/// Elements of a block of sum_blocks_kernel: a sector of 32 bytes of each array.
constexpr int kSumElements = 8;

/// Adds up the sums of all blocks to the gradient of one output of each channel, `count` elements. Threads share the blocks out
/// for each of them.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    sum_blocks_kernel(const accumulator_t<T>* sums, std::int64_t count, std::int64_t blocks, int channels,
                      std::int64_t channel_stride, T* gradient) {
  using Acc = accumulator_t<T>;
  constexpr int kElements = kSumElements, kShares = kRowThreads / kElements;
  static __shared__ Acc of_shares[kShares][kElements];
  const int of_block = int(threadIdx.x) % kElements, share = int(threadIdx.x) / kElements;
  const std::int64_t element = std::int64_t{blockIdx.x} * kElements + of_block;
  wait_for_previous();
  Acc sum = 0;
  if (element < count) {
#pragma unroll 8
    for (std::int64_t block = share; block < blocks; block += kShares) sum += sums[block * count + element];
  }
  of_shares[share][of_block] = sum;
  __syncthreads();
  if (share > 0 || element >= count) return;
#pragma unroll
  for (int other = 1; other < kShares; ++other) sum += of_shares[other][of_block];
  gradient[element % channels * channel_stride + element / channels] = narrow<T>(sum);
}

}  // namespace ddu::cuda
