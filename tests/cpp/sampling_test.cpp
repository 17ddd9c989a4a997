// Sampler, interpolate and slope: the math that every kernel shares.

#include "sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

namespace {

constexpr auto kZeros = ddu::PaddingMode::zeros, kBorder = ddu::PaddingMode::border;

ddu::Axis axis(std::int64_t size, std::int64_t kernel_size, std::int64_t stride = 1, std::int64_t padding = 0,
               std::int64_t dilation = 1) {
  return {size, 1, kernel_size, stride, padding, dilation};
}

template <class Acc>
class Sampling : public testing::Test {};
using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(Sampling, Accumulators);

TYPED_TEST(Sampling, RateOneIsUnfold) {
  for (std::int64_t kernel_size = 1; kernel_size <= 6; ++kernel_size) {
    for (std::int64_t dilation = 1; dilation <= 3; ++dilation) {
      const ddu::Sampler<TypeParam> sampler(axis(1000, kernel_size, 3, 2, dilation), kZeros);
      for (int k = 0; k < kernel_size; ++k) {
        const auto cell = sampler.cell(sampler.base(20), sampler.offset(k), 1);
        EXPECT_EQ(cell.index, 20 * 3 - 2 + k * dilation);
        EXPECT_EQ(cell.fraction, 0);
      }
    }
  }
}

TYPED_TEST(Sampling, PositionsFollowTheFormula) {
  const ddu::Sampler<TypeParam> sampler(axis(1000, 4, 2, 3, 5), kZeros);
  for (int k = 0; k < 4; ++k) {
    for (double rate : {-2.0, 0.0, 0.25, 1.0, 1.75}) {
      const double expected = 50 * 2 - 3 + 1.5 * 5 + (k - 1.5) * 5 * rate;
      const auto cell = sampler.cell(sampler.base(50), sampler.offset(k), static_cast<TypeParam>(rate));
      EXPECT_EQ(cell.index, std::floor(expected));
      EXPECT_EQ(cell.fraction, expected - std::floor(expected));
    }
  }
}

// A call on a part of the output samples what the whole call does.
TYPED_TEST(Sampling, PositionsCountFromTheOrigin) {
  ddu::Axis part = axis(1000, 3, 2, 4, 3);
  const ddu::Sampler<TypeParam> whole(part, kZeros);
  part.origin = 7;
  const ddu::Sampler<TypeParam> sampler(part, kZeros);
  for (std::int32_t position : {0, 1, 50}) EXPECT_EQ(sampler.base(position), whole.base(position + 7));
}

TYPED_TEST(Sampling, FractionsAreAsExactFarFromZeroAsNear) {
  const ddu::Sampler<TypeParam> near(axis(1 << 20, 3), kZeros), far(axis(1 << 28, 3), kZeros);
  for (TypeParam rate : {TypeParam(0.1), TypeParam(1.3), TypeParam(2.7)}) {
    const auto a = near.cell(near.base(5), near.offset(2), rate), b = far.cell(far.base((1 << 27) + 1), far.offset(2), rate);
    EXPECT_EQ(a.fraction, b.fraction);
    EXPECT_EQ(a.index - 5, b.index - (1 << 27) - 1);
  }
}

TYPED_TEST(Sampling, IndicesAreClampedToOutsideThePlane) {
  const ddu::Sampler<TypeParam> sampler(axis(10, 3, 1, 1), kZeros);
  const TypeParam most = std::numeric_limits<TypeParam>::max();
  for (TypeParam rate : {TypeParam(20), TypeParam(1e9), TypeParam(3e9), most}) {
    EXPECT_EQ(sampler.cell(sampler.base(4), sampler.offset(0), rate).index, -2) << rate;
    EXPECT_EQ(sampler.cell(sampler.base(4), sampler.offset(2), rate).index, 10) << rate;
    EXPECT_EQ(sampler.cell(sampler.base(4), sampler.offset(1), rate).index, 4) << rate;
    EXPECT_EQ(sampler.cell(sampler.base(4), sampler.offset(0), -rate).index, 10) << rate;
  }
  // The edges themselves: -1 and size - 1 still touch the image.
  EXPECT_EQ(sampler.cell(sampler.base(4), sampler.offset(0), 5).index, -1);
  EXPECT_EQ(sampler.cell(sampler.base(4), sampler.offset(2), 5).index, 9);
}

/// Value and d(value)/d(rate) at rate `rate` of tap k, in an image of one row that is extended as windows are, and of pixels
/// one by one.
template <class T>
std::pair<T, T> in_window(const ddu::Sampler<T>& sampler, const T* image, int position, int k, T rate) {
  const auto cell = sampler.cell(sampler.base(position), sampler.offset(k), rate);
  const T a = image[sampler.pixel(cell.index)], b = image[sampler.pixel(cell.index + 1)];
  return {ddu::interpolate(a, b, a, b, T(0), cell.fraction),
          ddu::slope(a, b, a, b, T(0), cell.fraction, T(0), sampler.offset(k))};
}
template <class T>
std::pair<T, T> of_pixels(const ddu::Sampler<T>& sampler, const T* image, int position, int k, T rate) {
  const auto cell = sampler.pixels(sampler.base(position), sampler.offset(k), rate);
  const T a = cell.first ? image[cell.index] : T(0), b = cell.second ? image[cell.index + 1] : T(0);
  const ddu::SlopeWeights<T> weights(T(0), cell.fraction, T(0), cell.offset);
  return {ddu::interpolate(a, b, cell.fraction), weights.top * (b - a)};
}

// Outside the image lies its nearest pixel, with derivative 0 below 0 and from the last pixel on.
TYPED_TEST(Sampling, BorderIsTheNearestPixel) {
  using T = TypeParam;
  const T image[] = {3, 7, 5, 2};
  const ddu::Sampler<T> sampler(axis(4, 2, 1, 0), kBorder);  // taps at position + 0.5 -+ 0.5 * rate
  const std::pair<T, std::pair<T, T>> cases[] = {
      {1, {3, -2}},                  // at 0: the slope of the first two pixels, 4, by d(position)/d(rate) = -0.5
      {T(1.5), {3, 0}},              // at -0.25
      {3, {3, 0}},                   // at -1
      {T(3.25), {3, 0}},             // at -1.125
      {T(1e9), {3, 0}},              // far outside
      {T(0.5), {4, -2}},             // at 0.25
      {-5, {2, 0}},                  // at 3, the last pixel
      {T(-4.5), {T(2.75), T(1.5)}},  // at 2.75
      {-7, {2, 0}},                  // at 4
      {T(-1e9), {2, 0}},
      {std::numeric_limits<T>::max(), {3, 0}},
  };
  for (const auto& [rate, expected] : cases) {
    EXPECT_EQ(in_window(sampler, image, 0, 0, rate), expected) << rate;
    EXPECT_EQ(of_pixels(sampler, image, 0, 0, rate), expected) << rate;
  }
  const ddu::Sampler<T> single(axis(1, 3, 1, 1), kBorder);
  for (const T rate : {T(0), T(0.25), T(1), T(-3.5)}) {
    for (int k = 0; k < 3; ++k) {
      EXPECT_EQ(in_window(single, image, 0, k, rate), std::pair(T(3), T(0)));
      EXPECT_EQ(of_pixels(single, image, 0, k, rate), std::pair(T(3), T(0)));
    }
  }
}

// A pixel that is not read has no part in the value: what is beside the nearest one is not touched.
TYPED_TEST(Sampling, BorderReadsNoOtherPixel) {
  using T = TypeParam;
  const T image[] = {3, std::numeric_limits<T>::quiet_NaN(), 2};
  const ddu::Sampler<T> sampler(axis(3, 2, 1, 0), kBorder);
  EXPECT_EQ(of_pixels(sampler, image, 0, 0, T(2)).first, 3);
  EXPECT_EQ(in_window(sampler, image, 0, 0, T(2)).first, 3);
  EXPECT_TRUE(std::isnan(of_pixels(sampler, image, 0, 0, T(1)).first));  // at 0: its cell touches the second pixel
}

TYPED_TEST(Sampling, ZerosLieOutside) {
  using T = TypeParam;
  const ddu::Sampler<T> sampler(axis(4, 2, 1, 0), kZeros);
  const auto pixels = [&](double rate) { return sampler.pixels(sampler.base(0), sampler.offset(0), T(rate)); };
  for (const double rate : {1.0, 0.5, -4.5}) EXPECT_TRUE(pixels(rate).first && pixels(rate).second) << rate;
  EXPECT_TRUE(!pixels(2).first && pixels(2).second && pixels(-5).first && !pixels(-5).second);
  for (const double rate : {3.25, 1e9, -7.0, -1e9}) EXPECT_FALSE(pixels(rate).first || pixels(rate).second) << rate;
  EXPECT_EQ(pixels(1e9).offset, T(-0.5));
}

TYPED_TEST(Sampling, LargestGeometryDoesNotOverflow) {
  const std::int64_t extent = std::int64_t{1} << 28;
  const ddu::Sampler<TypeParam> sampler(axis(extent, 2, extent, extent, extent / 2), kZeros);
  const TypeParam most = std::numeric_limits<TypeParam>::max();
  for (int k = 0; k < 2; ++k) {
    for (TypeParam rate : {-most, TypeParam(0), most}) {
      for (std::int32_t position : {0, 2}) {
        const auto cell = sampler.cell(sampler.base(position), sampler.offset(k), rate);
        EXPECT_GE(cell.index, -2);
        EXPECT_LE(cell.index, extent);
      }
    }
  }
}

// Every offset up to the largest span that make_geometry allows is exact.
TYPED_TEST(Sampling, RateOneIsUnfoldUpToTheLargestSpan) {
  for (const auto& [kernel_size, dilation] : {std::pair{2, 1 << 24}, {2, (1 << 24) - 1}, {4, 5592405}, {(1 << 24) + 1, 1}}) {
    const ddu::Sampler<TypeParam> sampler(axis(1 << 28, kernel_size, 1, 0, dilation), kZeros);
    for (int k : {0, 1, kernel_size / 2, kernel_size - 1}) {
      const auto cell = sampler.cell(sampler.base(7), sampler.offset(k), 1);
      EXPECT_EQ(cell.index, 7 + k * dilation) << kernel_size;
      EXPECT_EQ(cell.fraction, 0) << kernel_size;
    }
  }
}

TYPED_TEST(Sampling, CenteredTaps) {
  const ddu::Sampler<TypeParam> odd(axis(10, 3, 1, 1, 2), kZeros), even(axis(10, 2, 1, 1, 1), kZeros),
      between(axis(10, 4, 1, 1, 2), kZeros);
  for (int k = 0; k < 3; ++k) EXPECT_EQ(odd.centered(k), k == 1);
  for (int k = 0; k < 2; ++k) EXPECT_FALSE(even.centered(k));
  for (int k = 0; k < 4; ++k) EXPECT_FALSE(between.centered(k));
}

// What a gradient gives to the corners is the transpose of what interpolate takes from them.
TYPED_TEST(Sampling, WeightsAreTheTransposeOfInterpolate) {
  using T = TypeParam;
  for (T fy : {T(0), T(0.3), T(0.875)}) {
    for (T fx : {T(0), T(0.6), T(0.125)}) {
      const ddu::Weights<T> weights(fy, fx);
      EXPECT_EQ(weights.a(), ddu::interpolate(T(1), T(0), T(0), T(0), fy, fx));
      EXPECT_EQ(weights.b(), ddu::interpolate(T(0), T(1), T(0), T(0), fy, fx));
      EXPECT_EQ(weights.c(), ddu::interpolate(T(0), T(0), T(1), T(0), fy, fx));
      EXPECT_EQ(weights.d(), ddu::interpolate(T(0), T(0), T(0), T(1), fy, fx));
      const T corners[4] = {weights.a(), weights.b(), weights.c(), weights.d()};
      for (int i = 0; i < 4; ++i) EXPECT_EQ(ddu::corner_weight(i / 2, i % 2, fy, fx), corners[i]);
      const ddu::AxisWeights<T> along(fx);
      EXPECT_EQ(along.first, ddu::interpolate(T(1), T(0), fx));
      EXPECT_EQ(along.second, ddu::interpolate(T(0), T(1), fx));
      EXPECT_EQ(ddu::interpolate(T(3), T(5), fx), ddu::interpolate(T(3), T(5), T(7), T(9), T(0), fx));
    }
  }
}

TYPED_TEST(Sampling, RatesThatAreNotFiniteStillGiveACell) {
  const ddu::Sampler<TypeParam> sampler(axis(10, 3, 1, 1), kZeros);
  using Limits = std::numeric_limits<TypeParam>;
  for (TypeParam rate : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    EXPECT_FALSE(ddu::is_finite(rate));
    for (int k = 0; k < 3; ++k) {
      const auto cell = sampler.cell(sampler.base(4), sampler.offset(k), rate);
      EXPECT_GE(cell.index, -2);
      EXPECT_LE(cell.index, 10);
    }
  }
  EXPECT_TRUE(std::isnan(ddu::nan_unless_finite(Limits::quiet_NaN())));
  EXPECT_TRUE(std::isnan(ddu::nan_unless_finite(-Limits::infinity())));
  EXPECT_EQ(ddu::nan_unless_finite(Limits::max()), 0);
  EXPECT_TRUE(ddu::is_finite(Limits::max()));
  EXPECT_TRUE(ddu::is_finite(-Limits::denorm_min()));
}

TYPED_TEST(Sampling, InterpolationIsExactAtPixels) {
  using T = TypeParam;
  const T a = T(0.1), b = T(1e30), c = T(-7.7), d = T(3);
  EXPECT_EQ(ddu::interpolate(a, b, c, d, T(0), T(0)), a);
  EXPECT_EQ(ddu::interpolate(T(1), T(2), T(10), T(20), T(0.5), T(0.25)), T(0.5 * 1.25 + 0.5 * 12.5));
}

TYPED_TEST(Sampling, SlopeIsTheRightHandDerivative) {
  using T = TypeParam;
  const T a = 3, b = 5, c = 11, d = -2;
  // At a pixel, the cell is the one below and to the right.
  EXPECT_EQ(ddu::slope(a, b, c, d, T(0), T(0), T(1), T(0)), c - a);
  EXPECT_EQ(ddu::slope(a, b, c, d, T(0), T(0), T(0), T(1)), b - a);
  const ddu::SlopeWeights<T> weights(T(0.25), T(0.5), T(2), T(-1));
  EXPECT_EQ(weights.left * (c - a) + weights.right * (d - b) + weights.top * (b - a) + weights.bottom * (d - c),
            ddu::slope(a, b, c, d, T(0.25), T(0.5), T(2), T(-1)));
  // Inside, it is the derivative of interpolate along the tap's way.
  const double step = 1e-4;
  for (double fy : {0.2, 0.7}) {
    for (double fx : {0.1, 0.6}) {
      const auto value = [&](double t) { return ddu::interpolate<double>(3, 5, 11, -2, fy + t * 1.5, fx - t * 2.5); };
      const double expected = (value(step) - value(-step)) / (2 * step);
      EXPECT_NEAR(double(ddu::slope(a, b, c, d, T(fy), T(fx), T(1.5), T(-2.5))), expected, 1e-4);
    }
  }
}

}  // namespace
