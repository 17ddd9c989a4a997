// Conversions of the half types against definitions worked out from the formats in double precision.

#include "half.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace {

struct Format {
  int exponent_bits, mantissa_bits;
};
constexpr Format kFloat16{5, 10}, kBfloat16{8, 7};

double decode(std::uint32_t bits, Format format) {
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> format.mantissa_bits) & ((1 << format.exponent_bits) - 1);
  const double mantissa = bits & ((1u << format.mantissa_bits) - 1), sign = bits & 0x8000u ? -1 : 1;
  if (exponent == (1 << format.exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - format.mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << format.mantissa_bits), exponent - bias - format.mantissa_bits);
}

/// Rounds to the nearest of all values of a format, ties to the even one. Infinity stands one step beyond the largest.
class Rounding {
 public:
  explicit Rounding(Format format) {
    const std::uint32_t infinity = ((1u << format.exponent_bits) - 1) << format.mantissa_bits;
    for (std::uint32_t bits = 0; bits < infinity; ++bits) values_.push_back(decode(bits, format));
    values_.push_back(2 * values_.back() - values_[values_.size() - 2]);
  }

  /// Bits for a value that is not NaN.
  std::uint32_t operator()(double value) const {
    const std::uint32_t sign = std::signbit(value) ? 0x8000u : 0;
    const double magnitude = std::fabs(value);
    const auto above = std::lower_bound(values_.begin(), values_.end(), magnitude);
    if (above == values_.end()) return sign | static_cast<std::uint32_t>(values_.size() - 1);
    auto index = static_cast<std::uint32_t>(above - values_.begin());
    if (index > 0) {
      const double up = values_[index] - magnitude, down = magnitude - values_[index - 1];
      if (down < up || (down == up && index % 2 == 1)) --index;
    }
    return sign | index;
  }

  std::vector<float> interesting() const {
    std::vector<float> points;
    for (std::size_t i = 0; i + 1 < values_.size(); ++i) {
      const float value = static_cast<float>(values_[i]), middle = static_cast<float>((values_[i] + values_[i + 1]) / 2);
      for (float point : {value, middle}) {
        for (float towards : {0.0f, 0.0f, std::numeric_limits<float>::infinity()}) {
          points.push_back(point);
          points.push_back(-point);
          point = std::nextafter(point, towards);
        }
      }
    }
    std::mt19937 random(1);
    for (int i = 0; i < 200000; ++i) points.push_back(ddu::float_of(static_cast<std::uint32_t>(random())));
    for (float point : {0.0f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max(),
                        std::numeric_limits<float>::infinity()}) {
      points.push_back(point);
      points.push_back(-point);
    }
    points.erase(std::remove_if(points.begin(), points.end(), [](float p) { return std::isnan(p); }), points.end());
    return points;
  }

 private:
  std::vector<double> values_;
};

template <class Half, class Widen>
void check_widen(Format format, Widen widen) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = decode(bits, format);
    const float wide = widen(Half{static_cast<std::uint16_t>(bits)});
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
    } else {
      EXPECT_EQ(double(wide), expected) << bits;
      EXPECT_EQ(std::signbit(wide), bits >= 0x8000u) << bits;
    }
  }
}

template <class Narrow>
void check_narrow(Format format, Narrow narrow) {
  const Rounding rounding(format);
  for (float value : rounding.interesting()) EXPECT_EQ(narrow(value).bits, rounding(value)) << std::hexfloat << value;
  const std::uint32_t magnitude_of_infinity = rounding(std::numeric_limits<double>::infinity());
  for (std::uint32_t bits : {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffc12345u}) {
    EXPECT_GT(narrow(ddu::float_of(bits)).bits & 0x7fffu, magnitude_of_infinity) << std::hex << bits;
  }
}

TEST(Float16, WidenIsExact) {
  check_widen<ddu::float16>(kFloat16, [](ddu::float16 h) { return ddu::widen(h); });
}
TEST(Float16, PortableWidenIsExact) { check_widen<ddu::float16>(kFloat16, ddu::widen_portable); }
TEST(Bfloat16, WidenIsExact) {
  check_widen<ddu::bfloat16>(kBfloat16, [](ddu::bfloat16 h) { return ddu::widen(h); });
}
TEST(Float16, NarrowRoundsToNearestEven) {
  check_narrow(kFloat16, [](float value) { return ddu::narrow<ddu::float16>(value); });
}
TEST(Float16, PortableNarrowRoundsToNearestEven) { check_narrow(kFloat16, ddu::narrow_portable); }
TEST(Bfloat16, NarrowRoundsToNearestEven) {
  check_narrow(kBfloat16, [](float value) { return ddu::narrow<ddu::bfloat16>(value); });
}

template <class Half>
void check_runs() {
  std::vector<Half> values(65536);
  for (std::uint32_t i = 0; i < 65536; ++i) values[i].bits = static_cast<std::uint16_t>(i);
  for (int count : {0, 1, 7, 8, 15, 16, 17, 65536}) {
    std::vector<float> wide(static_cast<std::size_t>(count) + 1, 42.0f);
    ddu::widen(values.data(), wide.data(), count);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      const float one = ddu::widen(values[i]);
      EXPECT_TRUE(std::isnan(one) ? std::isnan(wide[i]) : wide[i] == one) << i;
    }
    EXPECT_EQ(wide.back(), 42.0f);
    std::vector<Half> back(static_cast<std::size_t>(count) + 1, Half{4242});
    ddu::narrow(wide.data(), back.data(), count);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      EXPECT_TRUE(std::isnan(wide[i]) || back[i].bits == values[i].bits) << i;
    }
    EXPECT_EQ(back.back().bits, 4242);
  }
}

TEST(Float16, RunsAreLikeSingleValues) { check_runs<ddu::float16>(); }
TEST(Bfloat16, RunsAreLikeSingleValues) { check_runs<ddu::bfloat16>(); }

}  // namespace
