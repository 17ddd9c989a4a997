#pragma once

// What a deterministic backward cannot store as windows (deterministic.cuh) is scattered like the default's, but into sums
// whose value does not depend on the order of their terms. That takes three launches of fallback_kernel, one a phase, since
// each needs all of the one before; most often they find nothing marked and end at once.

#include "../core/dependent_launch.cuh"
#include "../core/fixed_point_sum.cuh"
#include "without_window.cuh"

namespace ddu::cuda {

/// One of the `blocks` blocks that share what tiles leave of one vector of channels. `p` cuts runs of one vector.
template <class T>
struct FallbackBlock {
  using Acc = accumulator_t<T>;
  static constexpr int kThreads = 256;
  const Params<Acc>& p;
  const BackwardPointers<T>& tensors;
  unsigned blocks, block, rest;
  WorkTile first;  // the vector of channels, in the first tile
  const unsigned char* marks;
  unsigned long long* largest;  // gradient, as the bits of a double

  __device__ FallbackBlock(const Params<Acc>& p, const BackwardPointers<T>& tensors, unsigned blocks)
      : p(p),
        tensors(tensors),
        blocks(blocks),
        block(blockIdx.x % blocks),
        rest(blockIdx.x / blocks),
        first(p, 0, rest),
        marks(tensors.fallback_marks ? tensors.fallback_marks + fallback_index(p, first.image, first.group, first.channel_block)
                                     : nullptr),
        largest(tensors.largest + rest) {}

  __device__ bool nothing() const { return marks && !marks[0]; }
  __device__ std::int64_t plane() const { return first.plane(p) * p.pixels(); }
  __device__ FixedPointSums sums() const {
    return {tensors.high + plane(), tensors.low + plane(), __longlong_as_double(static_cast<long long>(*largest)),
            p.taps() * p.positions()};
  }
  /// Calls body(position, its columns' gradients) for this thread's positions in the marked tiles.
  template <class Body>
  __device__ void for_each_position(Body body) const {
    for (unsigned tile = block; tile < p.by_tiles.divisor; tile += blocks) {
      if (marks && !marks[1 + tile]) continue;
      const WorkTile work(p, tile, rest);
      body(Position<Acc>(p, work, tensors.map), tensors.grad_output + work.plane(p) * p.taps() * p.positions());
    }
  }
  /// Calls body(index in the planes of the vector) for this thread's pixels.
  template <class Body>
  __device__ void for_each_pixel(Body body) const {
    const std::int64_t count = first.channels * p.pixels(), step = std::int64_t{blocks} * kThreads;
    for (std::int64_t i = std::int64_t{block} * kThreads + threadIdx.x; i < count; i += step) body(i);
  }
};

/// The first phase clears the sums, and finds the largest gradient that goes into them.
struct PrepareSums {
  template <class T>
  __device__ __forceinline__ static void run(const FallbackBlock<T>& block) {
    using Acc = accumulator_t<T>;
    static __shared__ unsigned long long block_largest;
    if (threadIdx.x == 0) block_largest = 0;
    block.for_each_pixel([&](std::int64_t i) {
      block.tensors.high[block.plane() + i] = 0;
      block.tensors.low[block.plane() + i] = 0;
    });
    Acc largest = 0;
    block.for_each_position([&](const Position<Acc>& position, const T* columns) {
      if (!position.sampled()) return;
      for (int column = 0; column < block.first.channels * block.p.taps(); ++column) {
        const Acc grad = widen(columns[column * block.p.positions() + position.index]), size = grad < 0 ? -grad : grad;
        if (is_finite(size) && size > largest) largest = size;
      }
    });
    __syncthreads();
    // Floats that are not negative have the order of their bits.
    if (largest > 0) atomicMax(&block_largest, static_cast<unsigned long long>(__double_as_longlong(double(largest))));
    __syncthreads();
    if (threadIdx.x == 0 && block_largest > 0) atomicMax(block.largest, block_largest);
  }
};

/// The second phase scatters into the sums. What is not finite goes to the gradient itself, and stays there whatever is added.
struct ScatterIntoSums {
  template <class T>
  __device__ __forceinline__ static void run(const FallbackBlock<T>& block) {
    using Acc = accumulator_t<T>;
    const FixedPointSums sums = block.sums();
    Acc* grad_input = block.tensors.grad_input + block.plane();
    block.for_each_position([&](const Position<Acc>& position, const T* columns) {
      scatter_without_window(block.p, position, columns, block.first.channels, [&](std::int64_t pixel, Acc term) {
        if (is_finite(term)) {
          sums.add(pixel, term);
        } else {
          atomicAdd(grad_input + pixel, term);
        }
      });
    });
  }
};

/// The last phase adds the sums to the gradient. Every NaN becomes the same one: its bits would tell which came first.
struct AddSums {
  template <class T>
  __device__ __forceinline__ static void run(const FallbackBlock<T>& block) {
    using Acc = accumulator_t<T>;
    const FixedPointSums sums = block.sums();
    Acc* grad_input = block.tensors.grad_input + block.plane();
    block.for_each_pixel([&](std::int64_t i) {
      const Acc sum = Acc(grad_input[i] + sums.value(i));
      grad_input[i] = sum == sum ? sum : Acc(NAN);
    });
  }
};

/// One phase of the fallback.
template <class T, class Phase>
__global__ void __launch_bounds__(FallbackBlock<T>::kThreads)
    fallback_kernel(const Params<accumulator_t<T>> p, const BackwardPointers<T> tensors, unsigned blocks) {
  let_next_start();
  const FallbackBlock<T> block(p, tensors, blocks);
  // Marks are final since the kernel before add_windows_kernel. Most often there is none; then one block waits, so that what
  // waits for this kernel waits for those before it too.
  const bool nothing = block.nothing();
  if (!nothing || blockIdx.x == 0) wait_for_previous();
  if (!nothing) Phase::run(block);
}

}  // namespace ddu::cuda
