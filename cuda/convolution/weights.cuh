#pragma once

// Weights in the order in which warps take them to their products, made anew by every call:
//
//   slices   [weight group][block of outputs][block of channels][tap]   a slice each, zero where there is no weight
//   slice    [column: an output of the block][128 bytes]                as load_columns() in core/mma.cuh wants it
//
// Depth k of a slice has in its words q and q + 4 the weights of what lane q of a quad samples: of the 16 bytes that it takes
// of half k / 2, words 2 * (k % 2) and 2 * (k % 2) + 1. Of the outputs, product i of a warp has in its column 2q + e what a
// lane needs to end with 16 bytes of neighbouring outputs: output_of_column.

#include "../channels_last/conversion.cuh"
#include "../core/async_copy.cuh"
#include "../core/dependent_launch.cuh"
#include "../core/mma.cuh"
#include "own_groups.cuh"
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
  int group_outputs, output_blocks;  // of a weight group
  OwnGroups own;
  std::int64_t vectors;  // of 16 bytes, of all slices
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

/// Which images the fast kernel has to leave to the other one, and why they may have to be left (square.cuh).
struct ImagesLeft {
  unsigned* left = nullptr;  // of each image, not zero if it is left; null where all are the other kernel's
  StrangePixels strange;
  int images = 0;
};

/// `outputs` of a block; they and the channels of a step are what a slice has.
template <class T>
__global__ void __launch_bounds__(256)
    pack_weights_kernel(const WeightSizes sizes, int outputs, const T* weight, uint4* slices, const ImagesLeft images) {
  wait_for_previous();
  let_next_start();  // what it reads before it waits for this kernel was there before
  constexpr int kOfWord = 4 / int(sizeof(T)), kPieces = kStepBytes / 16;
  const std::int64_t first_thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  if (images.left) {  // a warp for each image
    for (std::int64_t i = first_thread / 32; i < images.images; i += step / 32) {
      const bool strange = images.strange.blocks && images.strange.corner_shift(int(i)) == StrangePixels::kInside;
      if (threadIdx.x % 32 == 0) images.left[i] = strange;
    }
  }
  for (std::int64_t n = first_thread; n < sizes.vectors; n += step) {
    const int piece = int(n % kPieces), column = int(n / kPieces % outputs);
    std::int64_t slice = n / kPieces / outputs;
    const int tap = int(slice % sizes.taps);
    slice /= sizes.taps;
    const int block = int(slice % (sizes.units * sizes.unit_blocks));
    slice /= sizes.units * sizes.unit_blocks;
    const int output_block = int(slice % sizes.output_blocks), weight_group = int(slice / sizes.output_blocks);
    const int output = output_block * outputs + output_of_column<T>(column / kMmaColumns, column % kMmaColumns);
    const int depth = piece / 2;
    Bits16<T> packed;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int vector = block % sizes.unit_blocks * kPieces + depth / 2 * 4 + q;  // of 16 bytes, that lane q takes
      const int first = vector * kVec<T> + (depth % 2 * 2 + piece % 2) * kOfWord;  // of the word's channels within its unit
      const std::int64_t row = (std::int64_t{weight_group} * sizes.group_outputs + output) * sizes.own.channels();
      T element[kOfWord];
#pragma unroll
      for (int e = 0; e < kOfWord; ++e) {
        const int own = sizes.own.channel(output, block / sizes.unit_blocks * sizes.unit_channels + first + e);
        const bool there = output < sizes.group_outputs && first + e < sizes.unit_channels && own >= 0;
        element[e] = there ? __ldg(weight + (row + own) * sizes.taps + tap) : T(0.f);
      }
      packed.word[q] = factor_word(element);
    }
    slices[n - piece + (piece ^ (column % kMmaColumns))] = packed.whole;
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
  /// The columns of a warp's products; 1024 bytes further are those of the next product.
  __device__ __forceinline__ const char* columns(int step, int column) const {
    return reinterpret_cast<const char*>(shared + step % 2 * kVectors) + column * (kWarpOutputs * kStepBytes);
  }
};

}  // namespace ddu::cuda
