// The CUDA kernels of the convolution without columns against its definition.

#include <algorithm>
#include <type_traits>

#include "conv2d_call.h"
#include "ddu/conv2d.h"
#include "ddu/error.h"

namespace {

using cuda_call::any_rates;
using cuda_call::Environment;
using cuda_call::near_rates;
using cuda_call::wide_rates;
using oracle::ConvCase;
using oracle::Sum;

// In this order: one block of channels, whole, of 64 outputs; a part of one, odd numbers of channels and outputs; two and a
// half blocks, 128 and more outputs, a mask; weight groups; map groups, heads and weight groups that cross; kernels of 1 and 5,
// strides, padding, dilation; an even kernel, border; few positions and many taps; a part of a call; more than 64 outputs, and
// most positions far from the image; weight groups of few channels, multiplied several at once: all of them, those of a head,
// those of a map group, of no whole vectors, with strides, and a number that only itself divides.
const ConvCase kCases[] = {
    {{1, 64, 9, 19, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 64, 1, 0, false, true},
    {{1, 3, 11, 10, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 21, 1, 1, false, true},
    {{1, 160, 5, 7, {{3, 3}, {1, 1}, {2, 2}, {2, 2}, 1}}, 130, 1, 1},
    {{2, 32, 6, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, true}, 24, 2, 2, true, true},
    {{1, 96, 6, 5, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 4}}, 70, 2, 3},
    {{2, 9, 8, 13, {{1, 1}, {2, 3}, {0, 0}, {1, 1}, 1}}, 5, 1, 1},
    {{1, 17, 12, 11, {{5, 5}, {2, 1}, {4, 3}, {2, 1}, 1}}, 33, 1, 0, false, true},
    {{1, 24, 7, 9, {{4, 2}, {1, 1}, {2, 1}, {1, 1}, 1, ddu::PaddingMode::border}}, 40, 1, 3},
    {{3, 16, 3, 2, {{7, 5}, {1, 1}, {3, 2}, {1, 1}, 2, ddu::PaddingMode::border}}, 12, 1, 0, false, true},
    {{2, 8, 9, 11, {{3, 3}, {1, 2}, {1, 1}, {1, 1}, 1, ddu::PaddingMode::zeros, true, {3, 1}}, false, {4, 5}}, 65},
    {{1, 40, 2, 3, {{3, 3}, {1, 1}, {9, 9}, {1, 1}, 1}}, 100, 1, 0, false, true},
    {{2, 32, 6, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 32, 8, 0, false, true},
    {{1, 48, 7, 5, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 24, 12, 3},
    {{1, 60, 6, 7, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 2}}, 40, 20, 0, false, true},
    {{2, 48, 9, 8, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, 1}}, 96, 24, 1},
    {{1, 68, 3, 5, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 68, 17, 0, false, true},
};
constexpr int kSmallGroups[] = {11, 12, 13, 14, 15};  // of them

template <class T, class M>
using Problem = oracle::ConvProblem<T, M>;

using conv2d_call::forward;

/// Rates near and far, that are not finite, and that lead far outside.
double mixed_rates(std::mt19937& random) { return random() % 3 == 0 ? wide_rates(random) : any_rates(random); }

/// The error in units of what rounding may cause: of each factor of a product, of sums in float32, and of the result. The
/// larger one of the worst element's, where all round the same way, and of their norm, where they do not.
template <class T>
double error_of(const oracle::Tensor<T>& actual, const std::vector<Sum>& expected) {
  const bool tf32 = std::is_same_v<T, float>;
  const double rounding = std::is_same_v<T, ddu::bfloat16> ? std::ldexp(1, -8) : std::ldexp(1, -11);
  double worst = actual.size() == expected.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = actual[static_cast<std::int64_t>(i)], right = expected[i].value;
    if (!std::isfinite(value) || !std::isfinite(right)) {
      if (value != right && !(std::isnan(value) && std::isnan(right))) return INFINITY;
      continue;
    }
    const double allowed = rounding * (expected[i].magnitude * (tf32 ? 2 : 1) + (tf32 ? 0 : std::fabs(right))) + 1e-6;
    worst = std::max(worst, std::fabs(value - right) / allowed);
  }
  return std::max(worst, cuda_call::error(actual, expected) / (tf32 ? 250 : 1));
}

template <class Given>
class CudaConv2d : public testing::Test {
 protected:
  using P = Problem<typename Given::T, typename Given::M>;

  void SetUp() override {
    if (const char* const reason = conv2d_call::missing()) GTEST_SKIP() << reason;
    ASSERT_TRUE(ddu::cuda::conv2d_supported(kCases[0].geometry(), P::types()));
  }
};
TYPED_TEST_SUITE(CudaConv2d, cuda_call::EveryButDouble);

TYPED_TEST(CudaConv2d, AgainstTheOracle) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const ConvCase& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    ASSERT_TRUE(ddu::cuda::conv2d_supported(c.geometry(), P::types()));
    const P problem(c, mixed_rates);
    const std::vector<Sum> expected = output_of(problem);
    for (const bool channels_last : {false, true}) {
      EXPECT_LE(error_of(forward(problem, {channels_last}), expected), 1) << (channels_last ? "channels last" : "contiguous");
    }
  }
}

