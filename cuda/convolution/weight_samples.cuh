#pragma once

// What a block of the weight's gradient does, and the factors of its product: a warp copies rows of grad_output and samples the
// image for its own positions of each stage (backward_weight.cuh draws the stages).
//
//     run     32 positions of a warp, whose taps it works out at once; the rates of the next run are on their way by then
//     stage   8 of them or fewer
//     pass    a tap of as many of those as a warp loads 64 channels of, 16 bytes a lane

#include "../core/async_copy.cuh"
#include "weight_product.cuh"

namespace ddu::cuda {

struct ConvWeightParams : ConvBackwardParams {
  std::int64_t position_blocks;  // of all images: kRowWarps runs each
  int split_blocks;              // position blocks of a block
  int splits;                    // blocks that share them out
  int block_taps;                // of a block
  int tap_groups, channel_slices, output_slices;
  int padded_channels;  // of a unit, in the sums
  std::int64_t part;    // elements of the sums of one split, [unit][tap][output][channel]
  Divider by_splits, by_output_slices, by_channel_slices, by_tap_groups;
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
  int taps;

  /// Blocks have so many taps: a constant where the kernel would spill without, a parameter where it would spill with one.
  __device__ __forceinline__ ConvWeightBlock(const ConvWeightParams& p, int block_taps)
      : rest(blockIdx.x),
        split(take(p.by_splits)),
        output_slice(take(p.by_output_slices)),
        channel_slice(take(p.by_channel_slices)),
        tap(take(p.by_tap_groups) * block_taps),
        unit(p, int(rest)),
        taps(min(p.taps - tap, block_taps)) {}

 private:
  __device__ __forceinline__ int take(const Divider& by) {
    unsigned remainder = rest;
    rest = by.take(remainder);
    return int(remainder);
  }
};

/// A warp's part of the stages.
template <class T, int kWarps, bool kWarpgroup>
struct StageRows {
  using Table = TapTable<float, false>;
  using Work = WarpWork<T>;
  using Stage = WeightStage<T, kWarps, kWarpgroup>;
  static constexpr int kRun = kStagePositions<T> / kWarps;                            // positions of a stage
  static constexpr int kStages = kWeightRun / kRun;                                   // of a run
  static constexpr int kLanes = kWeightChannels / kVec<T>;                            // of a position
  static constexpr int kAtOnce = 32 / kLanes;                                         // positions of a pass
  static constexpr int kPasses = kRun / kAtOnce;                                      // of a tap
  static constexpr int kOfBlock = kWarps / kRowWarps;                                 // position blocks at once
  static constexpr int kTableBytes = Stage::Shape::kTaps * Table::bytes(kWeightRun);  // of a warp

  const ConvWeightParams& p;
  const ConvWeightBlock& block;
  const ConvWeightPointers<T>& tensors;
  char* tables;      // of the first tap, as TapTable takes it
  unsigned corners;  // those that this lane reads where they are: none if it has no channels
  unsigned pixel;    // elements to the next pixel
  Work next;
  float next_rate;
  // Of the run whose stages are sampled:
  int there;         // positions
  const T* image;    // this lane's first channel
  const T* outputs;  // the first position's row

