#pragma once

// Kernels over every element of an array: zeros to add to, sums to a gradient's type, arrays of sums to one.

#include "dependent_launch.cuh"
#include "integer.h"
#include "memory.cuh"
#include "vec.cuh"

namespace ddu::cuda {

/// Where one thread of an elementwise kernel has its elements: several runs of four, all loaded at once, so that their loads
/// overlap.
struct ElementRuns {
  static constexpr int kRuns = 4;
  static constexpr int kThreads = 256;
  static constexpr int kBlock = 4 * kRuns * kThreads;  // elements of a block
  std::int64_t first, count;

  __device__ explicit ElementRuns(std::int64_t elements)
      : first(std::int64_t{blockIdx.x} * kBlock + 4 * threadIdx.x), count(elements) {}
  /// The first element of a run.
  __device__ std::int64_t run(int i) const { return first + 4 * kThreads * i; }
  /// Whether all runs have four elements.
  __device__ bool whole() const { return run(kRuns - 1) + 4 <= count; }
  /// Calls body(element) for those there are, one by one.
  template <class Body>
  __device__ void for_each(Body body) const {
    for (int i = 0; i < 4 * kRuns; ++i) {
      if (const std::int64_t element = run(i / 4) + i % 4; element < count) body(element);
    }
  }
  /// How many blocks serve `count` elements.
  static std::int64_t blocks(std::int64_t count) { return ceil_div(count, kBlock); }
};

/// Sets sums to zero, by few blocks, beside which those of the next kernel start: it also asks L2 for the `map` that they read
/// first. `aligned` says that every fourth sum lies on a multiple of four.
template <class Acc>
__global__ void __launch_bounds__(ElementRuns::kThreads)
    clear_kernel(Acc* sums, std::int64_t count, bool aligned, const void* map, std::int64_t map_bytes) {
  let_next_start();
  prefetch_lines(map, map_bytes);
  const std::int64_t step = std::int64_t{gridDim.x} * ElementRuns::kThreads,
                     first = std::int64_t{blockIdx.x} * ElementRuns::kThreads + threadIdx.x;
  const std::int64_t fours = aligned ? count / 4 : 0;
#pragma unroll 8
  for (std::int64_t i = first; i < fours; i += step) reinterpret_cast<Vec<Acc, 4>*>(sums)[i] = {};
  for (std::int64_t i = 4 * fours + first; i < count; i += step) sums[i] = 0;
}

/// Rounds sums, which lie aligned, to a half type; `aligned` says that the gradient does too.
template <class T>
__global__ void __launch_bounds__(ElementRuns::kThreads)
    convert_kernel(const float* sums, T* gradient, std::int64_t count, bool aligned) {
  wait_for_previous();
  const ElementRuns runs(count);
  if (!aligned || !runs.whole()) return runs.for_each([&](std::int64_t i) { gradient[i] = narrow<T>(sums[i]); });
  float4 v[ElementRuns::kRuns];
#pragma unroll
  for (int i = 0; i < ElementRuns::kRuns; ++i) v[i] = *reinterpret_cast<const float4*>(sums + runs.run(i));
#pragma unroll
  for (int i = 0; i < ElementRuns::kRuns; ++i) {
    *reinterpret_cast<Vec<T, 4>*>(gradient + runs.run(i)) = {narrow<T>(v[i].x), narrow<T>(v[i].y), narrow<T>(v[i].z),
                                                             narrow<T>(v[i].w)};
  }
}

/// Adds up `arrays` arrays of `count` sums, one behind the other, in their order.
template <class M, class Acc>
__global__ void add_arrays_kernel(const Acc* sums, M* gradient, std::int64_t count, std::int64_t arrays) {
  wait_for_previous();
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    Acc sum = 0;
    for (std::int64_t array = 0; array < arrays; ++array) sum += sums[array * count + i];
    gradient[i] = narrow<M>(sum);
  }
}

}  // namespace ddu::cuda
