#pragma once

// The product of the weight's gradient, from two factors in shared memory, [position][channel], whose depth is the position:
//
//                       64 positions of a half type, 32 of float32                16 channels of each tap, a warp
//                    ┌──────────────────────┐        ┌─────┬─────┬─────┐          ┌─────┬─────┬─────┐
//     64 or 128      │    grad_output^T     │        │tap 0│tap 1│tap 2│  outputs │  0  │  1  │  2  │  32 outputs, a warp
//     outputs        └──────────────────────┘        └─────┴─────┴─────┘          └─────┴─────┴─────┘
//
// Fragments are columns there: half types are turned as they are read (load_turned), and of float32 a fragment's words are
// elements. Eight warps share 64 outputs and 64 channels, sixteen 128 outputs.

#include "../core/warpgroup_mma.cuh"
#include "backward_params.cuh"
#include "factors.cuh"

namespace ddu::cuda {

constexpr int kWeightChannels = 64;  // of a block, of each tap
constexpr int kWeightRun = 32;       // positions of a warp, for which it works out taps at once
template <class T>
constexpr int kStagePositions = 4 * kMmaDepth<T>;  // of a block, at once

/// A block of so many warps: of two taps and 64 outputs a warpgroup, whose products are its own; or of three taps, 8 outputs a
/// warp.
template <int kWarps, bool kWarpgroup>
struct WeightShape {
  static constexpr int kTaps = kWarpgroup ? 2 : 3, kOutputs = (kWarpgroup ? 16 : 8) * kWarps;
};

/// Rows of a factor in shared memory, [position][channel]; for products of warpgroups [64 channels][position][128 bytes],
/// 16-byte piece n at place n ^ (position % 8).
template <class T, int kChannels, bool kWarpgroup>
struct DepthTile {
  // Lanes that read a fragment, and lanes that write rows of 16 bytes, meet no bank twice.
  static constexpr int kStride = kWarpgroup ? 64 : kChannels + 8;
  static constexpr int kBytes = kStagePositions<T> * (kWarpgroup ? kChannels : kStride) * int(sizeof(T));

  T* rows;

  __device__ __forceinline__ uint4* unit(int position, int index) const {
    if constexpr (kWarpgroup) {
      return reinterpret_cast<uint4*>(rows + index / 8 * (kStagePositions<T> * kStride)) + position * 8 +
             ((index ^ position) & 7);
    }
    return reinterpret_cast<uint4*>(rows + position * kStride + index * kVec<T>);
  }
  /// What this lane reads of fragments of 16 channels from `channel` on: the first element, or the row that it names. Words of
  /// a factor A are the first half of the depth for channels g and g + 8, and then the second half; of two factors B, both
  /// halves for channel g, and then for channel g + 8.
  template <bool kFactorA>
  __device__ __forceinline__ const T* of_lane(int channel) const {
    const int lane = int(threadIdx.x) % 32;
    if constexpr (sizeof(T) == 4) return rows + lane % 4 * kStride + channel + lane / 4;
    const int low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    return rows + (lane % 8 + (kFactorA ? high : low)) * kStride + channel + (kFactorA ? low : high);
  }
  template <bool kFactorA>
  __device__ __forceinline__ static void fragment(const T* of_lane, int position, unsigned (&r)[4]) {
    const T* from = of_lane + position * kStride;
    if constexpr (sizeof(T) == 2) {
      load_turned(r, from);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int low = i % 2, high = i / 2;
        r[i] = __float_as_uint(from[(kFactorA ? high : low) * 4 * kStride + (kFactorA ? low : high) * 8]);
      }
    }
  }
};

/// A stage's factors.
template <class T, int kWarps, bool kWarpgroup>
struct WeightStage {
  using Shape = WeightShape<kWarps, kWarpgroup>;
  static constexpr int kOutputs = Shape::kOutputs;
  using Outputs = DepthTile<T, kOutputs, kWarpgroup>;
  using Samples = DepthTile<T, kWeightChannels, kWarpgroup>;
  Outputs outputs;
  Samples samples;                                               // of the first tap
  static constexpr int kTap = Samples::kBytes / int(sizeof(T));  // elements from one tap's samples to the next one's
  static constexpr int kBytes = Outputs::kBytes + Shape::kTaps * Samples::kBytes;

  __device__ __forceinline__ WeightStage(char* shared, int stage)
      : outputs{reinterpret_cast<T*>(shared + stage * kBytes)},
        samples{reinterpret_cast<T*>(shared + stage * kBytes + Outputs::kBytes)} {}
};