  __device__ __forceinline__ StageRows(const ConvWeightParams& p, const ConvWeightBlock& block,
                                       const ConvWeightPointers<T>& tensors, char* shared, std::int64_t first_block)
      : p(p),
        block(block),
        tensors(tensors),
        tables(shared + int(threadIdx.x) / 32 * (kTableBytes - Table::bytes(kWeightRun))),
        corners(within() < p.unit_channels ? 15 : 0),
        pixel(unsigned(p.rows.pixel)),
        next(find(first_block)),
        next_rate(rate_of(next)) {
    ask_in_loop(pixel);
  }
  /// The first of this lane's channels within the unit.
  __device__ __forceinline__ int within() const {
    return block.channel_slice * kWeightChannels + int(threadIdx.x) % kLanes * kVec<T>;
  }
  __device__ __forceinline__ Table table(int tap) const { return Table(tables + tap * Table::bytes(kWeightRun), kWeightRun); }
  __device__ __forceinline__ Work find(std::int64_t position_block) const {
    const std::int64_t index = position_block + int(threadIdx.x) / kRowThreads;
    Work work(p, unsigned(index), int(threadIdx.x) / 32 % kRowWarps);
    work.group = block.unit.group;
    work.any = work.any && index < p.position_blocks;
    return work;
  }
  /// The rate of this lane's position of a run.
  __device__ __forceinline__ float rate_of(const Work& work) const {
    const std::int64_t position = work.first_position + int(threadIdx.x) % 32;
    if (!work.any || position >= p.positions) return 0;
    return load_rate<float>(tensors.map, p.map_type, work.map_plane(p) * p.positions + position);
  }
  /// Turns to the run that was found, and finds the one after it.
  __device__ __forceinline__ void start(std::int64_t position_block_after) {
    const int lane = int(threadIdx.x) % 32;
    there = next.any ? int(min(p.positions - next.first_position, std::int64_t{kWeightRun})) : 0;
    image = tensors.image + block.unit.pixels(p, next.image) + within();
    outputs = tensors.grad_output + block.unit.outputs(p, next.image) + next.first_position * p.outputs.pixel +
              block.output_slice * Stage::kOutputs;
    const std::int64_t at_mask = block.unit.mask(p, next.image) + block.tap * p.positions + next.first_position + lane;
#pragma unroll 1
    for (int tap = 0; tap < block.taps; ++tap) {
      const Table of_tap = table(tap);
      const float factor = tensors.mask && lane < there ? widen(__ldg(tensors.mask + at_mask + tap * p.positions)) : 1.f;
      of_tap.rates[lane] = next_rate;
      of_tap.fill(p, next, block.tap + tap);
      of_tap.rates[lane] = factor;  // the rates are not read again
      if (lane < there) continue;
      of_tap.where[lane] = 0;  // a sample of zero
      of_tap.weights[lane] = {};
    }
    __syncwarp();
    next = find(position_block_after);
    next_rate = rate_of(next);
  }
  /// Rows of grad_output, from position `first` of the run on. They are there after wait_for_copies() and a barrier.
  __device__ __forceinline__ void copy_outputs(const typename Stage::Outputs& to, int first) const {
    constexpr int kUnits = Stage::kOutputs / kVec<T>;
    const int lane = int(threadIdx.x) % 32, row = int(threadIdx.x) / 32 * kRun;
    const int count = p.group_outputs - block.output_slice * Stage::kOutputs;
    if (p.output_vectors) {
#pragma unroll
      for (int n = 0; n < kRun * kUnits; n += 32) {
        const int i = (n + lane) / kUnits, unit = (n + lane) % kUnits;
        const bool is = first + i < there && unit * kVec<T> < count;
        copy_or_clear(to.unit(row + i, unit), is ? outputs + (first + i) * p.outputs.pixel + unit * kVec<T> : outputs, is);
      }
    } else {
#pragma unroll 1
      for (int n = lane; n < kRun * kUnits; n += 32) {
        const int i = n / kUnits, unit = n % kUnits, elements = first + i < there ? count - unit * kVec<T> : 0;
        *to.unit(row + i, unit) =
            load_channels<false, kVec<T>>(outputs + (first + i) * p.outputs.pixel + unit * kVec<T>, elements).whole;
      }
    }
  }
  /// The table's entry of this lane's position in a pass.
  __device__ __forceinline__ static int entry(int first, int pass) {
    return first + pass * kAtOnce + int(threadIdx.x) % 32 / kLanes;
  }
  /// Loads the corners of a pass, zero where there is no pixel.
  __device__ __forceinline__ void load(Corners<T>& reads, const Table& of_tap, int first, int pass) const {
    const typename Table::Where where = of_tap.where[entry(first, pass)];
    const unsigned inside = unsigned(where) & corners;
    const T *const a = image + (where >> 8), *const c = a + p.row;
    reads = {};
    if (inside & 1) reads.a = load_channels<true, kVec<T>>(a, kVec<T>);
    if (inside & 2) reads.b = load_channels<true, kVec<T>>(a + pixel, kVec<T>);
    if (inside & 4) reads.c = load_channels<true, kVec<T>>(c, kVec<T>);
    if (inside & 8) reads.d = load_channels<true, kVec<T>>(c + pixel, kVec<T>);
  }
  /// Stores a pass's samples in the stage. Channels that the unit has not are sums that nobody stores.
  __device__ __forceinline__ void store_samples(const Corners<T>& reads, const Table& of_tap, T* samples, int first,
                                                int pass) const {
    const int at = entry(first, pass);
    float value[kVec<T>];
    blend(reads, of_tap.weights[at], value);
    if (tensors.mask) {
      const float factor = of_tap.rates[at];
#pragma unroll
      for (float& v : value) v *= factor;
    }
    if constexpr (kWarpgroup) {  // [position][128 bytes], of which 16-byte piece n lies at n ^ (position % 8)
      const int row = int(threadIdx.x) / 32 * kRun + int(threadIdx.x) % 32 / kLanes;
      *typename Stage::Samples{samples}.unit(row + pass * kAtOnce, int(threadIdx.x) % kLanes) = factors_of<T>(value);
    } else {
      *reinterpret_cast<uint4*>(samples + pass * kAtOnce * Stage::Samples::kStride) = factors_of<T>(value);
    }
  }
  /// All passes of a stage, of which the first tap's corners are on their way.
  __device__ __forceinline__ void sample(Corners<T> (&reads)[kPasses], const Stage& stage, int first) const {
    const int lane = int(threadIdx.x) % 32, row = int(threadIdx.x) / 32 * kRun + lane / kLanes;
    T* to = stage.samples.rows + (kWarpgroup ? 0 : row * Stage::Samples::kStride + lane % kLanes * kVec<T>);
#pragma unroll 1
    for (int tap = 0; tap < block.taps; ++tap, to += Stage::kTap) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        store_samples(reads[pass], table(tap), to, first, pass);
        if (tap + 1 < block.taps) load(reads[pass], table(tap + 1), first, pass);
      }
    }
  }
};

}  // namespace ddu::cuda
