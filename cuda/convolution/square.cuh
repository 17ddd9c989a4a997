#pragma once

// The forward kernel for 3x3 taps of images without NaN and infinities.
//
//   a block: 1, 2 or 4 warpgroups, 8 x 8 positions each, and 64, 128 or 256 outputs. It stays for as many tiles as it gets.
//
//   a lane   samples of a tap: load, blend, round ──> fragments of A in registers ──> products with the tap's slice
//                                                     while the loads of the next tap are on their way
//
// What is sampled is a factor as it is, so nothing of a step but its weights lies in shared memory (ring.cuh).

#include "axes.cuh"
#include "ring.cuh"

namespace ddu::cuda {

/// Whether the code that is compiled has the kernel with one product or the other. What a build has for warpgroups alone it
/// does not have twice.
#if defined(DDU_HAS_SM90) && __CUDA_ARCH__ == 900
template <bool kWarpgroup>
constexpr bool kHasSquareKernel = kWarpgroup && kHasWarpgroupMma;
#else
template <bool kWarpgroup>
constexpr bool kHasSquareKernel = kWarpgroup ? kHasWarpgroupMma : kHasMma;
#endif

template <class T>
struct SquarePointers {
  const T* input;      // channels-last, each unit in whole vectors
  const char* slices;  // of weights
  const void* map;
  const T* mask;  // or null
  const T* bias;  // or null
  T* output;
  unsigned* left;  // of each image: set if the other kernel has to do it; null if it is known to be finite
};

/// Samples of a lane's two positions. `kRatesAhead`: a tile's rates are asked for before it is turned to.
template <class T, bool kRatesAhead>
struct SquareSampler {
  AxisTable table;
  bool masked;
  LanePieces lane;
  PositionSamples<T> of[2];
  float rate;  // of the next tile's first group

  __device__ __forceinline__ void ask_rate(const SquareParams& p, const SquarePointers<T>& tensors, const TileWork& work,
                                           unsigned tile) {
    if (!kRatesAhead) return;
    const ChannelBlock block(p, work, 0, kVec<T>);
    if (masked) AxisTable::ask_factors(p, WarpPlace(p, tile), tensors.mask, block.head);
    rate = AxisTable::load_rate(p, WarpPlace(p, tile), tensors.map, block.group);
  }

