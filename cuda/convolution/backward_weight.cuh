#pragma once

// The gradient of the weight: grad_output^T x samples, which are made again.
//
//                                positions (the depth)         channels                  channels
//                             ┌──────────────────────┐      ┌───────────┐              ┌───────────┐
//     64 or 128 outputs       │    grad_output^T     │      │  samples  │     outputs  │   sums    │ --> scratch memory
//                             └──────────────────────┘      │ of a tap  │              └───────────┘
//                                                           └───────────┘
//
// A block: one tap, up to 64 channels of a unit, a tile of outputs, and a share of all positions. Its warps sample 8 positions
// each, put them and their rows of grad_output side by side into shared memory, [position][channel], and meet; then each
// multiplies a quarter of the outputs by half of the channels. Two such stages, so that one meeting a stage is enough.
// Words of a factor run along the depth, which in shared memory is a column: a lane joins two halves of neighbouring positions.
// It reads two channels at once, so row g of a product is output 2g and row g + 8 output 2g + 1; channels alike.
//
// Each block stores its sums apart, and sum_weights_kernel adds them up in their order: the same bits from run to run.

#include "../core/async_copy.cuh"
#include "backward_params.cuh"

namespace ddu::cuda {

constexpr int kStagePositions = 64;                     // of a block, at once
constexpr int kStageRun = kStagePositions / kRowWarps;  // of a warp
constexpr int kWeightRun = 32;                          // of a warp, for which it works out a tap at once
constexpr int kWeightChannels = 64;                     // of a block

struct ConvWeightParams : ConvBackwardParams {
  std::int64_t position_blocks;  // of all images: kRowWarps runs each
  int splits;                    // blocks that share them out
  int channel_slices, output_slices;
  int padded_channels;  // of a unit, in the sums
  std::int64_t part;    // elements of the sums of one split, [unit][tap][output][channel]
  Divider by_splits, by_output_slices, by_channel_slices, by_taps;
};

/// Rows of a factor in shared memory, [position][channel].
template <class T, int kChannels>
struct DepthTile {
  // Lanes that read a fragment, and lanes that write rows of 16 bytes, meet no bank twice.
  static constexpr int kStride = kChannels + 8;
  static constexpr int kBytes = kStagePositions * kStride * int(sizeof(T));

  T* rows;

  __device__ __forceinline__ uint4* unit(int position, int index) const {
    return reinterpret_cast<uint4*>(rows + position * kStride + index * kVec<T>);
  }
  /// Of 16 channels from `channel` on and positions from `position` on: words of the first and second half of the depth, r[0]
  /// and r[2] for channel 2g, r[1] and r[3] for channel 2g + 1.
  __device__ __forceinline__ void fragment(int position, int channel, unsigned (&r)[4]) const {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (sizeof(T) == 4) {
        const T* two = rows + (position + q + 4 * half) * kStride + channel + 2 * g;
        const Vec<T, 2> pair = VecBits<Vec<T, 2>>::read(*reinterpret_cast<const Vec<T, 2>*>(two));
        r[2 * half] = to_tf32(pair.value[0]);
        r[2 * half + 1] = to_tf32(pair.value[1]);
      } else {
        const T* two = rows + (position + 2 * q + 8 * half) * kStride + channel + 2 * g;
        const unsigned here = *reinterpret_cast<const unsigned*>(two), next = *reinterpret_cast<const unsigned*>(two + kStride);
        r[2 * half] = (here & 0xffffu) | next << 16;
        r[2 * half + 1] = here >> 16 | (next & 0xffff0000u);
      }
    }
  }
};

/// A stage's two factors.
template <class T, int kOutputs>
struct WeightStage {
  DepthTile<T, kOutputs> outputs;
  DepthTile<T, kWeightChannels> samples;
  static constexpr int kBytes = DepthTile<T, kOutputs>::kBytes + DepthTile<T, kWeightChannels>::kBytes;

  __device__ __forceinline__ WeightStage(char* shared, int stage)
      : outputs{reinterpret_cast<T*>(shared + stage * kBytes)},
        samples{reinterpret_cast<T*>(shared + stage * kBytes + DepthTile<T, kOutputs>::kBytes)} {}
};

/// What a warp has of the sums.
template <class T, int kOutputs>
struct WeightSums {
  static constexpr int kRows = kOutputs / 4 / kMmaRows;  // products one below the other
  static constexpr int kColumns = kWeightChannels / 2 / kMmaColumns;
  float d[kRows][kColumns][4] = {};
  int output, channel;  // the first, within the block's

