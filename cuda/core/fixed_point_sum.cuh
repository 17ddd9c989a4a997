#pragma once

// Sums whose value does not depend on the order of their terms.

#include <cmath>
#include <cstdint>

namespace ddu::cuda {

/// An array of sums in fixed point, 96 bits wide: a signed high word of 64 bits and a low one of 32.
///
///        high                            low
///     |s.......................|        ........|      unit of high: 1 / units
///
/// The unit follows from the largest term and from how many terms there are, so that no sum overflows. That leaves a term 94
/// bits less those of the number of terms: 70 for 1024x1024 positions of 3x3 taps. What is smaller than the largest by more
/// than that counts as nothing.
struct FixedPointSums {
  unsigned long long* high;
  unsigned* low;
  double units;  // in 1, a power of two

  __device__ FixedPointSums(unsigned long long* high, unsigned* low, double largest, std::int64_t terms)
      : high(high), low(low) {
    int size, count;
    frexp(largest, &size);
    frexp(double(terms), &count);
    units = ldexp(1.0, min(62 - count - size, 1023));
  }

  /// `term` is finite.
  __device__ void add(std::int64_t i, double term) const {
    const double scaled = term * units, whole = floor(scaled);
    const auto fraction = static_cast<unsigned long long>(rint((scaled - whole) * 4294967296.0));  // 2^32 at most
    const auto low_part = static_cast<unsigned>(fraction);
    unsigned long long carry = fraction >> 32;
    if (low_part != 0 && atomicAdd(low + i, low_part) > ~low_part) ++carry;
    const unsigned long long sum = static_cast<unsigned long long>(static_cast<long long>(whole)) + carry;
    if (sum != 0) atomicAdd(high + i, sum);
  }
  __device__ double value(std::int64_t i) const {
    return (double(static_cast<long long>(high[i])) + low[i] * (1 / 4294967296.0)) / units;
  }
};

}  // namespace ddu::cuda