  /// Turns to a block of channels of a tile. The middle tap of the first position is asked for before the rates are there.
  __device__ __forceinline__ void enter(const SquareParams& p, const SquarePointers<T>& tensors, const TileWork& work,
                                        unsigned tile, int n) {
    const WarpPlace place(p, tile);
    const ChannelBlock block(p, work, n, kVec<T>);
    constexpr int kMiddle = tap_of_step(0);
    set_lane(p, tensors, place, block);
    of[0].aim(lane, 0);
    load(0, kMiddle, 0);
    load(0, kMiddle, 1);
    if (block.first) {
      const bool asked = kRatesAhead && n == 0;
      table.fill(p, place, asked ? rate : AxisTable::load_rate(p, place, tensors.map, block.group));
      if (masked) table.fill_factors(p, place, tensors.mask, block.head);
    }
    locate(0, kMiddle);
  }
  __device__ __forceinline__ void set_lane(const SquareParams& p, const SquarePointers<T>& tensors, const WarpPlace& place,
                                           const ChannelBlock& block) {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
    lane.odd = g % 2;
    lane.column = unsigned(p.x.base(place.column(p, g))) * p.pixel_vectors;
#pragma unroll
    for (int r = 0; r < 2; ++r) lane.row[r] = unsigned(p.y.base(place.row(p, r))) * p.row_vectors;
    const T* image = tensors.input + place.image * p.rows.image + block.at;
#pragma unroll
    for (int taken = 0; taken < 2; ++taken) {
      // Where a unit ends within the step weights are zero, and what they meet only has to be finite.
      const int piece = (taken ^ int(lane.odd)) * 4 + q;
      lane.taken[taken] = reinterpret_cast<const uint4*>(image + (piece < block.vectors ? piece : 0) * kVec<T>);
    }
  }
  __device__ __forceinline__ void locate(int r, int t) { of[r].locate(lane, table, r, t / kSquare, t % kSquare, masked); }
  __device__ __forceinline__ void load(int r, int t, int taken) { of[r].load(lane, t / kSquare, t % kSquare, taken); }
  __device__ __forceinline__ void blend(int r, int t, int taken, StepRow& row) const {
    row.store_half(taken, of[r].blend(t / kSquare, t % kSquare, taken, masked));
    if (taken == 1) row.sort(lane.odd);
  }
};

/// A block's part of the bias in shared memory, zeros where there is none. It can be read once the block has met.
template <class T, int kOutputs>
__device__ __forceinline__ void load_bias(const SquareParams& p, const T* bias, const TileWork& work, float* shared) {
  for (int i = int(threadIdx.x); i < kOutputs; i += int(blockDim.x)) {
    const int output = work.output_block * kOutputs + i;
    const bool there = bias && output < p.group_outputs;
    shared[i] = there ? widen(__ldg(bias + std::int64_t{work.weight_group} * p.group_outputs + output)) : 0;
  }
}

template <class T, int kOutputs>
__device__ __forceinline__ void store_sums(const SquareParams& p, const SquarePointers<T>& tensors, const TileWork& work,
                                           unsigned tile, const float* bias, const float (&sums)[kOutputs / 2]) {
  constexpr int kN = kVec<T>;
  const WarpPlace place(p, tile);
  // A pixel that is not finite makes all sums so of the position whose middle it is.
  if (tensors.left && (sums[0] * 0 != 0 || sums[2] * 0 != 0)) tensors.left[place.image] = 1;
  const int lane = int(threadIdx.x) % 32, ox = place.x + lane / 4;
  if (ox >= p.out_width) return;
  const int first = work.output_block * kOutputs + lane % 4 * kN;  // of the lane's outputs: kN of every four times so many
  T* const column = tensors.output + place.image * p.output.image + ox * p.output.position +
                    (std::int64_t{work.weight_group} * p.group_outputs + first) * p.output.channel;
  const std::int64_t row = std::int64_t{p.out_width} * p.output.position;
  const auto value_of = [&](int run, int r, float (&value)[kN]) {
#pragma unroll
    for (int c = 0; c < kN; c += 4) {
      const float4 added = *reinterpret_cast<const float4*>(bias + (run * 4 + lane % 4) * kN + c);
      const float* const sum = sums + (run * (kN / 2) + c / 2) * 4 + r * 2;
      value[c] = sum[0] + added.x;
      value[c + 1] = sum[1] + added.y;
      value[c + 2] = sum[4] + added.z;
      value[c + 3] = sum[5] + added.w;
    }
  };
  if (p.output.channel_vectors && p.group_outputs - work.output_block * kOutputs >= kOutputs) {  // nothing to ask on the way
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (place.y + r >= p.out_height) break;
      T* const to = column + (place.y + r) * row;
#pragma unroll
      for (int run = 0; run < kOutputs / (4 * kN); ++run) {
        float value[kN];
        value_of(run, r, value);
        store_vector(to + run * 4 * kN, value);
      }
    }
    return;
  }
#pragma unroll
  for (int run = 0; run < kOutputs / (4 * kN); ++run) {
    const int there = p.group_outputs - first - run * 4 * kN;  // outputs from the run's first on
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (place.y + r >= p.out_height) continue;
      float value[kN];
      value_of(run, r, value);
      T* const to = column + (place.y + r) * row + run * 4 * kN * p.output.channel;
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (c < there) to[c * p.output.channel] = narrow<T>(value[c]);
      }
    }
  }
}

