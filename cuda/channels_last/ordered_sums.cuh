#pragma once

// What a deterministic backward does around its ordered sums (core/ordered_sums.cuh): it looks for the largest gradients, from
// which units follow, and turns sums into a channels-last gradient.

#include "../core/dependent_launch.cuh"
#include "../core/ordered_sums.cuh"
#include "scatter.cuh"

namespace ddu::cuda {

/// A search for the largest finite |gradient| of each channel of each image. Several blocks share such a plane.
template <class T>
struct LargestSearch {
  const T* grad_output;
  std::int64_t count;           // elements of a plane
  unsigned long long* largest;  // of each plane, as the bits of a double; zero before
  Divider by_blocks;            // of a plane
  unsigned blocks;
  bool aligned;  // planes start at multiples of 16 bytes
  bool sample;   // one of kSample runs of 512 bytes is enough

  static constexpr int kSample = 8;
  static constexpr int kThreads = 256;

  /// What block `index` of them does; `wanted(plane, block of the plane)` says whether the plane counts, the same in all
  /// threads.
  template <class Wanted>
  __device__ __forceinline__ void run(unsigned index, Wanted wanted) const {
    using Acc = accumulator_t<T>;
    constexpr int kN = kVec<T>;
    static __shared__ unsigned long long found;
    unsigned block = index;
    const unsigned plane = by_blocks.take(block);
    if (!wanted(plane, block)) return;
    const T* from = grad_output + plane * count;
    if (threadIdx.x == 0) found = 0;
    Acc of_thread = 0;
    const std::int64_t step = std::int64_t{by_blocks.divisor} * kThreads, first = std::int64_t{block} * kThreads + threadIdx.x;
#pragma unroll 4
    for (std::int64_t vector = first; vector * (sample ? kN * kSample : kN) < count; vector += step) {
      const std::int64_t i = (sample ? sampled(vector) : vector) * kN;
      if (i >= count) continue;
      const int there = int(min(count - i, std::int64_t{kN}));
      const Bits16<T> bits = aligned ? load_positions<true>(from + i, there) : load_positions<false>(from + i, there);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const Acc value = bits.get(j), size = value < 0 ? -value : value;
        if (is_finite(size) && size > of_thread) of_thread = size;
      }
    }
    __syncthreads();
    // Floats that are not negative have the order of their bits.
    if (of_thread > 0) atomicMax(&found, static_cast<unsigned long long>(__double_as_longlong(double(of_thread))));
    __syncthreads();
    if (threadIdx.x == 0 && found > 0) atomicMax(largest + plane, found);
  }

 private:
  /// One run of kSample, another from one to the next: rows of positions are often such runs.
  __device__ __forceinline__ static std::int64_t sampled(std::int64_t vector) {
    const std::int64_t run = vector / 32;
    return (run * kSample + run * 3 % kSample) * 32 + vector % 32;
  }
};

/// All planes.
template <class T>
__global__ void __launch_bounds__(LargestSearch<T>::kThreads) largest_kernel(const LargestSearch<T> search) {
  search.run(blockIdx.x, [](unsigned, unsigned) { return true; });
}

/// The gradient from sums, both channels-last. `planes` counts channels of an image.
template <class T>
__global__ void __launch_bounds__(256)
    ordered_to_rows_kernel(const OrderedSums<T> sums, std::int64_t count, std::int64_t image, int channels, T* gradient) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    gradient[i] = narrow<T>(sums.value(i, sums.unit(i / image * channels + i % channels), sums.marks(i)));
  }
}

}  // namespace ddu::cuda
