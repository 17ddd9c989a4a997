#pragma once

// Sums whose value does not depend on the order of their terms, for a deterministic backward: integers in units that are chosen
// for each channel of each image, from its largest gradient and from how many terms a sum can have. No sum overflows, and what
// a term has below the unit is lost: 2^-38 of the largest for 1024x1024 positions of 3x3 taps, or 2^-30 where units come from a
// part of the gradients (kHeadroomBits). float64 has a second integer for what the first leaves.

#include <cmath>
#include <cstdint>

#include "numeric.cuh"

namespace ddu::cuda {

/// 2^exponent, which must be a normal number of a double.
__device__ __forceinline__ double power_of_two(int exponent) {
  return __longlong_as_double(static_cast<long long>(1023 + exponent) << 52);
}

/// The bits of the largest term in units, where a sum has so many terms.
__host__ __device__ inline int ordered_bits(std::int64_t terms) {
  int bits = 62;
  for (; terms > 0; terms >>= 1) --bits;
  return bits;
}

/// What planar tiles have left has its units from a part of the gradients, which is an eighth of the time. One that is larger
/// than the largest of those by more than so many bits goes another way (planar/deterministic_fallback.cuh).
constexpr int kHeadroomBits = 8;

template <class T>
struct OrderedSums {
  using Acc = accumulator_t<T>;
  using Word = unsigned long long;  // two's complement
  static constexpr int kWords = std::is_same_v<T, double> ? 2 : 1;
  static constexpr bool kOrdered = true;
  static constexpr bool kBulk = true;

  Word* words;                  // as a tensor is laid out; a second array behind the first for kWords == 2; null if not wanted
  std::int64_t array;           // words of each
  unsigned* strange;            // two bits for each sum: a term was +inf, -inf, and both for NaN
  unsigned long long* largest;  // |gradient| that is finite, of each channel of each image, as the bits of a double
  int bits;                     // of the largest term in units
  // For what planar tiles have left; null otherwise: marks of gradients that are beyond what sums have units for.
  unsigned char* fallback_marks;

  /// The exponent of 1 over a channel's unit.
  __device__ __forceinline__ int exponent(std::int64_t plane) const {
    const double size = __longlong_as_double(static_cast<long long>(largest[plane]));
    int of_size = 0;
    frexp(size, &of_size);
    return size == 0 ? kNoExponent : bits - of_size;
  }
  /// Where all are zero: then any other is beyond (is_beyond).
  static constexpr int kNoExponent = 240;
  /// Whether a gradient, scaled, is larger than the largest by more than kHeadroomBits.
  __device__ __forceinline__ bool is_beyond(Acc scaled) const {
    return (scaled < 0 ? -scaled : scaled) > Acc(power_of_two(bits + kHeadroomBits));
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
  /// The same of a word that has no marks.
  __device__ __forceinline__ static Acc scaled(Word word, const Unit& unit) {
    return Acc(double(static_cast<long long>(word)) * unit.factor[0]);
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

/// Ordered sums of a gradient whose planes wide tiles add to (planar/backward.cuh), with the units of all that is left.
struct OrderedPlanes {
  unsigned long long* words;      // as the input lies; null if there are none
  unsigned long long* largest;    // of each channel of each image
  unsigned char* fallback_marks;  // as in OrderedSums

  /// Each sum has at most `terms`.
  template <class T>
  __host__ __device__ OrderedSums<T> sums(std::int64_t terms) const {
    OrderedSums<T> sums{};
    sums.words = words;
    sums.largest = largest;
    sums.bits = ordered_bits(terms) - kHeadroomBits;
    sums.fallback_marks = fallback_marks;
    return sums;
  }
};

}  // namespace ddu::cuda