  __device__ __forceinline__ WeightSums() {
    const int warp = int(threadIdx.x) / 32;
    output = warp / 2 * (kOutputs / 4);
    channel = warp % 2 * (kWeightChannels / 2);
  }
  __device__ __forceinline__ void add(const WeightStage<T, kOutputs>& stage) {
#pragma unroll 1
    for (int position = 0; position < kStagePositions; position += kMmaDepth<T>) {
      unsigned a[kRows][4];
#pragma unroll
      for (int row = 0; row < kRows; ++row) stage.outputs.fragment(position, output + row * kMmaRows, a[row]);
#pragma unroll
      for (int column = 0; column < kColumns; column += 2) {
        unsigned r[4];
        stage.samples.fragment(position, channel + column * kMmaColumns, r);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          mma<T>(d[row][column], a[row], {r[0], r[2]});
          mma<T>(d[row][column + 1], a[row], {r[1], r[3]});
        }
      }
    }
  }
  /// To [output][channel], of which there are so many; rows of `stride` are a multiple of 16 bytes.
  __device__ __forceinline__ void store(float* to, int stride, int outputs, int channels) const {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
      for (int column = 0; column < kColumns; column += 2)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int o = output + row * kMmaRows + 2 * g + odd, c = channel + column * kMmaColumns + 4 * q;
          if (o >= outputs || c >= channels) continue;
          const auto& even_channels = d[row][column];
          const auto& odd_channels = d[row][column + 1];
          *reinterpret_cast<float4*>(to + std::int64_t{o} * stride + c) = {
              even_channels[2 * odd], odd_channels[2 * odd], even_channels[2 * odd + 1], odd_channels[2 * odd + 1]};
        }
  }
};

template <class T>
struct ConvWeightPointers {
  const T *grad_output, *image;  // rows
  const T* mask;                 // null for ones
  const void* map;
  float* sums;  // [split][unit][tap][output][channel]
};

/// What one block does.
struct ConvWeightBlock {
  unsigned rest;
  int split, output_slice, channel_slice, tap;
  ConvUnit unit;

  __device__ __forceinline__ explicit ConvWeightBlock(const ConvWeightParams& p)
      : rest(blockIdx.x),
        split(take(p.by_splits)),
        output_slice(take(p.by_output_slices)),
        channel_slice(take(p.by_channel_slices)),
        tap(take(p.by_taps)),
        unit(p, int(rest)) {}

 private:
  __device__ __forceinline__ int take(const Divider& by) {
    unsigned remainder = rest;
    rest = by.take(remainder);
    return int(remainder);
  }
};

/// A warp's part of a stage's rows.
template <class T, int kOutputs>
struct StageRows {
  using Table = TapTable<float, false>;
  using Work = WarpWork<T>;
  static constexpr int kLanes = kWeightChannels / kVec<T>;  // of a position's channels

  const ConvWeightParams& p;
  const ConvWeightBlock& block;
  const ConvWeightPointers<T>& tensors;
  const Work& work;
  int there;  // positions of the warp's run

  /// Rows of grad_output, from position `first` of the run on. They are there after wait_for_copies() and a barrier.
  __device__ __forceinline__ void copy_outputs(const DepthTile<T, kOutputs>& to, int first) const {
    constexpr int kUnits = kOutputs / kVec<T>;
    const int lane = int(threadIdx.x) % 32, row = int(threadIdx.x) / 32 * kStageRun;
    const int output = block.output_slice * kOutputs;
    const T* from =
        tensors.grad_output + block.unit.outputs(p, work.image) + (work.first_position + first) * p.outputs.pixel + output;
    const int positions = there - first, outputs = p.group_outputs - output;
    if (p.output_vectors) {
#pragma unroll
      for (int n = 0; n < kStageRun * kUnits; n += 32) {
        const int i = (n + lane) / kUnits, unit = (n + lane) % kUnits;
        if (i < positions && unit * kVec<T> < outputs) {
          copy_async(to.unit(row + i, unit), from + i * p.outputs.pixel + unit * kVec<T>);
        } else {
          *to.unit(row + i, unit) = {0, 0, 0, 0};
        }
      }
    } else {
#pragma unroll 1
      for (int n = lane; n < kStageRun * kUnits; n += 32) {
        const int i = n / kUnits, unit = n % kUnits, count = i < positions ? outputs - unit * kVec<T> : 0;
        *to.unit(row + i, unit) = load_channels<false, kVec<T>>(from + i * p.outputs.pixel + unit * kVec<T>, count).whole;
      }
    }
  }
  /// The same value as blend() has for whole vectors. One corner after the other: all of them would not fit the registers.
  __device__ __forceinline__ void blend_elements(const T* at, unsigned inside, int channels,
                                                 const Table::CornerWeights& weights, float (&value)[kVec<T>]) const {
#pragma unroll
    for (float& v : value) v = 0;
#pragma unroll 1
    for (int corner = 0; corner < 4; ++corner) {
      const T* from = at + (corner & 1 ? p.rows.pixel : 0) + (corner & 2 ? p.row : 0);
      const Bits16<T> bits = load_channels<false, kVec<T>>(from, inside >> corner & 1 ? channels : 0);
#pragma unroll
      for (int c = 0; c < kVec<T>; ++c) value[c] += weights.corner[corner] * bits.get(c);
    }
  }
  /// Samples of those positions; zero where there are none.
  __device__ __forceinline__ void sample(const DepthTile<T, kWeightChannels>& to, int first, const Table& table) const {
    const int lane = int(threadIdx.x) % 32, vector = lane % kLanes;
    const int within = block.channel_slice * kWeightChannels + vector * kVec<T>;
    const int channels = min(p.unit_channels - within, kVec<T>);
    const T* image = tensors.image + block.unit.pixels(p, work.image) + within;
    const std::int64_t at_mask = block.unit.mask(p, work.image) + block.tap * p.positions + work.first_position;
#pragma unroll 1  // two at once would not fit the registers
    for (int i = lane / kLanes; i < kStageRun; i += 32 / kLanes) {
      const int entry = first + i;
      Bits16<T> bits;
      if (entry < there && channels > 0) {
        const Table::Where where = table.where[entry];
        const float scale = tensors.mask ? widen(__ldg(tensors.mask + at_mask + entry)) : 1.f;
        float value[kVec<T>];
        if (p.image_vectors) {
          const auto corners =
              Corners<T>::template load<true>(image + (where >> 8), p.rows.pixel, p.row, unsigned(where) & 15, channels);
          blend(corners, table.weights[entry], value);
        } else {
          blend_elements(image + (where >> 8), unsigned(where), channels, table.weights[entry], value);
        }
#pragma unroll
        for (int c = 0; c < kVec<T>; ++c) bits.set(c, narrow<T>(c < channels ? scale * value[c] : 0));
      }
      *to.unit(int(threadIdx.x) / 32 * kStageRun + i, vector) = bits.whole;
    }
  }
};

