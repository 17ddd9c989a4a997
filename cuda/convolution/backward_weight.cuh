#pragma once

// The gradient of the weight: grad_output^T x samples, which are made again.
//
//                                positions (the depth)        3 taps x 64 channels       3 taps x 64 channels
//                             ┌──────────────────────┐      ┌─────┬─────┬─────┐        ┌─────┬─────┬─────┐
//     64 or 128 outputs       │    grad_output^T     │      │     samples     │ outputs│      sums       │ --> scratch memory
//                             └──────────────────────┘      └─────┴─────┴─────┘        └─────┴─────┴─────┘
//
// A block: three taps, which share their rows of grad_output and, in L1, most of the image's pixels; up to 64 channels of a
// unit; 64 outputs of 8 warps, or 128 of 16; and a share of all positions. Where warpgroups multiply half types, two taps and
// 256 outputs of 16 warps. For each *stage* of positions:
//
//     sample (a warp: 8 positions or fewer, two corner loads ahead of the blend)
//     barrier                              the stage is there, and nobody reads the one before, which is written next
//     start the next stage's copies of grad_output, and its first loads of corners
//     multiply (a warp: 32 outputs by 16 channels of each tap)
//
// Rows lie side by side in shared memory, [position][channel]. The depth of both factors is the position, so fragments are
// columns there: half types are turned as they are read (load_turned), and of float32 a fragment's words are elements.
//
// Each block stores its sums apart, and sum_weights_kernel adds them up in their order: the same bits from run to run.

#include "weight_samples.cuh"

namespace ddu::cuda {

/// Bytes of shared memory of a block.
template <class T, int kWarps, bool kWarpgroup>
constexpr int kWeightShared =
    2 * WeightStage<T, kWarps, kWarpgroup>::kBytes + kWarps * StageRows<T, kWarps, kWarpgroup>::kTableBytes;

template <class T, int kWarps, bool kWarpgroup>
__global__ void __launch_bounds__(32 * kWarps, 16 / kWarps)
    conv_weight_backward_kernel(const ConvWeightParams p, const ConvWeightPointers<T> tensors) {
  if constexpr (kWarpgroup ? kHasWarpgroupMma : kHasMma) {
    using Rows = StageRows<T, kWarps, kWarpgroup>;
    using Stage = WeightStage<T, kWarps, kWarpgroup>;
    extern __shared__ char shared[];
    const ConvWeightBlock block(p, kWarpgroup ? p.block_taps : Stage::Shape::kTaps);
    wait_for_previous();
    const std::int64_t first_block = std::int64_t{block.split} * p.split_blocks;
    Rows rows(p, block, tensors, shared + 2 * Stage::kBytes, first_block);
    WeightSums<T, kWarps, kWarpgroup> sums;
    const int runs =
        (int(min(p.position_blocks - first_block, std::int64_t{p.split_blocks})) + Rows::kOfBlock - 1) / Rows::kOfBlock;
    const int stages = runs * Rows::kStages;
    const bool multiplies = sums.channel < p.unit_channels - block.channel_slice * kWeightChannels &&
                            sums.output < p.group_outputs - block.output_slice * Stage::kOutputs;
    Corners<T> reads[Rows::kPasses];
#pragma unroll 1
    for (int stage = -1; stage < stages; ++stage) {
      const Stage to(shared, stage & 1);
      if (stage >= 0) {
        rows.sample(reads, to, stage % Rows::kStages * Rows::kRun);
        wait_for_copies();
        if constexpr (kWarpgroup) {
          sums.finish();  // of the stage before, whose memory is written next
          show_to_products();
        }
        __syncthreads();
      }
      if (stage + 1 < stages) {
        const int first = (stage + 1) % Rows::kStages * Rows::kRun;
        if (first == 0) rows.start(first_block + ((stage + 1) / Rows::kStages + 1) * Rows::kOfBlock);
        rows.copy_outputs(Stage(shared, (stage + 1) & 1).outputs, first);
#pragma unroll
        for (int pass = 0; pass < Rows::kPasses; ++pass) rows.load(reads[pass], rows.table(0), first, pass);
      }
      if (stage >= 0 && multiplies) sums.add(to);
    }
    sums.finish();
    for (int tap = 0; tap < block.taps; ++tap) {
      const std::int64_t of_tap = std::int64_t{block.unit.index} * p.taps + block.tap + tap;
      float* to = tensors.sums + block.split * p.part +
                  (of_tap * p.group_outputs + block.output_slice * Stage::kOutputs) * p.padded_channels +
                  block.channel_slice * kWeightChannels;
      sums.store(tap, to, p.padded_channels, p.group_outputs - block.output_slice * Stage::kOutputs,
                 p.padded_channels - block.channel_slice * kWeightChannels);
    }
  }
}

/// Sums of a map's gradient that are kept apart, array after array, and are added up beside those of the weight.
struct MapArrays {
  const float* sums = nullptr;
  void* gradient = nullptr;
  std::int64_t count = 0;  // elements of the gradient; 0 if there is nothing to add
  int arrays = 0;

  /// A thread has one element of `block` of so many blocks.
  unsigned blocks() const { return grid_size(ceil_div(count, std::int64_t{kRowThreads})); }
  __device__ __forceinline__ void add_up(DType map_type, unsigned block) const {
    const std::int64_t at = std::int64_t{block} * kRowThreads + threadIdx.x;
    if (at >= count) return;
    float sum = 0;
    for (int array = 0; array < arrays; ++array) sum += sums[array * count + at];
    store_rate(gradient, map_type, at, sum);
  }
};

/// Adds up the sums of all splits to the gradient [weight group][output][unit][channel][tap]: a warp every eighth split, and
/// then all warps, always in the same order. A lane has four channels. Blocks behind those have the map's.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    sum_weights_kernel(const ConvWeightParams p, const float* sums, T* gradient, unsigned blocks, const MapArrays map) {
  __shared__ static float4 of_warps[kRowWarps][32];
  wait_for_previous();
  let_next_start();
  if (blockIdx.x >= blocks) return map.add_up(p.map_type, blockIdx.x - blocks);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const std::int64_t index = (std::int64_t{blockIdx.x} * 32 + lane) * 4;
  float4 sum{};
  if (index < p.part) {
#pragma unroll 8
    for (int split = warp; split < p.splits; split += kRowWarps) {
      const float4 part = *reinterpret_cast<const float4*>(sums + split * p.part + index);
      sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
  }
  of_warps[warp][lane] = sum;
  __syncthreads();
  const std::int64_t element = std::int64_t{blockIdx.x} * 128 + threadIdx.x;
  if (threadIdx.x >= 128 || element >= p.part) return;
  float total = 0;
#pragma unroll
  for (int w = 0; w < kRowWarps; ++w) total += reinterpret_cast<const float*>(of_warps[w])[threadIdx.x];
  const int channel = int(element % p.padded_channels);
  if (channel >= p.unit_channels) return;
  const std::int64_t row = element / p.padded_channels;
  const int output = int(row % p.group_outputs), tap = int(row / p.group_outputs % p.taps);
  const ConvUnit unit(p, int(row / p.group_outputs / p.taps));
  const std::int64_t at = p.weight(unit.weight_group, output, unit.of_weight_group * p.unit_channels + channel);
  if (at >= 0) gradient[at + tap] = narrow<T>(total);
}

}  // namespace ddu::cuda
