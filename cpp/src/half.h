#pragma once

// The two half types as storage: arithmetic is always float32. Conversions round to nearest even.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "accumulator.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ddu {

struct float16 {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// float16 without hardware conversion.
inline float widen_portable(float16 value) {
  // Exponent and mantissa move into float32's places; the product repairs the bias, subnormals included.
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const float scaled = float_of(magnitude) * float_of(0x77800000u);  // 2^112
  const bool special = magnitude >= 0x0f800000u;                     // infinity or NaN keep the whole exponent
  return float_of(sign | (special ? magnitude | 0x7f800000u : bits_of(scaled)));
}

inline float16 narrow_portable(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, rounded by an addition that aligns the last bit
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(bfloat16 value) { return float_of(std::uint32_t{value.bits} << 16); }
inline float widen(float16 value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  return widen_portable(value);
#endif
}

template <class T>
T narrow(accumulator_t<T> value);
template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline double narrow<double>(double value) {
  return value;
}
template <>
inline bfloat16 narrow<bfloat16>(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(value != value ? 0x7fc0u : rounded)};
}
template <>
inline float16 narrow<float16>(float value) {
#if defined(__F16C__)
  const __m128i packed = _mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT);  // _cvtss_sh is not C++ in clang
  return {static_cast<std::uint16_t>(_mm_cvtsi128_si32(packed))};
#else
  return narrow_portable(value);
#endif
}

/// Runs of values, which do not overlap. Compilers vectorise the loops, but not over the scalar instructions for float16.
template <class T>
void widen(const T* values, accumulator_t<T>* wide, int count) {
  if constexpr (std::is_same_v<T, accumulator_t<T>>) {
    std::memcpy(wide, values, static_cast<std::size_t>(count) * sizeof(T));
    return;
  }
  int i = 0;
  if constexpr (std::is_same_v<T, float16>) {
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
      _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i))));
    }
#endif
  }
  for (; i < count; ++i) wide[i] = widen(values[i]);
}
template <class T>
void narrow(const accumulator_t<T>* wide, T* values, int count) {
  int i = 0;
  if constexpr (std::is_same_v<T, float16>) {
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
  }
  for (; i < count; ++i) values[i] = narrow<T>(wide[i]);
}

}  // namespace ddu