TYPED_TEST(CudaConv2d, TensorsMayStartAnywhere) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const int which : {0, 3}) {
    const P problem(kCases[which], near_rates);
    const std::vector<Sum> expected = output_of(problem);
    for (const bool channels_last : {false, true})
      EXPECT_LE(error_of(forward(problem, {channels_last, 1}), expected), 1) << "case " << which;
  }
}

TYPED_TEST(CudaConv2d, PixelsThatAreNotFinite) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  const double strange[] = {NAN, INFINITY, -INFINITY};
  for (const int which : {1, 4, 11, 13, 14}) {
    P problem(kCases[which], near_rates);
    for (std::int64_t i = 0; i < 3; ++i) problem.input.set(i * 7919 % std::int64_t(problem.input.size()), strange[i]);
    const std::vector<Sum> expected = output_of(problem);
    for (const bool channels_last : {false, true})
      EXPECT_LE(error_of(forward(problem, {channels_last}), expected), 1) << "case " << which;
  }
}

TYPED_TEST(CudaConv2d, FactorsThatAreInfinite) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const int which : {1, 2, 7, 12, 14}) {                    // units of whole vectors, and those that zeros fill up
    P problem(kCases[which], [](std::mt19937&) { return 1.; });  // three of four corners then weigh nothing
    const std::int64_t size = problem.c.mask_numel();
    for (std::int64_t i = 0; i < 3; ++i) problem.mask.set((i * 7919 + 30) % size, i % 2 ? -INFINITY : INFINITY);
    const std::vector<Sum> expected = output_of(problem);
    ASSERT_TRUE(std::any_of(expected.begin(), expected.end(), [](const Sum& sum) { return std::isfinite(sum.value); }));
    for (const bool channels_last : {false, true}) {
      const auto actual = forward(problem, {channels_last});
      std::vector<Sum> allowed = expected;  // an infinity may be NaN: corners that weigh nothing have the factor too
      for (std::size_t i = 0; i < allowed.size(); ++i)
        if (std::isinf(allowed[i].value) && std::isnan(actual[static_cast<std::int64_t>(i)])) allowed[i].value = NAN;
      EXPECT_LE(error_of(actual, allowed), 1) << "case " << which;
    }
  }
}

/// A bias and a weight that are not finite belong to one output, and a sample to the outputs of its group.
TYPED_TEST(CudaConv2d, GroupsKeepWhatIsNotFinite) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const int which : kSmallGroups) {
    P problem(kCases[which], near_rates);
    problem.weight.set(5, INFINITY);
    problem.bias.set(problem.c.out_channels - 1, NAN);
    problem.input.set(problem.c.geometry.pixels() + 3, -INFINITY);
    const std::vector<Sum> expected = output_of(problem);
    ASSERT_TRUE(std::any_of(expected.begin(), expected.end(), [](const Sum& sum) { return std::isfinite(sum.value); }));
    for (const bool channels_last : {false, true})
      EXPECT_LE(error_of(forward(problem, {channels_last}), expected), 1) << "case " << which;
  }
}

TYPED_TEST(CudaConv2d, NoOrderOfThreadsMatters) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const int which : {3, 10}) {  // a warp has a band alone, and two share it
    const P problem(kCases[which], mixed_rates);
    const auto once = forward(problem, {});
    const Environment backwards("DDU_EMULATION_BACKWARDS", "1");  // the other order of threads, where they are emulated
    EXPECT_EQ(once, forward(problem, {}));
  }
}

