#pragma once

// Kernels over every element of an array: zeros to add to, sums to a gradient's type, arrays of sums to one.

#include "bulk.cuh"
#include "dependent_launch.cuh"
#include "integer.h"
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

/// Sets sums to zero; `aligned` says that every fourth lies on a multiple of four.
template <class Acc>
__global__ void __launch_bounds__(ElementRuns::kThreads) clear_kernel(Acc* sums, std::int64_t count, bool aligned) {
  let_next_start();
  const ElementRuns runs(count);
  if (!aligned || !runs.whole()) return runs.for_each([&](std::int64_t i) { sums[i] = 0; });
#pragma unroll
  for (int i = 0; i < ElementRuns::kRuns; ++i) *reinterpret_cast<Vec<Acc, 4>*>(sums + runs.run(i)) = {};
}

/// The same in bulk, of `bytes` from `sums` on, both multiples of 16: a warp of each block has the device copy zeros. It leaves
/// multiprocessors to the next kernel, whose blocks start beside it.
struct BulkClear {
  static constexpr int kThreads = 32;
  static constexpr int kZeros = 8192;  // bytes of shared memory
};
template <class Acc>
__global__ void __launch_bounds__(BulkClear::kThreads) clear_in_bulk_kernel(Acc* sums, std::int64_t bytes) {
  static __shared__ uint4 zeros[BulkClear::kZeros / 16];
  let_next_start();
  for (int i = int(threadIdx.x); i < BulkClear::kZeros / 16; i += BulkClear::kThreads) zeros[i] = {0, 0, 0, 0};
  publish_to_bulk();
  __syncwarp();
  if (threadIdx.x != 0) return;
  const std::int64_t step = std::int64_t{gridDim.x} * BulkClear::kZeros;
#pragma unroll 1
  for (std::int64_t at = std::int64_t{blockIdx.x} * BulkClear::kZeros; at < bytes; at += step)
    store_bulk(reinterpret_cast<unsigned char*>(sums) + at, zeros, int(min(bytes - at, std::int64_t{BulkClear::kZeros})));
  commit_bulk();
  wait_for_bulk_writes();
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
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    Acc sum = 0;
    for (std::int64_t array = 0; array < arrays; ++array) sum += sums[array * count + i];
    gradient[i] = narrow<M>(sum);
  }
}

}  // namespace ddu::cuda
