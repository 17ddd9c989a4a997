#pragma once

// What a deterministic backward cannot store as windows (deterministic.cuh), nor add to ordered sums (core/ordered_sums.cuh),
// is scattered like the default's, but into sums whose value does not depend on the order of their terms. Each of its three
// phases needs all of the one before; most often the kernel finds nothing marked and ends at once.

#include "../core/dependent_launch.cuh"
#include "../core/fixed_point_sum.cuh"
#include "../core/ordered_sums.cuh"
#include "without_window.cuh"

namespace ddu::cuda {

/// What a tile leaves of a channel.
struct FallbackGradients {
  FallbackMark mark;
  float limit;  // of those that are not beyond; as OrderedSums::is_beyond has it, of gradients that are not scaled

  __device__ __forceinline__ bool operator()(float grad) const {
    return mark == kAllGradients || (is_finite(grad) && fabsf(grad) > limit);
  }
};

/// One of the `blocks` pieces of what tiles leave of one channel. `p` cuts runs of one channel.
template <class T>
struct FallbackBlock {
  static constexpr int kThreads = 256;
  const Params<float>& p;
  const BackwardPointers<T>& tensors;
  const unsigned long long* of_sample;  // OrderedPlanes::largest
  unsigned blocks, block, channel;      // of all images
  const unsigned char* marks;

  __device__ FallbackBlock(const Params<float>& p, const BackwardPointers<T>& tensors, const unsigned long long* of_sample,
                           unsigned blocks, unsigned piece)
      : p(p),
        tensors(tensors),
        of_sample(of_sample),
        blocks(blocks),
        block(piece % blocks),
        channel(piece / blocks),
        marks(tensors.fallback_marks + std::int64_t{channel} * (1 + std::int64_t{p.by_tiles.divisor})) {}

  __device__ std::int64_t plane() const { return channel * p.pixels(); }
  __device__ FixedPointSums sums() const {
    return {tensors.high + plane(), tensors.low + plane(),
            __longlong_as_double(static_cast<long long>(tensors.largest[channel])), p.taps() * p.positions()};
  }
  /// Calls body(position, its columns' gradients, which of them count) for this thread's positions in the marked tiles.
  template <class Body>
  __device__ void for_each_position(Body body) const {
    const double largest = __longlong_as_double(static_cast<long long>(of_sample[channel]));
    int bits = 0;
    frexp(largest, &bits);
    const float limit = largest == 0 ? 0.f : float(power_of_two(bits + kHeadroomBits));
    for (unsigned tile = block; tile < p.by_tiles.divisor; tile += blocks) {
      if (!marks[1 + tile]) continue;
      const WorkTile work(p, tile, channel);
      body(Position<float>(p, work, tensors.map), tensors.grad_output + channel * p.taps() * p.positions(),
           FallbackGradients{FallbackMark(marks[1 + tile]), limit});
    }
  }
  /// Calls body(index in the plane) for this thread's pixels.
  template <class Body>
  __device__ void for_each_pixel(Body body) const {
    const std::int64_t step = std::int64_t{blocks} * kThreads;
    for (std::int64_t i = std::int64_t{block} * kThreads + threadIdx.x; i < p.pixels(); i += step) body(i);
  }
};

/// The first phase clears the sums, and finds the largest gradient that goes into them.
struct PrepareSums {
  template <class T>
  __device__ __forceinline__ static void run(const FallbackBlock<T>& block) {
    static __shared__ unsigned long long block_largest;
    if (threadIdx.x == 0) block_largest = 0;
    block.for_each_pixel([&](std::int64_t i) {
      block.tensors.high[block.plane() + i] = 0;
      block.tensors.low[block.plane() + i] = 0;
    });
    float largest = 0;
    block.for_each_position([&](const Position<float>& position, const T* columns, const FallbackGradients& counts) {
      if (!position.sampled()) return;
      for (int column = 0; column < block.p.taps(); ++column) {
        const float grad = widen(columns[column * block.p.positions() + position.index]);
        if (is_finite(grad) && counts(grad)) largest = fmaxf(largest, fabsf(grad));
      }
    });
    __syncthreads();
    // Floats that are not negative have the order of their bits.
    if (largest > 0) atomicMax(&block_largest, static_cast<unsigned long long>(__double_as_longlong(double(largest))));
    __syncthreads();
    if (threadIdx.x == 0 && block_largest > 0) atomicMax(block.tensors.largest + block.channel, block_largest);
  }
};

/// The second phase scatters into the sums. What is not finite goes to the gradient itself, and stays there whatever is added.
struct ScatterIntoSums {
  template <class T>
  __device__ __forceinline__ static void run(const FallbackBlock<T>& block) {
    const FixedPointSums sums = block.sums();
    float* grad_input = block.tensors.grad_input + block.plane();
    block.for_each_position([&](const Position<float>& position, const T* columns, const FallbackGradients& counts) {
      const auto add = [&](std::int64_t pixel, float term) {
        if (is_finite(term)) {
          sums.add(pixel, term);
        } else {
          atomicAdd(grad_input + pixel, term);
        }
      };
      scatter_without_window(block.p, position, columns, 1, add, counts);
    });
  }
};

/// The last phase adds the sums to the gradient. Every NaN becomes the same one: its bits would tell which came first.
struct AddSums {
  template <class T>
  __device__ __forceinline__ static void run(const FallbackBlock<T>& block) {
    const FixedPointSums sums = block.sums();
    float* grad_input = block.tensors.grad_input + block.plane();
    block.for_each_pixel([&](std::int64_t i) {
      const float sum = float(grad_input[i] + sums.value(i));
      grad_input[i] = sum == sum ? sum : NAN;
    });
  }
};

/// All phases; `pieces` of each.
template <class T>
__global__ void __launch_bounds__(FallbackBlock<T>::kThreads)
    fallback_kernel(const Params<float> p, const BackwardPointers<T> tensors, const unsigned long long* of_sample,
                    unsigned blocks, unsigned pieces) {
  // Marks are final: the kernel before this one lets nobody start early, so its blocks have ended, and one of them has waited
  // for the kernels that set marks. Most often there is none; then one block waits, so that what waits for this kernel waits
  // for those before it too.
  FallbackHead& head = *FallbackHead::of(tensors.fallback_marks);
  let_next_start();
  const bool any = head.any != 0;
  if (any || blockIdx.x == 0) wait_for_previous();
  if (!any) return;
  const SharedWork work{head.counters};
  const auto run = [&](auto phase, unsigned piece) {
    const FallbackBlock<T> block(p, tensors, of_sample, blocks, piece);
    if (block.marks[0]) phase.run(block);
  };
  for (unsigned piece; (piece = work.take(0)) < pieces; work.finish(0)) run(PrepareSums{}, piece);
  work.wait(0, pieces);
  for (unsigned piece; (piece = work.take(1)) < pieces; work.finish(1)) run(ScatterIntoSums{}, piece);
  work.wait(1, pieces);
  for (unsigned piece = blockIdx.x; piece < pieces; piece += gridDim.x) run(AddSums{}, piece);
}

}  // namespace ddu::cuda
