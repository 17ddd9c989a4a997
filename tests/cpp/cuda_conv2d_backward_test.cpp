// The backward of the convolution's CUDA kernels against its definition.

#include "conv2d_call.h"
#include "ddu/conv2d.h"
#include "ddu/error.h"

namespace {

using conv2d_call::backward;
using conv2d_call::How;
using cuda_call::any_rates;
using cuda_call::Environment;
using cuda_call::error;
using cuda_call::has_device;
using cuda_call::near_rates;
using cuda_call::Types;
using oracle::ConvCase;
using oracle::ConvGradients;

// Whole vectors and none; more outputs and channels than a block takes at once; units smaller than groups, heads and weight
// groups; one channel; strides, even kernels, many taps; maps and masks for all images; border; a part of the positions; weight
// groups of few channels, multiplied several at once: of whole vectors and not, with a mask and strides, with border, and a
// number that only itself divides.
const ConvCase kCases[] = {
    {{2, 16, 6, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 24},
    {{1, 72, 5, 6, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}}, 16, 2, 2},
    {{1, 72, 5, 6, {{3, 2}, {1, 1}, {1, 1}, {1, 2}, 1, ddu::PaddingMode::border}}, 72},
    {{2, 8, 9, 10, {{4, 4}, {2, 2}, {3, 3}, {1, 1}, 1, ddu::PaddingMode::border}, true}, 5, 1, 1, true},
    {{1, 5, 6, 7, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 3},
    {{1, 1, 19, 17, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 1, 1, 1},
    {{1, 136, 3, 7, {{1, 3}, {1, 1}, {0, 1}, {1, 1}, 1}}, 130},
    {{2, 40, 6, 5, {{3, 3}, {1, 1}, {2, 2}, {2, 2}, 2}}, 34, 2, 4},
    {{1, 40, 7, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, ddu::PaddingMode::zeros, true, {3, 2}}, false, {4, 5}}, 16},
    {{1, 32, 6, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 32, 8},
    {{1, 60, 8, 7, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, 2}}, 40, 20, 2},
    {{1, 48, 5, 6, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, ddu::PaddingMode::border}}, 24, 12, 1},
    {{1, 68, 3, 5, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 68, 17},
};
constexpr int kSmallGroups[] = {9, 10, 11, 12};  // of them

template <class Given>
class CudaConv2dBackward : public testing::Test {
 protected:
  using T = typename Given::T;

  /// Factors of a product that every type holds, TF32 as well: so what the kernels round is sampled values and results.
  struct P : oracle::ConvProblem<T, typename Given::M> {
    P(const ConvCase& c, double (*rate)(std::mt19937&)) : oracle::ConvProblem<T, typename Given::M>(c, rate) {
      for (oracle::Tensor<T>* tensor : {&this->weight, &this->mask, &this->grad_output})
        for (std::int64_t i = 0; i < std::int64_t(tensor->size()); ++i) tensor->set(i, std::round((*tensor)[i] * 8) / 8);
    }
  };

  void SetUp() override {
    if (const char* const reason = conv2d_call::missing()) GTEST_SKIP() << reason;
    ASSERT_TRUE(ddu::cuda::conv2d_backward_supported(kCases[0].geometry(), P::types(), false));
  }
  /// What is expected where gradients are not finite. Pixels to which a tap gives such a gradient without any weight may be
  /// NaN, or get nothing of it as with F.conv2d: all of a call's alike, so the first of them tells.
  static ConvGradients expected_of(const P& problem, const How& how) {
    ConvGradients expected = oracle::gradients_of(problem);
    const auto actual = backward(problem, how).input;
    std::size_t i = 0;
    while (i < expected.input.size() && (!std::isnan(expected.input[i].value) || std::isnan(expected.weighted_input[i].value)))
      ++i;
    if (i < expected.input.size() && !std::isnan(actual[static_cast<std::int64_t>(i)]))
      expected.input = expected.weighted_input;
    return expected;
  }
  /// Every gradient that is wanted.
  static void expect(const P& problem, const ConvGradients& expected, const How& how) {
    SCOPED_TRACE(testing::Message() << (how.channels_last ? "channels last" : "planes") << ", shift " << how.shift
                                    << ", wanted " << how.input << how.weight << how.map << how.mask);
    // A sampled value is rounded to the product's type: to TF32's 11 bits, where other sums of float32 keep all of theirs.
    const double of_samples = sizeof(T) == 4 ? 200 : 2;
    // So are gradients of columns in half types: seen where the map has more digits than they.
    const double of_columns = sizeof(T) == 2 && sizeof(typename Given::M) == 4 ? 50 : 1;
    const auto actual = backward(problem, how);
    if (how.input) {
      How alone = how;
      alone.weight = alone.map = alone.mask = false;
      const double of_product = sizeof(T) == 4 ? 200 : 1;  // it is one too, of factors of 11 bits
      EXPECT_LE(error(backward(problem, alone).input, expected.input), of_product);
      EXPECT_LE(error(actual.input, expected.input), of_product);
    }
    if (how.weight) {
      EXPECT_LE(error(actual.weight, expected.weight), of_samples);
    }
    if (how.map) {
      EXPECT_LE(error(actual.map, expected.map), of_columns);
    }
    if (how.mask) {
      EXPECT_LE(error(actual.mask, expected.mask), 1);
    }
  }
};
TYPED_TEST_SUITE(CudaConv2dBackward, cuda_call::EveryButDouble);

TYPED_TEST(CudaConv2dBackward, AgainstTheOracle) {
  const bool other_way = std::is_same_v<typename TypeParam::T, ddu::bfloat16>;  // so that each case has both formats
  for (const ConvCase& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    const typename TestFixture::P problem(c, near_rates);
    this->expect(problem, oracle::gradients_of(problem), {((&c - kCases) % 2 == 0) != other_way});
  }
}

TYPED_TEST(CudaConv2dBackward, RatesThatAreFarOrNotFinite) {
  const Environment backwards("DDU_EMULATION_BACKWARDS", "1");
  const typename TestFixture::P problem(kCases[1], any_rates);
  this->expect(problem, oracle::gradients_of(problem), {});
}

// More positions' taps on a pixel than a list of the kernel holds: those of the right column all land in one column.
TYPED_TEST(CudaConv2dBackward, ManyTapsOnAPixel) {
  const ConvCase c{{1, 8, 12, 30, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 16};
  typename TestFixture::P problem(c, near_rates);
  for (std::int64_t i = 0; i < std::int64_t(problem.map.size()); ++i) problem.map.set(i, 10 - double(i % 30));
  How how{true};
  how.weight = how.map = how.mask = false;
  this->expect(problem, oracle::gradients_of(problem), how);
}

TYPED_TEST(CudaConv2dBackward, TensorsMayStartAnywhere) {
  const Environment backwards("DDU_EMULATION_BACKWARDS", "1");  // the other order of threads, where they are emulated
  const typename TestFixture::P problem(kCases[0], near_rates);
  const ConvGradients expected = oracle::gradients_of(problem);
  for (const bool channels_last : {false, true}) this->expect(problem, expected, {channels_last, 1});
}

using CudaConv2dBackwardHalf = CudaConv2dBackward<Types<ddu::float16, float>>;

// More boxes of positions than a block of the kernel notes at once, all of which may land on its only tile.
TEST_F(CudaConv2dBackwardHalf, TapsFromEverywhere) {
  const ConvCase c{{1, 8, 9, 10, {{3, 3}, {1, 1}, {45, 45}, {1, 1}, 1}}, 8};
  P problem(c, near_rates);
  for (std::int64_t i = 0; i < std::int64_t(problem.map.size()); ++i) problem.map.set(i, double(i % 7) * 15 - 45.5);
  How how{true};
  how.weight = how.map = how.mask = false;
  expect(problem, oracle::gradients_of(problem), how);
}

TEST_F(CudaConv2dBackwardHalf, OnlyWhatIsWanted) {
  const P problem(kCases[1], near_rates);
  const ConvGradients expected = oracle::gradients_of(problem);
  for (const unsigned wanted : {0u, 1u, 2u, 4u, 8u, 13u})
    expect(problem, expected, {wanted % 3 == 1, 0, (wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0, (wanted & 8) != 0});
}

TEST_F(CudaConv2dBackwardHalf, ValuesThatAreNotFinite) {
  const double strange[] = {NAN, INFINITY, -INFINITY};
  P problem(kCases[0], near_rates);
  for (std::int64_t i = 0; i < 3; ++i) problem.input.set(i * 577 % std::int64_t(problem.input.size()), strange[i]);
  How how{true};
  how.map = false;  // differences of infinities
  expect(problem, oracle::gradients_of(problem), how);
  P gradients(kCases[0], near_rates);
  gradients.grad_output.set(1000, INFINITY);
  expect(gradients, expected_of(gradients, how), how);
  for (const int which : {1, 3}) {  // units that zeros fill up, and whole ones
    P factors(kCases[which], near_rates);
    for (auto* tensor : {&factors.weight, &factors.grad_output})  // or infinities of both signs would meet
      for (std::int64_t i = 0; i < std::int64_t(tensor->size()); ++i) tensor->set(i, std::fabs((*tensor)[i]) + 0.125);
    factors.mask.set(100, INFINITY);
    for (const bool channels_last : {false, true}) {
      how.channels_last = channels_last;
      expect(factors, expected_of(factors, how), how);
    }
  }
}

TYPED_TEST(CudaConv2dBackward, GroupsKeepWhatIsNotFinite) {
  for (const int which : kSmallGroups) {
    typename TestFixture::P problem(kCases[which], near_rates);
    problem.grad_output.set(problem.c.geometry.positions() + 5, INFINITY);
    problem.input.set(problem.c.geometry.pixels() + 3, NAN);
    const ConvGradients expected = oracle::gradients_of(problem);
    const auto finite = [](const oracle::Sum& sum) { return std::isfinite(sum.value); };
    for (const auto* gradient : {&expected.input, &expected.weight})
      ASSERT_TRUE(std::any_of(gradient->begin(), gradient->end(), finite));
    for (const bool channels_last : {false, true}) {
      How how{channels_last};
      how.map = how.mask = false;  // sums over groups: infinity there may be NaN
      this->expect(problem, TestFixture::expected_of(problem, how), how);
    }
  }
}

/// Where each pixel is some position's middle, kernels may take images to be finite at first. Rates of 2: of three taps side by
/// side only the middle one's cell has a pixel and its neighbour, which weighs nothing there.
TYPED_TEST(CudaConv2dBackward, APixelThatIsNotANumber) {
  for (const int which : {0, 4}) {
    typename TestFixture::P problem(kCases[which], near_rates);
    for (std::int64_t i = 0; i < std::int64_t(problem.map.size()); ++i) problem.map.set(i, 2);
    problem.input.set(20, NAN);
    for (const bool of_mask : {false, true}) {
      How how{which == 0};
      how.mask = of_mask;
      this->expect(problem, oracle::gradients_of(problem), how);
    }
  }
}

TEST_F(CudaConv2dBackwardHalf, TheWeightsGradientRepeats) {
  const P few(kCases[0], near_rates), many(kCases[5], any_rates);
  for (const P* problem : {&few, &many}) {
    How how;
    how.input = how.map = how.mask = false;
    const auto once = backward(*problem, how);
    const Environment backwards("DDU_EMULATION_BACKWARDS", "1");
    EXPECT_EQ(once.weight, backward(*problem, how).weight);
  }
}

/// The input's gradient goes another way where taps that lie side by side land far from each other.
TEST_F(CudaConv2dBackwardHalf, RatesThatJump) {
  const P problem({{1, 8, 38, 46, {{3, 3}, {1, 1}, {16, 16}, {16, 16}, 1}}, 8, 1, 1}, near_rates);
  How how{true};
  how.weight = how.map = how.mask = false;
  expect(problem, oracle::gradients_of(problem), how);
}

/// Column gradients are kept in half precision, by a scale of each tap: those beside much larger ones lose nothing.
TEST_F(CudaConv2dBackwardHalf, GradientsOfAllMagnitudes) {
  const ConvCase c{{1, 16, 24, 24, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 16};
  P problem(c, near_rates);
  const std::int64_t positions = c.geometry().geometry.positions();
  for (std::int64_t i = 0; i < std::int64_t(problem.grad_output.size()); ++i) {
    if (i % positions % 24 < 12) problem.grad_output.set(i, problem.grad_output[i] / 8192);
  }
  How how;
  how.weight = how.map = false;
  ConvGradients expected = oracle::gradients_of(problem);
  const auto actual = backward(problem, how).input;
  for (const bool small : {false, true}) {
    SCOPED_TRACE(small);
    auto part = actual;
    auto of_part = expected.input;
    for (std::int64_t i = 0; i < std::int64_t(of_part.size()); ++i) {
      const bool is_small = i % 24 < 8;  // what no large gradient reaches
      if (is_small == small) continue;
      part.set(i, 0);
      of_part[static_cast<std::size_t>(i)] = {};
    }
    EXPECT_LE(error(part, of_part), small ? 20 : 1);  // float16 itself has few bits for the small ones
  }
}

TEST_F(CudaConv2dBackwardHalf, NothingToDo) {
  for (const int which : {1, 3}) {  // a map and a mask of no images, and those that all share: their gradients are zero
    ConvCase c = kCases[which];
    c.sizes.batch = 0;
    const P problem(c, near_rates);
    expect(problem, oracle::gradients_of(problem), {});
  }
}

// Until the input's gradient is written, a copy of the image lies in its memory, if that starts where scratch memory may.
TEST_F(CudaConv2dBackwardHalf, ScratchLiesInTheGradient) {
  const ConvCase sizes{{1, 64, 16, 16, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 64};
  const ddu::Conv2dGeometry c = sizes.geometry();
  const auto bytes = [&](std::uintptr_t of_gradient) {
    ddu::Conv2dBackward tensors{};
    tensors.grad_input = reinterpret_cast<void*>(of_gradient);
    tensors.grad_weight = reinterpret_cast<void*>(std::uintptr_t{1} << 16);
    return ddu::cuda::conv2d_backward_workspace_bytes(c, P::types(), tensors, false);
  };
  constexpr std::uintptr_t kAligned = std::uintptr_t{1} << 20;
  EXPECT_EQ(bytes(kAligned) + 2 * static_cast<std::size_t>(c.geometry.input_numel()), bytes(kAligned + 32));
}

TEST(CudaConv2dBackwardCalls, WhatIsNotServed) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  ddu::Conv2dGeometry c = kCases[0].geometry();
  const ddu::Types float32{ddu::DType::float32, ddu::DType::float32}, float64{ddu::DType::float64, ddu::DType::float64};
  EXPECT_FALSE(ddu::cuda::conv2d_backward_supported(c, float64, false));
  EXPECT_FALSE(ddu::cuda::conv2d_backward_supported(c, float32, true));
  {
    const Environment columns("DDU_CUDA_CONV2D", "columns");
    EXPECT_FALSE(ddu::cuda::conv2d_backward_supported(c, float32, false));
  }
  EXPECT_THROW(ddu::cuda::conv2d_backward(c, float32, {}, true, nullptr), ddu::unsupported_device);
  c.allow_tf32 = false;
  EXPECT_FALSE(ddu::cuda::conv2d_backward_supported(c, float32, false));
  EXPECT_THROW(ddu::cuda::conv2d_backward(c, float32, {}, false, nullptr), ddu::unsupported_device);
  try {  // and not that it is deterministic
    ddu::cuda::conv2d_backward(c, float32, {}, true, nullptr);
    ADD_FAILURE() << "served";
  } catch (const ddu::unsupported_device& e) {
    EXPECT_STREQ(e.what(), "the backward of conv2d has no kernels for this call: see conv2d_supported");
  }
}

}  // namespace
