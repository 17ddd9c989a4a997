#pragma once

// Sums whose value does not depend on the order of their terms, for a deterministic backward: integers in units that are chosen
// for each channel of each image, from its largest gradient and from how many terms a sum can have. No sum overflows, and what
// a term has below the unit is lost: 2^-44 of the largest for 1024x1024 positions of 3x3 taps. float64 has a second integer for
// what the first leaves.

#include "../core/dependent_launch.cuh"
#include "scatter.cuh"

namespace ddu::cuda {

/// 2^exponent, which must be a normal number of a double.
__device__ __forceinline__ double power_of_two(int exponent) {
  return __longlong_as_double(static_cast<long long>(1023 + exponent) << 52);
}

template <class T>
struct OrderedSums {
  using Acc = accumulator_t<T>;
  using Word = unsigned long long;  // two's complement
  static constexpr int kWords = std::is_same_v<T, double> ? 2 : 1;
  static constexpr bool kOrdered = true;
  static constexpr bool kBulk = true;

  Word* words;         // as channels-last tensors are; a second array behind the first for kWords == 2; null if not wanted
  std::int64_t array;  // words of each
  unsigned* strange;   // two bits for each sum: a term was +inf, -inf, and both for NaN
  unsigned long long* largest;  // |gradient| that is finite, of each channel of each image, as the bits of a double
  int bits;                     // of the largest term in units

  /// The exponent of 1 over a channel's unit.
  __device__ __forceinline__ int exponent(std::int64_t plane) const {
    const double size = __longlong_as_double(static_cast<long long>(largest[plane]));
    int of_size = 0;
    frexp(size, &of_size);
    return bits - of_size;
  }
  __device__ __forceinline__ void mark(std::int64_t sum, Acc term) const {
    const unsigned kind = term != term ? 3 : term > 0 ? 1 : 2;
    atomicOr(strange + sum / 16, kind << (sum % 16 * 2));
  }
  /// A channel's unit: one power of two alone may be too small a number of a double.
  struct Unit {
    double factor[kWords];
  };
  __device__ __forceinline__ Unit unit(std::int64_t plane) const {
    const int e = -exponent(plane);
    if constexpr (kWords == 2) {
      return {{power_of_two(e / 2), power_of_two(e - e / 2)}};
    } else {
      return {{power_of_two(e)}};
    }
  }
  /// Of this sum and the next ones, up to the end of 16.
  __device__ __forceinline__ unsigned marks(std::int64_t sum) const { return strange[sum / 16] >> (sum % 16 * 2); }
  /// `mark` is the lowest of the sum's marks.
  __device__ __forceinline__ Acc value(std::int64_t sum, const Unit& unit, unsigned mark) const {
    double value = double(static_cast<long long>(words[sum]));
    if constexpr (kWords == 2) value += double(static_cast<long long>(words[array + sum])) * power_of_two(-bits);
#pragma unroll
    for (int i = 0; i < kWords; ++i) value *= unit.factor[i];
    const unsigned kind = mark & 3;
    return kind == 0 ? Acc(value) : kind == 3 ? Acc(NAN) : kind == 1 ? Acc(INFINITY) : -Acc(INFINITY);
  }

  /// What one lane's channels are multiplied by: two powers of two, since one alone may be too large a number.
  template <int kN>
  struct Lane {
    Acc factor[2][kN];

    __device__ Lane(const OrderedSums& sums, std::int64_t plane, int channels) {
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        const int e = sums.words && c < channels ? sums.exponent(plane + c) : 0;
        factor[0][c] = Acc(power_of_two(e / 2));
        factor[1][c] = Acc(power_of_two(e - e / 2));
      }
    }
    __device__ __forceinline__ void scale(Acc (&grad)[kN]) const {
#pragma unroll
      for (int c = 0; c < kN; ++c) grad[c] = grad[c] * factor[0][c] * factor[1][c];
    }
  };
  template <int kN>
  __device__ __forceinline__ void convert(const Acc (&term)[kN], Word (&word)[kWords][kN], const Lane<kN>&) const {
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      if constexpr (kWords == 1) {
        word[0][c] = Word(__float2ll_rn(term[c]));
      } else {
        const long long whole = __double2ll_rn(term[c]);
        word[0][c] = Word(whole);
        word[1][c] = Word(__double2ll_rn((term[c] - double(whole)) * power_of_two(bits)));
      }
    }
  }
};

/// Finds the largest finite |gradient| of each channel of each image that has a marked tile; `blocks` blocks share a plane of
/// `count` elements.
template <class T>
__global__ void __launch_bounds__(256)
    largest_kernel(const TileMarks tiles, int group_channels, const T* grad_output, std::int64_t count, Divider by_blocks,
                   bool aligned, unsigned long long* largest) {
  using Acc = accumulator_t<T>;
  static __shared__ unsigned long long found;
  let_next_start();
  if (tiles.nothing_left()) return;
  wait_for_previous();
  unsigned block = blockIdx.x;
  const unsigned plane = by_blocks.take(block);
  if (!tiles.any(std::int64_t{plane / unsigned(group_channels)} * tiles.tiles, tiles.tiles)) return;
  const T* from = grad_output + plane * count;
  if (threadIdx.x == 0) found = 0;
  Acc of_thread = 0;
  const auto take = [&](Acc value) {
    const Acc size = value < 0 ? -value : value;
    if (is_finite(size) && size > of_thread) of_thread = size;
  };
  constexpr int kN = kVec<T>;
  const std::int64_t step = std::int64_t{by_blocks.divisor} * 256 * kN;
#pragma unroll 4
  for (std::int64_t i = (std::int64_t{block} * 256 + threadIdx.x) * kN; i < count; i += step) {
    const int there = int(min(count - i, std::int64_t{kN}));
    const Bits16<T> bits = aligned ? load_positions<true>(from + i, there) : load_positions<false>(from + i, there);
#pragma unroll
    for (int j = 0; j < kN; ++j) take(bits.get(j));
  }
  __syncthreads();
  // Floats that are not negative have the order of their bits.
  if (of_thread > 0) atomicMax(&found, static_cast<unsigned long long>(__double_as_longlong(double(of_thread))));
  __syncthreads();
  if (threadIdx.x == 0 && found > 0) atomicMax(largest + plane, found);
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