TYPED_TEST(CudaConv2d, WhatHasNoKernels) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  const auto supported = [](ConvCase c, bool allow_tf32 = true) {
    ddu::Conv2dGeometry geometry = c.geometry();
    geometry.allow_tf32 = allow_tf32;
    const bool forward = ddu::cuda::conv2d_supported(geometry, P::types());
    EXPECT_EQ(ddu::cuda::conv2d_backward_supported(geometry, P::types(), false), forward);  // one rule for both
    return forward;
  };
  ConvCase c = kCases[0];
  EXPECT_EQ(supported(c, false), (!std::is_same_v<typename TypeParam::T, float>));
  c.weight_groups = 32;  // of two channels, with rates of their own: nothing to multiply
  c.sizes.options.groups = 32;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.weight_groups = 16;  // of 4 outputs, and too many channels to be multiplied several at once
  c.sizes.channels = 8192;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.sizes.channels = 0;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.outputs = 0;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.heads = 64;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.sizes.options.groups = 64;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.sizes.batch = std::int64_t{1} << 31;
  EXPECT_FALSE(supported(c));
  EXPECT_FALSE(ddu::cuda::conv2d_supported(kCases[0].geometry(), {ddu::DType::float64, ddu::DType::float64}));
  // Few blocks with much to add up each are left to chunks, but not their backward; with more images or fewer channels they are
  // not.
  const auto allowing_tf32 = [](const ConvCase& c) {
    ddu::Conv2dGeometry geometry = c.geometry();
    geometry.allow_tf32 = true;
    return geometry;
  };
  const auto few = [&](std::int64_t batch, std::int64_t channels) {
    ConvCase c = kCases[0];
    c.sizes.batch = batch;
    c.sizes.channels = channels;
    c.sizes.height = c.sizes.width = 8;  // one block
    EXPECT_TRUE(ddu::cuda::conv2d_backward_supported(allowing_tf32(c), P::types(), false));
    return ddu::cuda::conv2d_supported(allowing_tf32(c), P::types());
  };
  EXPECT_FALSE(few(1, 2048));
  EXPECT_TRUE(few(400, 2048));
  EXPECT_TRUE(few(1, 256));
  // So are three channels with many taps.
  c = kCases[6];
  c.sizes.channels = 3;
  EXPECT_FALSE(ddu::cuda::conv2d_supported(allowing_tf32(c), P::types()));
  EXPECT_TRUE(ddu::cuda::conv2d_backward_supported(allowing_tf32(c), P::types(), false));
  // An empty batch is nothing to do.
  c = kCases[0];
  c.sizes.batch = 0;
  EXPECT_EQ(forward(P(c, near_rates), {}).size(), 0u);
}

// Sizes alone, without memory for them: what is counted in 32 bits has limits, and below them bytes are counted in 64.
TYPED_TEST(CudaConv2d, LimitsOfSizes) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  constexpr std::int64_t k31 = std::int64_t{1} << 31;
  constexpr auto none = 0, forward = 1, both = 2;
  const auto served = [](const ConvCase& c) {
    const ddu::Conv2dGeometry g = c.geometry();
    return ddu::cuda::conv2d_supported(g, P::types()) + ddu::cuda::conv2d_backward_supported(g, P::types(), false);
  };
  ConvCase c = kCases[0];
  c.sizes.height = 8192;
  c.sizes.width = 8192;  // 2^32 elements of an image
  EXPECT_EQ(served(c), forward);
  c.sizes.width = 8191;
  EXPECT_EQ(served(c), both);
  c.sizes.batch = 16;
  const ddu::Conv2dGeometry g = c.geometry();
  const std::size_t image = sizeof(typename TypeParam::T) * static_cast<std::size_t>(g.geometry.input_numel());
  EXPECT_GE(ddu::cuda::conv2d_forward_workspace_bytes(g, P::types(), {}), image);  // its copy
  ddu::Conv2dBackward wanted{};
  wanted.grad_weight = reinterpret_cast<void*>(std::uintptr_t{1} << 16);  // an address that is not used
  EXPECT_GE(ddu::cuda::conv2d_backward_workspace_bytes(g, P::types(), wanted, false), 2 * image);  // and of grad_output
  c = kCases[0];
  c.sizes.batch = k31 - 1;
  EXPECT_EQ(served(c), both);
  c.sizes.batch = k31;
  EXPECT_EQ(served(c), none);
  c = kCases[0];
  c.outputs = k31 - 1;
  EXPECT_EQ(served(c), both);
  c.outputs = k31;
  EXPECT_EQ(served(c), none);
  // Steps over channels and taps are counted too, and taps. Images are many, or there would be too few blocks.
  c = kCases[0];
  c.sizes.batch = 4096;
  c.sizes.channels = k31 - 64;
  EXPECT_EQ(served(c), forward);  // an image has too many elements for the other
  for (int i = 0; i < 2; ++i) {
    c.sizes.options.kernel_size[i] = 11;
    c.sizes.options.padding[i] = 5;
  }
  EXPECT_EQ(served(c), none);
  const auto of_taps = [](std::int64_t rows, std::int64_t columns) {
    return ConvCase{{4096, 64, rows, columns, {{rows, columns}, {1, 1}, {0, 0}, {1, 1}, 1}}, 64};
  };
  EXPECT_EQ(served(of_taps(4, k31 / 256 - 1)), forward);  // no device has the shared memory that the other takes
  EXPECT_EQ(served(of_taps(4, k31 / 256)), none);
  EXPECT_EQ(served(of_taps(1, 600)), forward);
}

}  // namespace