/// What a warp has of the sums: 32 outputs by 16 channels of each tap.
template <class T, int kWarps, bool kWarpgroup>
struct WeightSums {
  static constexpr int kTaps = WeightShape<kWarps, false>::kTaps;
  static constexpr int kRows = 2, kColumns = 2;  // products of a tap
  float d[kTaps][kRows][kColumns][4] = {};
  int output, channel;  // the first, within the block's

  __device__ __forceinline__ WeightSums()
      : output(int(threadIdx.x) / 128 * kRows * kMmaRows), channel(int(threadIdx.x) / 32 % 4 * kColumns * kMmaColumns) {}

  /// Of all taps, also of such as the block has not: their sums are nobody's.
  __device__ __forceinline__ void add(const WeightStage<T, kWarps, false>& stage) {
    using Stage = WeightStage<T, kWarps, false>;
    const T *outputs = stage.outputs.template of_lane<true>(output), *samples = stage.samples.template of_lane<false>(channel);
#pragma unroll
    for (int position = 0; position < kStagePositions<T>; position += kMmaDepth<T>) {
      unsigned a[kRows][4];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        Stage::Outputs::template fragment<true>(outputs + row * kMmaRows, position, a[row]);
        if constexpr (sizeof(T) == 4) {
#pragma unroll
          for (unsigned& word : a[row]) word = to_tf32(__uint_as_float(word));
        }
      }
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        unsigned b[4];
        Stage::Samples::template fragment<false>(samples + tap * Stage::kTap, position, b);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          mma<T>(d[tap][row][0], a[row], {b[0], b[1]});
          mma<T>(d[tap][row][1], a[row], {b[2], b[3]});
        }
      }
    }
  }
  __device__ __forceinline__ void finish() const {}
  /// A tap's, to [output][channel], of which there are so many; rows of `stride` are a multiple of 16 bytes.
  __device__ __forceinline__ void store(int tap, float* to, int stride, int outputs, int channels) const {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < kRows * kColumns * 2; ++i) {
      const int row = i / (2 * kColumns), column = i / 2 % kColumns, half = i % 2;
      const int o = output + row * kMmaRows + half * 8 + g, c = channel + column * kMmaColumns + 2 * q;
      if (o >= outputs || c >= channels) continue;
      const auto& sums = d[tap][row][column];
      *reinterpret_cast<float2*>(to + std::int64_t{o} * stride + c) = {sums[2 * half], sums[2 * half + 1]};
    }
  }
};

/// The same of a warpgroup: 64 outputs by 64 channels of each tap, of which a warp has 16 outputs. Products go on until
/// finish().
template <class T, int kWarps>
struct WeightSums<T, kWarps, true> {
  static constexpr int kTaps = WeightShape<kWarps, true>::kTaps;
  float d[kTaps][kWeightChannels / 2] = {};
  int output = int(threadIdx.x) / kWarpgroupThreads * 64;
  static constexpr int channel = 0;

  __device__ __forceinline__ void add(const WeightStage<T, kWarps, true>& stage) {
    using Stage = WeightStage<T, kWarps, true>;
    const char* outputs = reinterpret_cast<const char*>(stage.outputs.unit(0, output / kVec<T>));
    const char* samples = reinterpret_cast<const char*>(stage.samples.rows);
    constexpr int kDepthBytes = kMmaDepth<T> * 128;
    products_begin();
#pragma unroll
    for (int depth = 0; depth < kStagePositions<T> / kMmaDepth<T>; ++depth) {
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        start_turned_product<T>(d[tap], matrix_in_shared(outputs + depth * kDepthBytes),
                                matrix_in_shared(samples + tap * Stage::Samples::kBytes + depth * kDepthBytes));
      }
    }
    products_end();
  }
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (auto& of_tap : d) finish_products(of_tap);
  }
  __device__ __forceinline__ void store(int tap, float* to, int stride, int outputs, int channels) const {
    const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < kWeightChannels / 4; ++i) {
      const int half = i % 2, o = output + int(threadIdx.x) / 32 % 4 * 16 + half * 8 + g, c = i / 2 * 8 + 2 * q;
      if (o >= outputs || c >= channels) continue;
      float2 two{};
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (t == tap) two = {d[t][i / 2 * 4 + half * 2], d[t][i / 2 * 4 + half * 2 + 1]};
      }
      *reinterpret_cast<float2*>(to + std::int64_t{o} * stride + c) = two;
    }
  }
};

}  // namespace ddu::cuda