/// What multiplies: a warpgroup, which goes on meanwhile (wgmma), or each of its warps (mma.sync). `adds` is false in a tile's
/// first step.
template <class T, int kOutputs, bool kWarpgroup>
__device__ __forceinline__ void multiply(float (&sums)[kOutputs / 2], StepRow (&rows)[2], const char* slice, bool adds) {
  const auto fragment = [&](int k, unsigned (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = rows[i % 2].word[2 * k + i / 2];
  };
  if constexpr (kWarpgroup) {
    rows[0].pin();
    rows[1].pin();
    products_begin();
    const std::uint64_t columns = matrix_in_shared(slice);
#pragma unroll
    for (int k = 0; k < kDepthsOfColumn; ++k) {
      unsigned a[4];
      fragment(k, a);
      start_product<T, kOutputs>(sums, a, columns + 2 * k, adds || k > 0);
    }
    products_end();
  } else {
    if (!adds) {
#pragma unroll
      for (float& sum : sums) sum = 0;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned first[4], second[4];
      fragment(2 * half, first);
      fragment(2 * half + 1, second);
#pragma unroll
      for (int i = 0; i < kOutputs / kMmaColumns; ++i) {
        const uint4 b = load_columns(slice + i * (kMmaColumns * kStepBytes), half);
        float d[4] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
        mma<T>(d, first, {b.x, b.y});
        mma<T>(d, second, {b.z, b.w});
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[4 * i + e] = d[e];
      }
    }
  }
}

/// 72 KB, of 128 outputs 48 and of 256 96.
template <int kOutputs>
constexpr int kStages = kOutputs == 64 ? 9 : 3;
template <int kOutputs, bool kWarpgroup, bool kAll>
using SquareRing = std::conditional_t<kWarpgroup, WeightRing<kOutputs * kStepBytes, kStages<kOutputs>, kAll>,
                                      MeetingRing<kOutputs * kStepBytes, kStages<kOutputs>>>;
/// Shared memory of a block: the ring, its part of the bias, and a table for each warp.
template <class Ring, int kOutputs>
struct SquareShared {
  static constexpr int kTables = Ring::kBytes + kOutputs * int(sizeof(float));
  static_assert(kTables % 16 == 0, "entries of tables");

  __host__ __device__ static constexpr int table_bytes(bool masked) {
    return AxisTable::kBytes + (masked ? AxisTable::kFactorBytes : 0);
  }
  static constexpr int bytes(int warps, bool masked) { return kTables + warps * table_bytes(masked); }
  __device__ __forceinline__ static float* bias(char* shared) { return reinterpret_cast<float*>(shared + Ring::kBytes); }
  __device__ __forceinline__ static AxisTable table(char* shared, bool masked) {
    return {reinterpret_cast<AxisPixels*>(shared + kTables + int(threadIdx.x) / 32 * table_bytes(masked))};
  }
};
constexpr int square_threads(int outputs) { return outputs > 64 ? 256 : 512; }

/// `kAll`: one block of channels, all of whose slices have their stages. `kPlain`: no mask, which others ask about.
template <class T, int kOutputs, bool kWarpgroup, bool kAll, bool kPlain>
__global__ void __launch_bounds__(square_threads(kOutputs), 1)
    square_convolution_kernel(const SquareParams p, const SquarePointers<T> tensors) {
  if constexpr (kHasSquareKernel<kWarpgroup>) {
    using Ring = SquareRing<kOutputs, kWarpgroup, kAll>;
    constexpr bool kDouble =
        kWarpgroup && kOutputs > 64;  // samples of one step are taken while those of the one before are multiplied
    // Where registers are short, the halves of a step come one after the other.
    constexpr bool kByHalves = kDouble || kAll;
    extern __shared__ char shared[];
    const TileWork work(p);
    const int blocks = kAll ? 1 : p.units * p.unit_blocks;
    const std::int64_t part = std::int64_t{work.weight_group} * p.by_output_blocks.divisor + work.output_block;
    SquareSampler<T, kByHalves> sampler;
    sampler.masked = !kPlain && p.masked;
    sampler.table = SquareShared<Ring, kOutputs>::table(shared, p.masked);
    sampler.ask_rate(p, tensors, work, work.tile);
    if (kDouble) sampler.enter(p, tensors, work, work.tile, 0);
    float* const bias = SquareShared<Ring, kOutputs>::bias(shared);
    load_bias<T, kOutputs>(p, tensors.bias, work, bias);
    Ring ring(shared, tensors.slices + part * blocks * (9 * kOutputs * kStepBytes), blocks, work.tiles(p));
    let_next_start();  // what comes next waits for all of this, and its blocks are there then
    ring.start();
    StepRow rows[2][2];
    float sums[kOutputs / 2];
#pragma unroll 1
    for (unsigned tile = work.tile; tile < p.tiles; tile += work.stride) {
      if (!kDouble) sampler.enter(p, tensors, work, tile, 0);
#pragma unroll 1
      for (int n = 0; n < blocks; ++n, ++ring.round) {
#pragma unroll
        for (int step = 0; step < kRound; ++step) {
          const int t = tap_of_step(step), after = tap_of_step(step + 1);
          StepRow(&now)[2] = rows[kDouble ? step % 2 : 0];
          sampler.locate(1, t);
          sampler.load(1, t, 0);
          if (!kByHalves) sampler.load(1, t, 1);
          if (!kDouble || step == 0) {
            wait_for_products<0>();
            if (step > 0) ring.release(step - 1, n, ring.round);
            if (step == 0 && n > 0) ring.release(kRound - 1, n - 1, ring.round - 1);
          }
          if (step == 6 && n + 1 == blocks && tile + work.stride < p.tiles) {
            sampler.ask_rate(p, tensors, work, tile + work.stride);
          }
          sampler.blend(0, t, 0, now[0]);
          if (kByHalves) sampler.load(1, t, 1);
          sampler.blend(0, t, 1, now[0]);
          if (step + 1 < kRound) {
            sampler.locate(0, after);
            sampler.load(0, after, 0);
            if (!kByHalves) sampler.load(0, after, 1);
          } else {
            const bool done = n + 1 == blocks;
            const unsigned next = done ? tile + work.stride : tile;
            if (!done || (kDouble && next < p.tiles)) sampler.enter(p, tensors, work, next, done ? 0 : n + 1);
          }
          sampler.blend(1, t, 0, now[1]);
          if (kByHalves && step + 1 < kRound) sampler.load(0, after, 1);
          sampler.blend(1, t, 1, now[1]);
          multiply<T, kOutputs, kWarpgroup>(sums, now, ring.wait(step), step > 0 || n > 0);
          if (kDouble && step > 0) {
            wait_for_products<1>();
            ring.release(step - 1, n, ring.round);
          }
        }
      }
      wait_for_products<0>();
      ring.release(kRound - 1, blocks - 1, ring.round - 1);
      store_sums<T, kOutputs>(p, tensors, work, tile, bias, sums);
    }
  }
}

}  // namespace ddu::cuda
