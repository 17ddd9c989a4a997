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

#include "backward_params.cuh"
#include "factors.cuh"

namespace ddu::cuda {

constexpr int kWeightTaps = 3;       // of a block
constexpr int kWeightChannels = 64;  // of a block, of each tap
constexpr int kWeightRun = 32;       // positions of a warp, for which it works out taps at once
template <class T>
constexpr int kStagePositions = 4 * kMmaDepth<T>;  // of a block, at once

/// Rows of a factor in shared memory, [position][channel].
template <class T, int kChannels>
struct DepthTile {
  // Lanes that read a fragment, and lanes that write rows of 16 bytes, meet no bank twice.
  static constexpr int kStride = kChannels + 8;
  static constexpr int kBytes = kStagePositions<T> * kStride * int(sizeof(T));

  T* rows;

  __device__ __forceinline__ uint4* unit(int position, int index) const {
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
template <class T, int kWarps>
struct WeightStage {
  static constexpr int kOutputs = 8 * kWarps;
  using Outputs = DepthTile<T, kOutputs>;
  using Samples = DepthTile<T, kWeightChannels>;
  Outputs outputs;
  Samples samples;                                               // of the first tap
  static constexpr int kTap = Samples::kBytes / int(sizeof(T));  // elements from one tap's samples to the next one's
  static constexpr int kBytes = Outputs::kBytes + kWeightTaps * Samples::kBytes;

  __device__ __forceinline__ WeightStage(char* shared, int stage)
      : outputs{reinterpret_cast<T*>(shared + stage * kBytes)},
        samples{reinterpret_cast<T*>(shared + stage * kBytes + Outputs::kBytes)} {}
};

/// What a warp has of the sums: 32 outputs by 16 channels of each tap.
template <class T, int kWarps>
struct WeightSums {
  static constexpr int kRows = 2, kColumns = 2;  // products of a tap
  float d[kWeightTaps][kRows][kColumns][4] = {};
  int output, channel;  // the first, within the block's

  __device__ __forceinline__ WeightSums()
      : output(int(threadIdx.x) / 128 * kRows * kMmaRows), channel(int(threadIdx.x) / 32 % 4 * kColumns * kMmaColumns) {}

  /// Of all taps, also of such as the block has not: their sums are nobody's.
  __device__ __forceinline__ void add(const WeightStage<T, kWarps>& stage) {
    using Stage = WeightStage<T, kWarps>;
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
      for (int tap = 0; tap < kWeightTaps; ++tap) {
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

}  // namespace ddu::cuda
