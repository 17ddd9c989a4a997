// The CPU kernels of a depthwise convolution, and of one in small groups, against the definition.

#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "conv2d_backward_oracle.h"
#include "cpu_call.h"
#include "cpu_rates.h"
#include "ddu/conv2d.h"
#include "ddu/error.h"
#include "small_stack.h"

namespace {

using cpu_call::How;
using cpu_call::kChannelsLast;
using cpu_call::kContiguous;
using cpu_call::laid_out;
using cpu_call::with_workspace;
using oracle::ConvCase;
using oracle::Tensor;
using oracle::worst_error;

template <class T>
class CpuConv2d : public testing::Test {
 protected:
  using P = oracle::ConvProblem<T, T>;
  using Gradients = cpu_call::Gradients<T, T>;

  static Tensor<T> forward(const P& p, const How& how = {}) {
    const ddu::Geometry& g = p.c.geometry;
    const Tensor<T> input = laid_out(how, g.batch, g.channels, g.pixels(), p.input);
    Tensor<T> output(p.c.output_numel());
    ddu::Conv2d t{input.data(),
                  p.weight.data(),
                  p.map.data(),
                  p.c.has_mask ? p.mask.data() : nullptr,
                  p.has_bias ? p.bias.data() : nullptr,
                  output.data(),
                  nullptr,
                  how.format};
    with_workspace(
        t, [&] { return ddu::cpu::conv2d_forward_workspace_bytes(p.c, p.types(), t, how.threads); },
        [&] { ddu::cpu::conv2d_forward(p.c, p.types(), t, how.threads); });
    EXPECT_TRUE(output.guarded());
    return laid_out(how, g.batch, p.c.out_channels, g.positions(), output, true);
  }
  static Gradients backward(const P& p, const How& how = {}) {
    const ddu::Geometry& g = p.c.geometry;
    const Tensor<T> input = laid_out(how, g.batch, g.channels, g.pixels(), p.input),
                    grad = laid_out(how, g.batch, p.c.out_channels, g.positions(), p.grad_output);
    Gradients grads{Tensor<T>(g.input_numel()), Tensor<T>(p.c.weight_numel()), Tensor<T>(g.map_numel()),
                    Tensor<T>(p.c.mask_numel())};
    ddu::Conv2dBackward t{};
    t.grad_output = grad.data();
    t.input = input.data();
    t.weight = p.weight.data();
    t.dilation_map = p.map.data();
    t.input_format = how.format;
    if (p.c.has_mask) t.mask = p.mask.data();
    if (how.image) t.grad_input = grads.image.data();
    if (how.other) t.grad_weight = grads.other.data();
    if (how.map) t.grad_map = grads.map.data();
    if (how.mask && p.c.has_mask) t.grad_mask = grads.mask.data();
    with_workspace(
        t, [&] { return ddu::cpu::conv2d_backward_workspace_bytes(p.c, p.types(), t, how.threads); },
        [&] { ddu::cpu::conv2d_backward(p.c, p.types(), t, how.threads); });
    EXPECT_TRUE(grads.guarded());
    grads.image = laid_out(how, g.batch, g.channels, g.pixels(), grads.image, true);
    return grads;
  }
  static void check(const ConvCase& c, const std::function<double(std::mt19937&)>& rate) { check(P(c, rate)); }
  static void check(const P& problem, bool to_input = true, bool to_map = true) {
    ASSERT_TRUE(ddu::cpu::conv2d_supported(problem.c, P::types()));
    EXPECT_LE(worst_error(forward(problem), output_of(problem)), 1);
    const oracle::ConvGradients expected = oracle::gradients_of(problem);
    const Gradients grads = backward(problem);
    if (to_input) {
      EXPECT_LE(worst_error(grads.image, expected.input), 1) << "input";
    }
    EXPECT_LE(worst_error(grads.other, expected.weight), 1) << "weight";
    EXPECT_LE(worst_error(grads.mask, expected.mask), 1) << "mask";
    if (to_map) {
      EXPECT_LE(worst_error(grads.map, expected.map), 1) << "map";
    }
  }
};
using Kinds = testing::Types<float, double>;
TYPED_TEST_SUITE(CpuConv2d, Kinds);

// Depthwise, of one to three outputs a channel; groups of two to eight channels; groups and heads that cross; maps and masks of
// all images; strides, even kernels, border; one channel; a part of the positions.
const std::vector<ConvCase> kCases = {
    {{2, 36, 6, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 36, 36, 0, false, true},
    {{2, 12, 9, 7, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}}, 24, 12, 2, false, true},
    {{2, 5, 8, 9, {{4, 4}, {2, 2}, {3, 3}, {1, 1}, 1, ddu::PaddingMode::border}, true}, 15, 5, 1, true},
    {{1, 1, 8, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 1, 1, 1},
    {{1, 16, 4, 9, {{3, 3}, {1, 1}, {2, 2}, {2, 2}, 2, ddu::PaddingMode::border}}, 16, 16, 16, false, true},
    {{2, 8, 9, 11, {{3, 3}, {1, 2}, {1, 1}, {1, 1}, 2, ddu::PaddingMode::zeros, true, {3, 1}}, false, {4, 5}}, 8, 8},
    {{2, 24, 7, 40, {{3, 2}, {1, 1}, {1, 1}, {1, 1}, 2}}, 12, 12, 3, false, true},
    {{1, 40, 6, 70, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 40, 8, 4, true},
    {{3, 21, 12, 9, {{5, 5}, {1, 1}, {2, 2}, {1, 1}, 1}, true}, 14, 7},
    {{2, 32, 5, 6, {{2, 3}, {1, 1}, {0, 1}, {1, 1}, 1, ddu::PaddingMode::border}}, 32, 4, 2},
    {{1, 12, 14, 13, {{11, 9}, {1, 1}, {5, 4}, {1, 1}, 1}}, 12, 12, 2},
};

TYPED_TEST(CpuConv2d, Geometries) {
  for (const ConvCase& c : kCases) {
    SCOPED_TRACE(&c - kCases.data());
    this->check(c, near_rates);
  }
}

TYPED_TEST(CpuConv2d, RatesNearAndFar) {
  for (const int which : {1, 4, 6, 8}) {
    SCOPED_TRACE(which);
    this->check(kCases[std::size_t(which)], any_rates);
  }
}

// Windows that fit no wide Vec, and none at all; kernels whose taps outgrow a tile's buffers.
TYPED_TEST(CpuConv2d, WindowsThatDoNotFit) {
  for (double reach : {1.0, 3.0, 14.0}) {
    this->check({{1, 8, 230, 250, {{3, 3}, {16, 18}, {1, 1}, {6, 6}, 1}}, 4, 4, 2},
                [=](auto& random) { return between(random, -reach, reach); });
  }
  this->check({{1, 2, 302, 5, {{300, 2}, {1, 1}, {0, 0}, {1, 1}, 1}}, 4, 2},
              [](auto& random) { return between(random, 0.9, 1.1); });
}

// channels_last is read and written as it lies, and results do not depend on the number of threads, or on which gradients are
// asked for: the same numbers to the bit.
TYPED_TEST(CpuConv2d, FormatsThreadsAndMasks) {
  for (const ConvCase& c : kCases) {
    SCOPED_TRACE(&c - kCases.data());
    const typename TestFixture::P problem(c, any_rates);
    const auto output = this->forward(problem);
    const auto grads = this->backward(problem);
    EXPECT_TRUE(this->forward(problem, {kChannelsLast, 1}) == output);
    EXPECT_TRUE(this->backward(problem, {kChannelsLast, 1}) == grads);
    EXPECT_TRUE(this->forward(problem, {kContiguous, 16}) == output);
    EXPECT_TRUE(this->backward(problem, {kContiguous, 16}) == grads);
    for (unsigned wanted : {1u, 2u, 4u, 8u}) {
      const How how{kContiguous, 3, wanted == 1, wanted == 2, wanted == 4, wanted == 8};
      const auto one = this->backward(problem, how);
      EXPECT_EQ(one.image == grads.image, how.image);
      EXPECT_EQ(one.other == grads.other, how.other);
      EXPECT_EQ(one.map == grads.map, how.map);
      EXPECT_EQ(one.mask == grads.mask, how.mask || !problem.c.has_mask);
    }
  }
}

// Of pixels, gradients and weights that are not finite as of those that are.
TYPED_TEST(CpuConv2d, ValuesThatAreNotFinite) {
  using P = typename TestFixture::P;
  for (const int which : {0, 1, 6}) {
    SCOPED_TRACE(which);
    P pixels(kCases[std::size_t(which)], near_rates), gradients = pixels, weights = pixels;
    const double strange[] = {NAN, INFINITY, -INFINITY};
    for (std::int64_t i = 0; i < 3; ++i) {
      // Of two outputs, the mask's gradient is a difference of infinities or not, by what is added up first.
      pixels.input.set(i * 277, pixels.c.weight_group_outputs() == 1 ? strange[i] : NAN);
      gradients.grad_output.set(i * 300, strange[i]);
      weights.weight.set(i * 20, strange[i]);
    }
    for (const P* problem : {&pixels, &gradients, &weights}) {
      SCOPED_TRACE(problem == &pixels ? "pixels" : problem == &gradients ? "gradients" : "weights");
      this->check(*problem, problem == &pixels, false);  // a corner that weighs nothing, and differences of infinities
    }
  }
}

// An infinite pixel at the image's edge is what a tap beyond it reads, with a window and without.
TYPED_TEST(CpuConv2d, InfinitePixelsAtABorder) {
  using P = typename TestFixture::P;
  const ConvCase leaps = {{1, 8, 230, 250, {{3, 3}, {16, 18}, {1, 1}, {6, 6}, 1, ddu::PaddingMode::border}}, 4, 4, 2};
  for (const ConvCase& c : {kCases[4], leaps}) {
    SCOPED_TRACE(c.sizes.height);
    P problem(c, near_rates);
    const std::int64_t height = c.sizes.height, width = c.sizes.width;
    problem.input.set((3 * height + 2) * width - 1, INFINITY);
    problem.input.set(5 * height * width, -INFINITY);
    this->check(problem, false, false);
  }
}

using CpuConv2dFloat = CpuConv2d<float>;

TEST_F(CpuConv2dFloat, EmptyBatch) {
  const P problem({{0, 8, 5, 6, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, true}, 8, 8, 2, true, true}, near_rates);
  EXPECT_EQ(forward(problem).size(), 0u);
  const Gradients grads = backward(problem);
  for (const Tensor<float>* tensor : {&grads.other, &grads.map, &grads.mask}) {
    EXPECT_GT(tensor->size(), 0u);
    for (std::size_t i = 0; i < tensor->size(); ++i) EXPECT_EQ((*tensor)[static_cast<std::int64_t>(i)], 0);
  }
}

TEST_F(CpuConv2dFloat, NothingWantedNeedsNoMemory) {
  const P problem(kCases[0], near_rates);
  const ddu::Conv2dBackward none{};
  EXPECT_EQ(ddu::cpu::conv2d_backward_workspace_bytes(problem.c, P::types(), none, 4), 0u);
  ddu::cpu::conv2d_backward(problem.c, P::types(), none, 4);
}

TEST_F(CpuConv2dFloat, WhatIsNotServed) {
  const auto supported = [](const ConvCase& c, ddu::DType type = ddu::DType::float32) {
    return ddu::cpu::conv2d_supported(c.geometry(), {type, type});
  };
  ConvCase c = kCases[0];
  EXPECT_TRUE(supported(c));
  EXPECT_FALSE(supported(c, ddu::DType::bfloat16));
  c.outputs = 36 * 9;
  EXPECT_FALSE(supported(c));
  c = kCases[0];
  c.weight_groups = 4;  // of nine channels
  EXPECT_FALSE(supported(c));
  c.weight_groups = c.heads = 12;
  EXPECT_TRUE(supported(c));
  c.heads = 36;  // of a third of a group
  EXPECT_FALSE(supported(c));
  EXPECT_TRUE(supported(kCases[3]));
  c = kCases[3];
  c.outputs = 2;  // of the only channel
  EXPECT_FALSE(supported(c));
  const P problem(c, near_rates);
  EXPECT_THROW(forward(problem), ddu::unsupported_device);
}

#if defined(DDU_SMALL_STACKS)
// As CpuEdges has them.
TYPED_TEST(CpuConv2d, SmallStacks) {
  for (double reach : {2.0, 14.0, 500.0}) {  // wide windows, narrow ones, none
    const typename TestFixture::P problem({{1, 32, 20, 100, {{3, 3}, {1, 1}, {6, 6}, {6, 6}, 1}}, 128, 16, 8},
                                          [=](auto& random) { return between(random, -reach, reach); });
    on_small_stack([&] {
      this->forward(problem, {kContiguous, 1});
      this->backward(problem, {kChannelsLast, 1});
    });
  }
}
#endif

}  // namespace
