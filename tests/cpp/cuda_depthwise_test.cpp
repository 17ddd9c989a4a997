// The CUDA kernels of a depthwise convolution, those of aggregate with weights of channels, against the definition.

#include "conv2d_call.h"
#include "ddu/error.h"

namespace {

using conv2d_call::backward;
using conv2d_call::forward;
using conv2d_call::How;
using cuda_call::any_rates;
using cuda_call::Environment;
using cuda_call::error;
using cuda_call::has_device;
using cuda_call::near_rates;
using cuda_call::Types;
using oracle::ConvCase;
using oracle::ConvGradients;

// One and several blocks of channels, vectors of them and none, a part of one; groups and heads that cross; two and three
// outputs of a channel; one channel; more taps than shared memory has room for; strides, even kernels, border; warps without
// positions; maps and masks for all images; a part of the positions.
const ConvCase kCases[] = {
    {{2, 64, 6, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 64, 64, 0, false, true},
    {{2, 12, 9, 7, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}}, 24, 12, 2, false, true},
    {{1, 144, 3, 7, {{3, 2}, {1, 1}, {1, 1}, {2, 1}, 1}}, 144, 144, 1, false, true},
    {{2, 5, 8, 9, {{4, 4}, {2, 2}, {3, 3}, {1, 1}, 1, ddu::PaddingMode::border}, true}, 15, 5, 1, true},
    {{1, 1, 8, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 1, 1},
    {{1, 96, 5, 6, {{7, 5}, {1, 1}, {3, 2}, {1, 1}, 2}}, 96, 96},
    {{1, 32, 4, 9, {{3, 3}, {1, 1}, {2, 2}, {2, 2}, 2, ddu::PaddingMode::border}}, 32, 32, 16, false, true},
    {{2, 8, 9, 11, {{3, 3}, {1, 2}, {1, 1}, {1, 1}, 2, ddu::PaddingMode::zeros, true, {3, 1}}, false, {4, 5}}, 8, 8},
};

template <class Given>
class CudaDepthwise : public testing::Test {
 protected:
  using P = oracle::ConvProblem<typename Given::T, typename Given::M>;

  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
  /// The output, and every gradient that is wanted.
  static void expect(const P& problem, const ConvGradients& expected, const How& how) {
    SCOPED_TRACE(testing::Message() << (how.channels_last ? "channels last" : "planes") << ", shift " << how.shift
                                    << ", wanted " << how.input << how.weight << how.map << how.mask
                                    << (how.deterministic ? ", deterministic" : ""));
    const auto actual = backward(problem, how);
    if (how.input) {
      EXPECT_LE(error(actual.input, expected.input), 1) << "input";
    }
    if (how.weight) {
      EXPECT_LE(error(actual.weight, expected.weight), 1) << "weight";
    }
    if (how.map) {
      EXPECT_LE(error(actual.map, expected.map), 1) << "map";
    }
    if (how.mask) {
      EXPECT_LE(error(actual.mask, expected.mask), 1) << "mask";
    }
  }
};
TYPED_TEST_SUITE(CudaDepthwise, cuda_call::Every);

TYPED_TEST(CudaDepthwise, AgainstTheOracle) {
  for (const ConvCase& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    ddu::Conv2dGeometry geometry = c.geometry();
    geometry.allow_tf32 = false;  // which nothing here rounds to
    for (const bool deterministic : {false, true})
      ASSERT_TRUE(ddu::cuda::conv2d_backward_supported(geometry, TestFixture::P::types(), deterministic));
    typename TestFixture::P problem(c, near_rates);
    problem.c = geometry;
    const std::vector<oracle::Sum> output = output_of(problem);
    const ConvGradients gradients = oracle::gradients_of(problem);
    for (const bool channels_last : {false, true}) {
      EXPECT_LE(error(forward(problem, {channels_last}), output), 1) << (channels_last ? "channels last" : "planes");
      this->expect(problem, gradients, {channels_last});
    }
    How how{(&c - kCases) % 2 == 0};
    how.deterministic = true;
    this->expect(problem, gradients, how);
  }
}

TYPED_TEST(CudaDepthwise, RatesThatAreFarOrNotFinite) {
  const Environment backwards("DDU_EMULATION_BACKWARDS", "1");  // the other order of threads, where they are emulated
  const typename TestFixture::P problem(kCases[1], any_rates);
  EXPECT_LE(error(forward(problem, {}), output_of(problem)), 1);
  this->expect(problem, oracle::gradients_of(problem), {});
}

TYPED_TEST(CudaDepthwise, TensorsMayStartAnywhere) {
  for (const int which : {0, 6}) {
    const typename TestFixture::P problem(kCases[which], near_rates);
    const std::vector<oracle::Sum> output = output_of(problem);
    const ConvGradients gradients = oracle::gradients_of(problem);
    for (const bool channels_last : {false, true}) {
      EXPECT_LE(error(forward(problem, {channels_last, 1}), output), 1) << "case " << which;
      this->expect(problem, gradients, {channels_last, 1});
    }
  }
}

using CudaDepthwiseFloat = CudaDepthwise<Types<float, float>>;

/// The weight's gradient of so many taps is summed in parts, as the memory of blocks' sums would be many images.
TEST_F(CudaDepthwiseFloat, ManyTaps) {
  const P problem({{1, 64, 4, 4, {{13, 11}, {1, 1}, {12, 11}, {1, 1}, 1}}, 64, 64, 1}, near_rates);
  const ConvGradients expected = oracle::gradients_of(problem);
  How how{true};
  expect(problem, expected, how);
  how.deterministic = true;
  expect(problem, expected, how);
}

TEST_F(CudaDepthwiseFloat, OnlyWhatIsWanted) {
  const P problem(kCases[1], near_rates);
  const ConvGradients expected = oracle::gradients_of(problem);
  for (const unsigned wanted : {0u, 1u, 2u, 4u, 8u, 13u})
    expect(problem, expected, {wanted % 3 == 1, 0, (wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0, (wanted & 8) != 0});
}

TEST_F(CudaDepthwiseFloat, ValuesThatAreNotFinite) {
  const double strange[] = {NAN, INFINITY, -INFINITY};
  How how;
  how.map = false;  // differences of infinities
  for (const bool deterministic : {false, true}) {
    how.channels_last = how.deterministic = deterministic;
    P pixels(kCases[0], near_rates), gradients(kCases[0], near_rates), weights(kCases[1], near_rates);
    for (std::int64_t i = 0; i < 3; ++i) {
      pixels.input.set(i * 577 % std::int64_t(pixels.input.size()), strange[i]);
      gradients.grad_output.set(i * 1000, strange[i]);
      weights.weight.set(i * 20, strange[i]);
    }
    for (const P* problem : {&pixels, &gradients, &weights}) {
      EXPECT_LE(error(forward(*problem, {how.channels_last}), output_of(*problem)), 1);
      expect(*problem, oracle::gradients_of(*problem), how);
    }
  }
}

TEST_F(CudaDepthwiseFloat, Repeats) {
  for (const int which : {0, 3, 5}) {
    const P problem(kCases[which], near_rates);
    How how;
    how.deterministic = true;
    const auto once = backward(problem, how);
    const Environment backwards("DDU_EMULATION_BACKWARDS", "1");
    const auto again = backward(problem, how);
    EXPECT_EQ(once.input, again.input);
    EXPECT_EQ(once.map, again.map);
    EXPECT_EQ(once.mask, again.mask);
    EXPECT_EQ(once.weight, again.weight);
    how.deterministic = how.input = false;  // the weight's is always so
    EXPECT_EQ(backward(problem, how).weight, backward(problem, how).weight);
  }
}

TEST_F(CudaDepthwiseFloat, NothingToDo) {
  ConvCase c = kCases[3];  // a map and a mask that no image has: their gradients are zero
  c.sizes.batch = 0;
  const P problem(c, near_rates);
  EXPECT_EQ(forward(problem, {}).size(), 0u);
  expect(problem, oracle::gradients_of(problem), {});
}

TEST_F(CudaDepthwiseFloat, WhatIsNotServed) {
  ConvCase c = kCases[0];
  EXPECT_TRUE(ddu::cuda::conv2d_supported(c.geometry(), P::types()));
  c.outputs = 64 * 64;  // each would sample anew
  EXPECT_FALSE(ddu::cuda::conv2d_supported(c.geometry(), P::types()));
  c = kCases[0];
  c.weight_groups = 32;
  ddu::Conv2dGeometry exact = c.geometry();
  exact.allow_tf32 = false;
  EXPECT_FALSE(ddu::cuda::conv2d_supported(exact, P::types()));
  const Environment columns("DDU_CUDA_CONV2D", "columns");
  EXPECT_FALSE(ddu::cuda::conv2d_supported(kCases[0].geometry(), P::types()));
  EXPECT_FALSE(ddu::cuda::conv2d_backward_supported(kCases[0].geometry(), P::types(), true));
}

}  // namespace