template <class T, int kOutputs>
__global__ void __launch_bounds__(kRowThreads, 2)
    conv_weight_backward_kernel(const ConvWeightParams p, const ConvWeightPointers<T> tensors) {
  if constexpr (kHasMma) {
    using Rows = StageRows<T, kOutputs>;
    extern __shared__ char shared[];
    const ConvWeightBlock block(p);
    wait_for_previous();
    const typename Rows::Table table(shared + 2 * WeightStage<T, kOutputs>::kBytes, kWeightRun);
    WeightSums<T, kOutputs> sums;
    int stage = 0;
#pragma unroll 1
    for (std::int64_t index = block.split; index < p.position_blocks; index += p.splits) {
      typename Rows::Work work(p, unsigned(index));
      work.group = block.unit.group;
      const Rows rows{p, block, tensors, work,
                      work.any ? int(min(p.positions - work.first_position, std::int64_t{kWeightRun})) : 0};
      table.load_rates(p, work, tensors.map);
      table.fill(p, work, block.tap);
#pragma unroll 1
      for (int first = 0; first < kWeightRun; first += kStageRun, stage ^= 1) {
        const WeightStage<T, kOutputs> to(shared, stage);
        rows.copy_outputs(to.outputs, first);
        rows.sample(to.samples, first, table);
        wait_for_copies();
        __syncthreads();  // the stage is there, and all have read the one before, which is written next
        sums.add(to);
      }
    }
    const std::int64_t of_tap = std::int64_t{block.unit.index} * p.taps + block.tap;
    float* to = tensors.sums + block.split * p.part +
                (of_tap * p.group_outputs + block.output_slice * kOutputs) * p.padded_channels +
                block.channel_slice * kWeightChannels;
    sums.store(to, p.padded_channels, p.group_outputs - block.output_slice * kOutputs,
               p.padded_channels - block.channel_slice * kWeightChannels);
  }
}

/// Adds up the sums of all splits, in their order, to the gradient [weight group][output][unit][channel][tap].
template <class T>
__global__ void __launch_bounds__(256)
    sum_weights_kernel(const ConvWeightParams p, const float* sums, T* gradient, std::int64_t count) {
  wait_for_previous();
  const std::int64_t index = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (index >= count) return;
  const int channel = int(index % p.padded_channels);
  if (channel >= p.unit_channels) return;
  const std::int64_t row = index / p.padded_channels;
  const int output = int(row % p.group_outputs), tap = int(row / p.group_outputs % p.taps);
  const ConvUnit unit(p, int(row / p.group_outputs / p.taps));
  float sum = 0;
#pragma unroll 4
  for (int split = 0; split < p.splits; ++split) sum += sums[split * count + index];
  const std::int64_t of_output = (std::int64_t{unit.weight_group} * p.group_outputs + output) * p.weight_units;
  gradient[((of_output + unit.of_weight_group) * p.unit_channels + channel) * p.taps + tap] = narrow<T>(sum);
}

}  // namespace ddu::cuda
