#pragma once

// What the tiles of a deterministic backward leave over: scattered like the rest, but into sums whose value does not depend on
// the order of their terms.

#include "direct.cuh"

namespace ddu::cuda {

/// Sums in fixed point, 96 bits wide: a signed high word and a low one. Their unit follows from the largest gradient of a pack
/// and from how many taps there are, so that none overflows. That leaves a term 94 bits less those of the number of taps: 70
/// for 1024x1024 positions of 3x3. What is smaller than the largest by more than that counts as nothing.
struct ExactSums {
  unsigned long long* high;
  unsigned* low;
  double units;  // in 1, a power of two

  __device__ ExactSums(unsigned long long* high, unsigned* low, double largest, std::int64_t terms) : high(high), low(low) {
    int size, count;
    frexp(largest, &size);
    frexp(double(terms), &count);
    units = ldexp(1.0, min(62 - count - size, 1023));
  }

  /// `term` is finite.
  __device__ void add(std::int64_t i, double term) const {
    const double scaled = term * units, whole = floor(scaled);
    const auto fraction = static_cast<unsigned long long>(rint((scaled - whole) * 4294967296.0));  // 2^32 at most
    const auto part = static_cast<unsigned>(fraction);
    unsigned long long carry = fraction >> 32;
    if (part != 0 && atomicAdd(low + i, part) > ~part) ++carry;
    const unsigned long long sum = static_cast<unsigned long long>(static_cast<long long>(whole)) + carry;
    if (sum != 0) atomicAdd(high + i, sum);
  }
  __device__ double value(std::int64_t i) const {
    return (double(static_cast<long long>(high[i])) + low[i] * (1 / 4294967296.0)) / units;
  }
};

/// One of the `blocks` blocks that share what is left over of a pack. `p` has jobs of one pack.
template <class T>
struct LeftOver {
  using Acc = accumulator_t<T>;
  static constexpr int kThreads = 256;
  const Layout<Acc>& p;
  const BackwardPointers<T>& tensors;
  unsigned blocks, block, rest;
  Job pack;  // with the first tile
  const unsigned char* marks;
  unsigned long long* largest;  // gradient, as the bits of a double

  __device__ LeftOver(const Layout<Acc>& p, const BackwardPointers<T>& tensors, unsigned blocks)
      : p(p),
        tensors(tensors),
        blocks(blocks),
        block(blockIdx.x % blocks),
        rest(blockIdx.x / blocks),
        pack(p, 0, rest),
        marks(tensors.left_over ? tensors.left_over + left_over_index(p, pack.image, pack.group, pack.part) : nullptr),
        largest(tensors.largest + rest) {}

  __device__ bool nothing() const { return marks && !marks[0]; }
  __device__ std::int64_t plane() const { return pack.plane(p) * p.pixels(); }
  __device__ ExactSums sums() const {
    return {tensors.high + plane(), tensors.low + plane(), __longlong_as_double(static_cast<long long>(*largest)),
            p.taps() * p.positions()};
  }
  /// Calls body(position, its columns' gradients) for this thread's positions in the tiles that left something over.
  template <class Body>
  __device__ void for_each_position(Body body) const {
    for (unsigned tile = block; tile < p.by_tiles.divisor; tile += blocks) {
      if (marks && !marks[1 + tile]) continue;
      const Job job(p, tile, rest);
      body(Position<Acc>(p, job, tensors.map), tensors.grad_output + job.plane(p) * p.taps() * p.positions());
    }
  }
  /// Calls body(index in the planes of the pack) for this thread's pixels.
  template <class Body>
  __device__ void for_each_pixel(Body body) const {
    const std::int64_t count = pack.channels * p.pixels(), step = std::int64_t{blocks} * kThreads;
    for (std::int64_t i = std::int64_t{block} * kThreads + threadIdx.x; i < count; i += step) body(i);
  }
};

/// Clears the sums, and finds the largest gradient that goes into them.
template <class T>
__global__ void __launch_bounds__(LeftOver<T>::kThreads)
    prepare_kernel(const Layout<accumulator_t<T>> p, const BackwardPointers<T> tensors, unsigned blocks) {
  using Acc = accumulator_t<T>;
  static __shared__ unsigned long long most;
  wait_for_previous();
  const LeftOver<T> left(p, tensors, blocks);
  if (left.nothing()) return;
  if (threadIdx.x == 0) most = 0;
  left.for_each_pixel([&](std::int64_t i) {
    tensors.high[left.plane() + i] = 0;
    tensors.low[left.plane() + i] = 0;
  });
  Acc mine = 0;
  left.for_each_position([&](const Position<Acc>& at, const T* columns) {
    if (!at.sampled()) return;
    for (int column = 0; column < left.pack.channels * p.taps(); ++column) {
      const Acc grad = widen(columns[column * p.positions() + at.index]), size = grad < 0 ? -grad : grad;
      if (is_finite(size) && size > mine) mine = size;
    }
  });
  __syncthreads();
  // Floats that are not negative have the order of their bits.
  if (mine > 0) atomicMax(&most, static_cast<unsigned long long>(__double_as_longlong(double(mine))));
  __syncthreads();
  if (threadIdx.x == 0 && most > 0) atomicMax(left.largest, most);
}

/// Scatters into the sums. What is not finite goes to the gradient itself, and stays there whatever is added.
template <class T>
__global__ void __launch_bounds__(LeftOver<T>::kThreads)
    scatter_kernel(const Layout<accumulator_t<T>> p, const BackwardPointers<T> tensors, unsigned blocks) {
  using Acc = accumulator_t<T>;
  wait_for_previous();
  const LeftOver<T> left(p, tensors, blocks);
  if (left.nothing()) return;
  const ExactSums sums = left.sums();
  Acc* grad_input = tensors.grad_input + left.plane();
  left.for_each_position([&](const Position<Acc>& at, const T* columns) {
    scatter_direct(p, at, columns, left.pack.channels, [&](std::int64_t pixel, Acc term) {
      if (is_finite(term)) {
        sums.add(pixel, term);
      } else {
        atomicAdd(grad_input + pixel, term);
      }
    });
  });
}

/// Adds the sums to the gradient. Every NaN becomes the same one: its bits would tell which came first.
template <class T>
__global__ void __launch_bounds__(LeftOver<T>::kThreads)
    add_sums_kernel(const Layout<accumulator_t<T>> p, const BackwardPointers<T> tensors, unsigned blocks) {
  using Acc = accumulator_t<T>;
  wait_for_previous();
  const LeftOver<T> left(p, tensors, blocks);
  if (left.nothing()) return;
  const ExactSums sums = left.sums();
  Acc* grad_input = tensors.grad_input + left.plane();
  left.for_each_pixel([&](std::int64_t i) {
    const Acc sum = Acc(grad_input[i] + sums.value(i));
    grad_input[i] = sum == sum ? sum : Acc(NAN);
  });
}

}  // namespace ddu::cuda
