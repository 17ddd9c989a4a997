#pragma once

// The forward kernel, for any rates, kernel sizes, channels and outputs: params.cuh draws how a block is made.

#include "samples.cuh"

namespace ddu::cuda {

template <class T>
struct ConvolutionPointers {
  const T* input;       // channels-last, each unit in whole vectors
  const uint4* slices;  // of weights
  const void* map;
  const T* mask;  // or null
  const T* bias;  // or null
  T* output;
  StrangePixels strange;
  const unsigned* left;  // of each image: whether it is left to this kernel; null: all are
};

/// A warp's sums: of a band, 64 outputs. Of 16 positions, product i has columns 2q and 2q + 1 of column g's rows.
struct BandSums {
  float of[kBandRows / 2][kProducts][4];

  __device__ __forceinline__ BandSums() {
#pragma unroll
    for (auto& rows : of) {
#pragma unroll
      for (auto& product : rows) {
#pragma unroll
        for (float& sum : product) sum = 0;
      }
    }
  }
  /// Adds a half of a step: samples of all rows of the band times weights, for so many outputs, a multiple of half of them.
  template <class T, int kShare>
  __device__ __forceinline__ void add(const Fragments<kShare>& fragments, const WeightSlices<kShare>& weights, int step,
                                      int half, int column, int outputs) {
    PairOfRows rows[kBandRows / 2];
#pragma unroll
    for (int m = 0; m < kBandRows / 2; ++m) rows[m] = fragments.get(step, m, half);
    const char* const columns = weights.columns(step, column);
#pragma unroll
    for (int first = 0; first < kProducts; first += kProducts / 2) {
      if (first * kMmaColumns >= outputs) break;
#pragma unroll
      for (int i = first; i < first + kProducts / 2; ++i) {
        const uint4 b = load_columns(columns + i * (kMmaColumns * kStepBytes), half);
#pragma unroll
        for (int m = 0; m < kBandRows / 2; ++m) {
          const auto& [first_a, second_a] = rows[m].of;
          mma<T>(of[m][i], {first_a.x, first_a.y, first_a.z, first_a.w}, {b.x, b.y});
          mma<T>(of[m][i], {second_a.x, second_a.y, second_a.z, second_a.w}, {b.z, b.w});
        }
      }
    }
  }
  template <class T, int kShare>
  __device__ __forceinline__ void store(const ConvolutionParams& p, const ConvolutionWork<kShare>& work, const T* bias,
                                        T* output) const;
};

/// A lane has, of each position of its column, every fourth run of 16 bytes of outputs.
template <class T, int kShare>
__device__ __forceinline__ void BandSums::store(const ConvolutionParams& p, const ConvolutionWork<kShare>& work, const T* bias,
                                                T* output) const {
  constexpr int kN = kVec<T>;
  const int lane = int(threadIdx.x) % 32, ox = work.band_x + lane / 4;
#pragma unroll
  for (int run = 0; run < kWarpOutputs / (4 * kN); ++run) {
    const int first = work.first_output() + (run * 4 + lane % 4) * kN;
    const int there = p.group_outputs - first;  // outputs from the first on
    const std::int64_t channel = std::int64_t{work.weight_group} * p.group_outputs + first;
    if (there <= 0 || ox >= p.out_width) continue;
    float added[kN] = {};
    if (bias) {
#pragma unroll
      for (int c = 0; c < kN; ++c) added[c] = c < there ? widen(__ldg(bias + channel + c)) : 0;
    }
#pragma unroll
    for (int r = 0; r < kBandRows; ++r) {
      const int oy = work.band_y + r;
      if (oy >= p.out_height) continue;
      float value[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) value[c] = of[r / 2][run * (kN / 2) + c / 2][r % 2 * 2 + c % 2] + added[c];
      T* to = output + work.image * p.output.image + channel * p.output.channel +
              (std::int64_t{oy} * p.out_width + ox) * p.output.position;
      if (p.output.channel_vectors) {
        store_vector(to, value);
        continue;
      }
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (c < there) to[c * p.output.channel] = narrow<T>(value[c]);
      }
    }
  }
}

