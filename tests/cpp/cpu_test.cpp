// The CPU kernels against the oracle, for every pair of types and geometries that take every way through the kernels.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cpu_call.h"
#include "cpu_rates.h"
#include "oracle.h"

namespace {

using cpu_call::kChannelsLast;
using cpu_call::options;
using oracle::Case;
using oracle::Problem;
using oracle::worst_error;

template <class T, class M>
struct Types {
  using Input = T;
  using Map = M;
};

template <class Pair>
class Cpu : public testing::Test {};
using Pairs = testing::Types<Types<ddu::float16, ddu::float16>, Types<ddu::float16, float>, Types<ddu::bfloat16, ddu::bfloat16>,
                             Types<ddu::bfloat16, float>, Types<float, float>, Types<double, double>>;
TYPED_TEST_SUITE(Cpu, Pairs);

template <class T, class M>
void check(const Case& c, typename Problem<T, M>::Rate rate) {
  const Problem<T, M> problem(c, rate);
  const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
  const auto output = problem.forward();
  EXPECT_LE(worst_error(output, expected.output), 1);
  EXPECT_TRUE(output.guarded());
  const auto grads = problem.backward();
  EXPECT_LE(worst_error(grads.input, expected.grad_input), 1);
  EXPECT_LE(worst_error(grads.map, expected.grad_map), 1);
  EXPECT_TRUE(grads.guarded);
}

TYPED_TEST(Cpu, Geometries) {
  const std::vector<Case> cases = {
      {2, 6, 13, 17, options(3, 1, 3)},
      {1, 1, 1, 1, options(1, 0)},
      {1, 2, 1, 1, options(3, 1)},
      {2, 3, 9, 8, options(2, 0)},
      {2, 4, 12, 11, options(4, 3, 2, 2)},
      {1, 5, 15, 21, {{5, 5}, {1, 2}, {2, 1}, {2, 2}, 5}},
      {1, 2, 14, 10, {{3, 2}, {1, 1}, {1, 1}, {3, 3}, 1}},
      {3, 4, 10, 9, options(3, 1, 2), true},
      {1, 2, 20, 24, options(7, 3)},
      {1, 2, 6, 5, options(3, 9)},
      // Strides that leap over a narrow image: cells are cut at both of its sides.
      {1, 1, 3, 1, {{3, 3}, {1, 2}, {1, 4}, {1, 1}, 1}},
      {1, 1, 5, 6, {{3, 3}, {1, 2}, {1, 7}, {1, 1}, 1}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(&c - cases.data());
    check<typename TypeParam::Input, typename TypeParam::Map>(c, [](auto& random) { return between(random, -3, 3); });
  }
}

/// The options of a call on the positions from (row, column) on.
ddu::Options part(ddu::Options options, std::int64_t row, std::int64_t column) {
  options.part = true;
  options.origin[0] = row;
  options.origin[1] = column;
  return options;
}

// padding_mode border: near and far rates, images of one pixel or row, even kernels, parts, either memory format, all threads
// alike.
TYPED_TEST(Cpu, Border) {
  using P = Problem<typename TypeParam::Input, typename TypeParam::Map>;
  std::vector<Case> cases = {
      {2, 6, 13, 17, options(3, 1, 3)},
      {1, 2, 1, 1, options(3, 1)},
      {1, 5, 1, 9, options(3, 9)},
      {2, 4, 12, 11, options(4, 3, 2, 2)},
      {3, 17, 10, 40, options(3, 1), true},
      {1, 2, 60, 70, options(7, 20)},
      {1, 3, 30, 40, part(options(4, 2, 1, 2), 3, 7), true, {9, 11}},
      {1, 1, 3, 1, {{3, 3}, {1, 2}, {1, 4}, {1, 1}, 1}},
  };
  for (Case& c : cases) {
    c.options.padding_mode = ddu::PaddingMode::border;
    for (const double reach : {2.0, 30.0, 3e4}) {
      SCOPED_TRACE(testing::Message() << "case " << &c - cases.data() << ", rates to " << reach);
      const auto rate = [=](auto& random) { return random() % 5 == 0 ? 1 : between(random, -reach, reach); };
      check<typename TypeParam::Input, typename TypeParam::Map>(c, rate);
      const P problem(c, rate);
      EXPECT_TRUE(problem.forward(5, kChannelsLast) == problem.forward(1));
      const auto expected = problem.backward(true, true, 1), grads = problem.backward(true, true, 5, kChannelsLast);
      EXPECT_TRUE(grads.input == problem.laid_out(expected.input, kChannelsLast));
      EXPECT_TRUE(grads.map == expected.map);
      EXPECT_TRUE(grads.guarded);
    }
  }
}

TYPED_TEST(Cpu, PartsOfTheOutput) {
  for (const Case& c : {Case{2, 6, 13, 17, part(options(3, 1, 3), 4, 0), false, {6, 17}},
                        Case{1, 3, 30, 40, part(options(4, 2, 1, 2), 3, 7), true, {9, 11}},
                        Case{1, 2, 9, 9, part(options(3, 1), 0, 0), false, {1, 9}}}) {
    SCOPED_TRACE(c.height);
    for (double reach : {2.0, 300.0}) {
      check<typename TypeParam::Input, typename TypeParam::Map>(c,
                                                                [=](auto& random) { return between(random, -reach, reach); });
    }
  }
}

// Vecs of every width, full and with idle lanes, and tiles with and without a rest, in lines of memory whole and not.
TYPED_TEST(Cpu, ChannelsAndWidths) {
  for (std::int64_t channels : {1, 2, 3, 4, 5, 8, 9, 16, 17, 20, 35}) {
    for (std::int64_t width : {7, 33, 111}) {
      SCOPED_TRACE(channels * 1000 + width);
      check<typename TypeParam::Input, typename TypeParam::Map>({1, channels, 9, width, options(3, 1)},
                                                                [](auto& random) { return between(random, 0.5, 3); });
    }
  }
}

// Rates that make windows outgrow one width of Vecs after another, the last of them every width.
TYPED_TEST(Cpu, WindowsThatDoNotFit) {
  for (double reach : {14.0, 40.0, 120.0, 400.0}) {
    SCOPED_TRACE(reach);
    check<typename TypeParam::Input, typename TypeParam::Map>({1, 18, 230, 250, options(3, 1, 1, 6)},
                                                              [=](auto& random) { return between(random, -reach, reach); });
  }
}

// Kernels whose taps outgrow a tile's buffers.
TYPED_TEST(Cpu, HugeKernels) {
  for (const Case& c :
       {Case{1, 3, 302, 5, {{300, 2}, {1, 1}, {0, 0}, {1, 1}, 1}}, Case{1, 5, 4, 150, {{1, 60}, {1, 1}, {0, 9}, {1, 1}, 1}}}) {
    check<typename TypeParam::Input, typename TypeParam::Map>(c, [](auto& random) { return between(random, 0.9, 1.1); });
  }
}

// Outputs large enough to be streamed past the caches, with rows that start at lines of memory and with others.
TYPED_TEST(Cpu, LargeOutputs) {
  for (std::int64_t width : {64, 61}) {
    check<typename TypeParam::Input, typename TypeParam::Map>({2, 33, 64, width, options(3, 1)},
                                                              [](auto& random) { return between(random, 0.5, 2); });
  }
}

TYPED_TEST(Cpu, RatesNearAndFar) {
  const std::vector<double> rates = {0, 1, -1, 0.5, 2, 100, -3e4, 6e4, INFINITY, -INFINITY, NAN};
  const auto one_of = [&](std::size_t count) {
    return [&rates, count](std::mt19937& random) { return rates[random() % count]; };
  };
  for (std::size_t count : {5u, 8u, 11u}) {  // near ones, finite ones, all
    SCOPED_TRACE(count);
    check<typename TypeParam::Input, typename TypeParam::Map>({2, 20, 12, 70, options(3, 1)}, one_of(count));
    check<typename TypeParam::Input, typename TypeParam::Map>({2, 3, 12, 14, options(4, 2, 3)}, one_of(count));
  }
}

// A channels_last input is read, and its gradient written, as it lies: the same numbers to the bit, in another place.
TYPED_TEST(Cpu, ChannelsLast) {
  using P = Problem<typename TypeParam::Input, typename TypeParam::Map>;
  std::vector<Case> cases = {{2, 6, 13, 17, options(3, 1, 3)}, {1, 5, 1, 1, options(3, 1)}, {2, 20, 33, 9, options(2, 1, 2)}};
  for (std::int64_t channels : {1, 2, 3, 4, 8, 17, 35}) cases.push_back({1, channels, 12, 33, options(3, 1)});
  for (const Case& c : cases) {
    for (double reach : {2.0, 900.0}) {
      SCOPED_TRACE(c.channels * 1000 + static_cast<int>(reach));
      const P problem(c, [=](auto& random) { return between(random, -reach, reach); });
      EXPECT_TRUE(problem.forward(2, kChannelsLast) == problem.forward());
      const auto expected = problem.backward(), grads = problem.backward(true, true, 2, kChannelsLast);
      EXPECT_TRUE(grads.input == problem.laid_out(expected.input, kChannelsLast));
      EXPECT_TRUE(grads.map == expected.map);
      EXPECT_TRUE(grads.guarded);
    }
  }
}

// The results of a call do not depend on the number of threads, or on which of the gradients are asked for.
TYPED_TEST(Cpu, ThreadsAndMasks) {
  using P = Problem<typename TypeParam::Input, typename TypeParam::Map>;
  const std::vector<Case> cases = {
      {1, 3, 90, 70, options(3, 1)}, {2, 40, 33, 20, options(3, 1)}, {3, 6, 17, 19, options(2, 1, 2), true}};
  for (const Case& c : cases) {
    for (double reach : {2.0, 500.0}) {
      const P problem(c, [=](auto& random) { return between(random, -reach, reach); });
      const auto output = problem.forward(1);
      const auto grads = problem.backward(true, true, 1);
      for (int threads : {2, 3, 5, 16}) {
        SCOPED_TRACE(threads);
        EXPECT_TRUE(problem.forward(threads) == output);
        const auto both = problem.backward(true, true, threads);
        EXPECT_TRUE(both.guarded);
        EXPECT_TRUE(both.input == grads.input);
        EXPECT_TRUE(both.map == grads.map);
      }
      const auto only_input = problem.backward(true, false), only_map = problem.backward(false, true);
      const oracle::Tensor<typename TypeParam::Input> no_input(problem.geometry.input_numel());
      const oracle::Tensor<typename TypeParam::Map> no_map(problem.geometry.map_numel());
      EXPECT_TRUE(only_input.input == grads.input);
      EXPECT_TRUE(only_input.map == no_map);
      EXPECT_TRUE(only_map.map == grads.map);
      EXPECT_TRUE(only_map.input == no_input);
      EXPECT_TRUE(problem.backward(false, false).input == no_input);
    }
  }
}

}  // namespace
