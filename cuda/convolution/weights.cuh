#pragma once

// Weights in the order in which warps take them to their products, made anew by every call:
//
//   slices   [weight group][block of outputs][block of channels][tap]   a slice each, zero where there is no weight
//   slice    [half][warp that shares the band][8 products][lane]        16 bytes each: a lane's fragments of two products of B
//
// Word k of those 16 bytes is the weight of word k of what the same lane q samples of that half, 16 bytes too: channels
// half * 64 bytes + q * 16 bytes on. Of the outputs, product i of a warp has in its column 2q + e what a lane needs to end with
// 16 bytes of neighbouring outputs: output_of_column.

#include "../core/async_copy.cuh"
#include "../core/dependent_launch.cuh"
#include "../core/mma.cuh"
#include "params.cuh"

namespace ddu::cuda {

constexpr int kProducts = kWarpOutputs / kMmaColumns;  // side by side, of a warp

/// Which of a warp's outputs is column `column` of product `product`.
template <class T>
__host__ __device__ constexpr int output_of_column(int product, int column) {
  constexpr int kTogether = kVec<T> / 2;  // products that make a lane's 16 bytes
  return product / kTogether * 4 * kVec<T> + column / 2 * kVec<T> + product % kTogether * 2 + column % 2;
}

/// Sizes of the weight, as pack_weights_kernel reads it.
struct WeightSizes {
  int taps, units, unit_channels, unit_blocks;
  int group_channels, group_outputs, output_blocks;  // of a weight group
  std::int64_t vectors;                              // of 16 bytes, of all slices
};

/// Two neighbouring elements of a half type in a word, or one float as TF32.
template <class T>
__device__ __forceinline__ unsigned factor_word(const T (&element)[4 / sizeof(T)]) {
  if constexpr (sizeof(T) == 4) {
    return to_tf32(element[0]);
  } else {
    return reinterpret_cast<const unsigned short&>(element[0]) | unsigned{reinterpret_cast<const unsigned short&>(element[1])}
                                                                     << 16;
  }
}

template <class T, int kShare>
__global__ void __launch_bounds__(256) pack_weights_kernel(const WeightSizes sizes, const T* weight, uint4* slices) {
  let_next_start();
  wait_for_previous();
  constexpr int kOfWord = 4 / int(sizeof(T)), kSliceVectors = BlockShape<kShare>::kSliceBytes / 16;
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t n = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < sizes.vectors; n += step) {
    int in_slice = int(n % kSliceVectors);
    std::int64_t slice = n / kSliceVectors;
    const int tap = int(slice % sizes.taps);
    slice /= sizes.taps;
    const int block = int(slice % (sizes.units * sizes.unit_blocks));
    slice /= sizes.units * sizes.unit_blocks;
    const int output_block = int(slice % sizes.output_blocks), weight_group = int(slice / sizes.output_blocks);

    const int lane = in_slice % 32, product = in_slice / 32 % kProducts;
    in_slice /= 32 * kProducts;
    const int warp = in_slice % kShare, half = in_slice / kShare;
    const int output = (output_block * kShare + warp) * kWarpOutputs + output_of_column<T>(product, lane / 4);
    // The first of the lane's channels within its unit.
    const int first = (block % sizes.unit_blocks * 8 + half * 4 + lane % 4) * kVec<T>;
    const T* from = weight +
                    ((std::int64_t{weight_group} * sizes.group_outputs + output) * sizes.group_channels +
                     block / sizes.unit_blocks * sizes.unit_channels + first) *
                        sizes.taps +
                    tap;
    Bits16<T> packed;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      T element[kOfWord];
#pragma unroll
      for (int e = 0; e < kOfWord; ++e) {
        const int channel = k * kOfWord + e;
        const bool there = output < sizes.group_outputs && first + channel < sizes.unit_channels;
        element[e] = there ? __ldg(from + std::int64_t{channel} * sizes.taps) : T(0.f);
      }
      packed.word[k] = factor_word(element);
    }
    slices[n] = packed.whole;
  }
}

/// The weights of a step and of the next one in shared memory.
template <int kShare>
struct WeightSlices {
  static constexpr int kVectors = BlockShape<kShare>::kSliceBytes / 16;
  uint4* shared;
  const uint4* from;  // the first step's

  /// Starts the copy of a step's slice.
  __device__ __forceinline__ void load(int step) const {
    const uint4* source = from + std::int64_t{step} * kVectors;
    uint4* const to = shared + step % 2 * kVectors;
    static_assert(kVectors % BlockShape<kShare>::kThreads == 0, "all threads copy");
#pragma unroll
    for (int i = 0; i < kVectors; i += BlockShape<kShare>::kThreads) {
      copy_async(to + i + threadIdx.x, source + i + threadIdx.x);
    }
  }
  /// A lane's fragments of a warp's products in a half; 32 vectors further are those of the next product.
  __device__ __forceinline__ const uint4* fragments(int step, int half, int column) const {
    return shared + step % 2 * kVectors + ((half * kShare + column) * kProducts * 32) + int(threadIdx.x) % 32;
  }
};

}  // namespace ddu::cuda