/// Samples a warp's rows of a step, from entry `t` of each position in the table of taps.
template <int kShare, class T>
__device__ __forceinline__ void sample_rows(const ConvolutionParams& p, const ConvolutionWork<kShare>& work, const T* image,
                                            const ConvolutionTaps<kShare>& taps, int t, int shift, const ChannelBlock& block,
                                            int step, Fragments<kShare>& fragments) {
  using Of = BlockShape<kShare>;
  const auto table = taps.table();
  const int g = int(threadIdx.x) % 32 / 4, odd = block.halves > 1 ? g % 2 : 0;
#pragma unroll
  for (int pair = 0; pair < Of::kRows / 2; ++pair) {
#pragma unroll
    for (int taken = 0; taken < Of::kHalves; ++taken) {
      if (taken + work.first_half() >= block.halves) continue;
      const int half = (taken + work.first_half()) ^ odd;
      uint4 row[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int entry = t * taps.kRun + (pair * 2 + r) * kBandWidth + g;
        const auto where = table.where[entry];
        row[r] = sample_half(p, image + (where >> 8), unsigned(where) >> shift & 15, table.weights[entry], block, half);
      }
      fragments.store_half(step, work.first_pair() + pair, taken, half, PairOfRows(row[0], row[1]));
    }
    fragments.sort(pair, odd);
  }
}

/// Whether there is an image that is left to this kernel; the same in all warps.
__device__ __forceinline__ bool any_left(const unsigned* left, int images) {
  unsigned found = 0;
  for (int i = int(threadIdx.x) % 32; i < images; i += 32) found |= left[i];
  return __any_sync(~0u, found != 0);
}

template <class T, int kShare>
__global__ void __launch_bounds__(BlockShape<kShare>::kThreads, BlockShape<kShare>::kBlocksOfMultiprocessor)
    convolution_kernel(const ConvolutionParams p, const ConvolutionPointers<T> tensors) {
  if constexpr (kHasMma) {
    using Of = BlockShape<kShare>;
    extern __shared__ char shared[];
    wait_for_previous();
    if (tensors.left && !any_left(tensors.left, p.images)) return;
    const unsigned blocks = p.by_tiles.divisor * p.by_output_blocks.divisor * p.by_weight_groups.divisor * p.images;
#pragma unroll 1
    for (unsigned index = blockIdx.x; index < blocks; index += gridDim.x) {
      const ConvolutionWork<kShare> work(p, index);
      if (tensors.left && !tensors.left[work.image]) continue;
      const std::int64_t first_step =
          (std::int64_t{work.weight_group} * p.by_output_blocks.divisor + work.output_block) * p.steps();
      const WeightSlices<kShare> weights{reinterpret_cast<uint4*>(shared),
                                         tensors.slices + first_step * WeightSlices<kShare>::kVectors};
      Fragments<kShare> fragments(shared + 2 * Of::kSliceBytes, work.band);
      const ConvolutionTaps<kShare> taps{shared + Of::kTables};
      const int shift = tensors.strange.corner_shift(work.image);
      const int outputs = p.group_outputs - work.first_output();
      BandSums sums;
      weights.load(0);
      int step = 0;
#pragma unroll 1
      for (int n = 0; n < p.units * p.unit_blocks; ++n) {
        const ChannelBlock block(p, work, n, kVec<T>);
        if (block.first) taps.load_rates(p, work, tensors.map, block.group);
        const T* channels = tensors.input + work.image * p.rows.image + block.at;
#pragma unroll 1
        for (int tap = 0; tap < p.taps; ++tap, ++step) {
          const int t = tap % taps.kAtOnce;
          if (t == 0) taps.fill(p, work, tensors.mask, block.head, tap);
          sample_rows<kShare>(p, work, channels, taps, t, shift, block, step, fragments);
          wait_for_copies();
          __syncthreads();  // as drawn in params.cuh
          if (step + 1 < p.steps()) weights.load(step + 1);
          if (outputs <= 0) continue;
          sums.template add<T>(fragments, weights, step, 0, work.column, outputs);
          if (block.halves > 1) sums.template add<T>(fragments, weights, step, 1, work.column, outputs);
        }
      }
      unsigned again = index;
      ask_in_loop(again);
      sums.template store<T>(p, ConvolutionWork<kShare>(p, again), tensors.bias, tensors.output);
      __syncthreads();  // all have done with the last step's weights
    }
  }
}

}  // namespace ddu::cuda
