// The CPU kernels of aggregate and correlate against the oracle.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cpu_call.h"
#include "cpu_rates.h"
#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "heads_oracle.h"
#include "small_stack.h"

namespace {

using cpu_call::Gradients;
using cpu_call::How;
using cpu_call::kChannelsLast;
using cpu_call::kContiguous;
using cpu_call::laid_out;
using cpu_call::options;
using cpu_call::with_workspace;
using oracle::Case;
using oracle::HeadCase;
using oracle::HeadProblem;
using oracle::Tensor;
using oracle::worst_error;

/// What differs between the two operators: their structs and functions.
struct Aggregate {
  template <class T, class M>
  static Tensor<T> forward(const HeadProblem<T, M>& p, const How& how) {
    const ddu::Geometry& g = p.h.geometry;
    const Tensor<T> image = laid_out(how, g.batch, g.channels, g.pixels(), p.image);
    Tensor<T> output(p.h.values_numel());
    ddu::Aggregate t{image.data(), p.factors.data(), p.map.data(), output.data(), nullptr, how.format};
    with_workspace(
        t, [&] { return ddu::cpu::aggregate_workspace_bytes(p.h, p.types(), t, how.threads); },
        [&] { ddu::cpu::aggregate(p.h, p.types(), t, how.threads); });
    EXPECT_TRUE(output.guarded());
    return laid_out(how, g.batch, g.channels, g.positions(), output, true);
  }
  template <class T, class M>
  static Gradients<T, M> backward(const HeadProblem<T, M>& p, const How& how) {
    const ddu::Geometry& g = p.h.geometry;
    const Tensor<T> image = laid_out(how, g.batch, g.channels, g.pixels(), p.image),
                    grad = laid_out(how, g.batch, g.channels, g.positions(), p.values);
    Gradients<T, M> grads{Tensor<T>(g.input_numel()), Tensor<T>(p.h.factors_numel()), Tensor<M>(g.map_numel())};
    ddu::AggregateBackward t{grad.data(), image.data(), p.factors.data(), p.map.data(), nullptr, nullptr, nullptr};
    t.input_format = how.format;
    if (how.image) t.grad_input = grads.image.data();
    if (how.other) t.grad_weights = grads.other.data();
    if (how.map) t.grad_map = grads.map.data();
    with_workspace(
        t, [&] { return ddu::cpu::aggregate_backward_workspace_bytes(p.h, p.types(), t, how.threads); },
        [&] { ddu::cpu::aggregate_backward(p.h, p.types(), t, how.threads); });
    EXPECT_TRUE(grads.guarded());
    return {laid_out(how, g.batch, g.channels, g.pixels(), grads.image, true), std::move(grads.other), std::move(grads.map)};
  }
  static const auto& output(const oracle::HeadResults& expected) { return expected.values; }
  static const auto& other(const oracle::HeadResults& expected) { return expected.factors; }
};

struct Correlate {
  template <class T, class M>
  static Tensor<T> forward(const HeadProblem<T, M>& p, const How& how) {
    const ddu::HeadGeometry h = p.of_scores();
    const ddu::Geometry& g = h.geometry;
    const Tensor<T> query = laid_out(how, g.batch, g.channels, g.positions(), p.values),
                    key = laid_out(how, g.batch, g.channels, g.pixels(), p.image);
    Tensor<T> scores(h.factors_numel());
    ddu::Correlate t{query.data(), key.data(), p.map.data(), scores.data(), nullptr, how.format};
    with_workspace(
        t, [&] { return ddu::cpu::correlate_workspace_bytes(h, p.types(), t, how.threads); },
        [&] { ddu::cpu::correlate(h, p.types(), t, how.threads); });
    EXPECT_TRUE(scores.guarded());
    return scores;
  }
  /// Its factors may be of one image only, which a correlate's are not.
  template <class T, class M>
  static Gradients<T, M> backward(const HeadProblem<T, M>& p, const How& how) {
    const ddu::Geometry& g = p.h.geometry;
    const Tensor<T> query = laid_out(how, g.batch, g.channels, g.positions(), p.values),
                    key = laid_out(how, g.batch, g.channels, g.pixels(), p.image);
    Gradients<T, M> grads{Tensor<T>(g.input_numel()), Tensor<T>(p.h.values_numel()), Tensor<M>(g.map_numel())};
    ddu::CorrelateBackward t{p.factors.data(), query.data(), key.data(), p.map.data(), nullptr, nullptr, nullptr};
    t.input_format = how.format;
    if (how.image) t.grad_key = grads.image.data();
    if (how.other) t.grad_query = grads.other.data();
    if (how.map) t.grad_map = grads.map.data();
    with_workspace(
        t, [&] { return ddu::cpu::correlate_backward_workspace_bytes(p.h, p.types(), t, how.threads); },
        [&] { ddu::cpu::correlate_backward(p.h, p.types(), t, how.threads); });
    EXPECT_TRUE(grads.guarded());
    return {laid_out(how, g.batch, g.channels, g.pixels(), grads.image, true),
            laid_out(how, g.batch, g.channels, g.positions(), grads.other, true), std::move(grads.map)};
  }
  static const auto& output(const oracle::HeadResults& expected) { return expected.scores; }
  static const auto& other(const oracle::HeadResults& expected) { return expected.values; }
};

template <class Op, class Input, class Map>
struct Given {
  using Operator = Op;
  using T = Input;
  using M = Map;
};

template <class Given>
class CpuSums : public testing::Test {
 protected:
  using Operator = typename Given::Operator;
  using P = HeadProblem<typename Given::T, typename Given::M>;

  static void check(const HeadCase& c, const std::function<double(std::mt19937&)>& rate) { check(P(c, rate)); }
  static void check(const P& problem) {
    const auto expected = oracle::run(problem);
    EXPECT_LE(worst_error(Operator::forward(problem, {}), Operator::output(expected)), 1);
    const auto grads = Operator::backward(problem, {});
    EXPECT_LE(worst_error(grads.image, expected.image), 1);
    EXPECT_LE(worst_error(grads.other, Operator::other(expected)), 1);
    EXPECT_LE(worst_error(grads.map, expected.map), 1);
  }
};
using Kinds = testing::Types<Given<Aggregate, ddu::float16, ddu::float16>, Given<Aggregate, ddu::bfloat16, float>,
                             Given<Aggregate, float, float>, Given<Aggregate, double, double>,
                             Given<Correlate, ddu::float16, float>, Given<Correlate, ddu::bfloat16, ddu::bfloat16>,
                             Given<Correlate, float, float>, Given<Correlate, double, double>>;
TYPED_TEST_SUITE(CpuSums, Kinds);

// Heads finer and coarser than groups, and neither; with Vecs of their own, and several to a Vec; factors and maps of all
// images.
const std::vector<HeadCase> kCases = {
    {{2, 12, 9, 14, options(3, 1, 3)}, 2},
    {{1, 20, 10, 11, options(4, 3, 1, 2)}, 5},
    {{3, 3, 12, 9, options(5, 2), true}, 1, true},
    {{1, 1, 8, 9, options(3, 1)}, 1},
    {{2, 40, 6, 8, options(3, 1)}, 2},
    {{2, 36, 5, 4, options(2, 1, 4)}, 1, true},
    {{1, 32, 4, 9, options(3, 2, 1, 1, 2), true}, 32},
    {{2, 34, 7, 5, options(3, 1, 2)}, 17},
    {{1, 18, 9, 75, options(3, 1, 3)}, 2},
    {{1, 2, 13, 12, options(11, 5)}, 2},
    {{1, 24, 6, 40, options(3, 1)}, 3},
};

TYPED_TEST(CpuSums, Geometries) {
  for (const HeadCase& c : kCases) {
    SCOPED_TRACE(&c - kCases.data());
    this->check(c, near_rates);
  }
}

TYPED_TEST(CpuSums, RatesNearAndFar) {
  this->check({{2, 20, 12, 70, options(3, 1)}, 4}, any_rates);
  this->check({{2, 6, 12, 14, options(4, 2, 3)}, 2, true}, any_rates);
}

// Windows that fit no wide Vec, and none at all; kernels whose taps outgrow a tile's buffers.
TYPED_TEST(CpuSums, WindowsThatDoNotFit) {
  for (double reach : {1.0, 3.0, 14.0}) {
    this->check({{1, 10, 230, 250, options(3, 1, 1, 5, 6)}, 2}, [=](auto& random) { return between(random, -reach, reach); });
  }
  this->check({{1, 3, 302, 5, {{300, 2}, {1, 1}, {0, 0}, {1, 1}, 1}}, 1},
              [](auto& random) { return between(random, 0.9, 1.1); });
}

TYPED_TEST(CpuSums, BorderAndParts) {
  ddu::Options border = options(3, 4, 2);
  border.padding_mode = ddu::PaddingMode::border;
  this->check({{2, 20, 9, 11, border}, 5}, near_rates);
  border.part = true;
  border.origin[0] = 3;
  this->check({{2, 20, 9, 11, border, false, {4, 17}}, 5}, near_rates);
}

// channels_last is read and written as it lies: the same numbers to the bit, in another place.
TYPED_TEST(CpuSums, ChannelsLast) {
  using P = typename TestFixture::P;
  using Operator = typename TestFixture::Operator;
  for (const HeadCase& c : kCases) {
    SCOPED_TRACE(&c - kCases.data());
    const P problem(c, any_rates);
    EXPECT_TRUE(Operator::forward(problem, {kChannelsLast}) == Operator::forward(problem, {}));
    const auto grads = Operator::backward(problem, {kChannelsLast}), expected = Operator::backward(problem, {});
    EXPECT_TRUE(grads == expected);
  }
}

// The results of a call do not depend on the number of threads, or on which of the gradients are asked for.
TYPED_TEST(CpuSums, ThreadsAndMasks) {
  using P = typename TestFixture::P;
  using Operator = typename TestFixture::Operator;
  const std::vector<HeadCase> cases = {{{1, 60, 20, 33, options(3, 1)}, 3},
                                       {{1, 60, 8, 9, options(3, 1, 3)}, 2},
                                       {{2, 48, 9, 70, options(3, 1)}, 24},
                                       {{3, 6, 17, 19, options(2, 1, 2), true}, 3, true}};
  for (const HeadCase& c : cases) {
    SCOPED_TRACE(&c - cases.data());
    const P problem(c, any_rates);
    const auto output = Operator::forward(problem, {kContiguous, 1});
    const auto grads = Operator::backward(problem, {kContiguous, 1});
    for (int threads : {2, 3, 16}) {
      EXPECT_TRUE(Operator::forward(problem, {kContiguous, threads}) == output);
      const auto all = Operator::backward(problem, {kContiguous, threads});
      EXPECT_TRUE(all == grads);
    }
    const auto image = Operator::backward(problem, {kContiguous, 2, true, false, false});
    const auto other = Operator::backward(problem, {kContiguous, 2, false, true, false});
    const auto map = Operator::backward(problem, {kContiguous, 2, false, false, true});
    EXPECT_TRUE(image.image == grads.image);
    EXPECT_TRUE(other.other == grads.other);
    EXPECT_TRUE(map.map == grads.map);
    EXPECT_FALSE(other.image == grads.image);
    EXPECT_FALSE(image.map == grads.map);
  }
}

// Of pixels that are not finite as of those that are.
TYPED_TEST(CpuSums, PixelsThatAreNotFinite) {
  using P = typename TestFixture::P;
  for (double rate : {1.0, 1.5}) {
    P problem({{1, 20, 12, 12, options(3, 1)}, 4}, [=](auto&) { return rate; });
    problem.image.set(5 * 144 + 6 * 12 + 6, NAN);
    this->check(problem);
  }
}

// An infinite one at the image's edge is what a tap beyond it reads, with a window and without.
TYPED_TEST(CpuSums, InfinitePixelsAtABorder) {
  using P = typename TestFixture::P;
  using Operator = typename TestFixture::Operator;
  ddu::Options near = options(3, 1), leaps{{3, 3}, {16, 18}, {1, 1}, {6, 6}, 1};
  near.padding_mode = leaps.padding_mode = ddu::PaddingMode::border;
  for (const HeadCase& c : {HeadCase{{1, 20, 9, 12, near}, 4}, HeadCase{{1, 5, 230, 250, leaps}, 5}}) {
    SCOPED_TRACE(c.sizes.height);
    P problem(c, near_rates);
    problem.image.set((c.sizes.height + 2) * c.sizes.width - 1, INFINITY);
    problem.image.set(3 * c.sizes.height * c.sizes.width, -INFINITY);
    EXPECT_LE(worst_error(Operator::forward(problem, {}), Operator::output(oracle::run(problem))), 1);
  }
}

// Differences of the output say what the gradients are, without any formula for them.
template <class Operator>
void check_differences() {
  const HeadCase c{{2, 6, 7, 8, options(3, 1, 3)}, 2};
  HeadProblem<double, double> problem(c, [](auto& random) { return 0.3037 + 0.01 * double(random() % 97); });
  constexpr bool kAggregate = std::is_same_v<Operator, Aggregate>;
  const auto& weights = kAggregate ? problem.values : problem.factors;  // of the sum that is differentiated
  auto& other = kAggregate ? problem.factors : problem.values;
  const auto grads = Operator::backward(problem, {});
  const auto total = [&] {
    const auto output = Operator::forward(problem, {kContiguous, 1});
    double sum = 0;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(output.size()); ++i) sum += output[i] * weights[i];
    return sum;
  };
  const auto check = [&](Tensor<double>& tensor, const Tensor<double>& gradient) {
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(tensor.size()); i += 41) {
      const double value = tensor[i], step = 1e-6;
      tensor.set(i, value + step);
      const double above = total();
      tensor.set(i, value - step);
      const double below = total();
      tensor.set(i, value);
      EXPECT_NEAR(gradient[i], (above - below) / (2 * step), 1e-6);
    }
  };
  check(problem.image, grads.image);
  check(other, grads.other);
  check(problem.map, grads.map);
}
TEST(CpuSumsGradients, AreDifferencesOfTheOutput) {
  check_differences<Aggregate>();
  check_differences<Correlate>();
}

#if defined(DDU_SMALL_STACKS)
template <class T, class M>
void check_small_stack() {
  for (std::int64_t heads : {1, 8, 32}) {
    for (double reach : {2.0, 14.0, 500.0}) {  // wide windows, narrow ones, none
      const HeadProblem<T, M> problem({{1, 32, 20, 100, options(3, 6, 1, 1, 6)}, heads},
                                      [=](auto& random) { return between(random, -reach, reach); });
      on_small_stack([&] {
        Aggregate::forward(problem, {kContiguous, 1});
        Aggregate::backward(problem, {kChannelsLast, 1});
        Correlate::forward(problem, {kContiguous, 1});
        Correlate::backward(problem, {kChannelsLast, 1});
      });
    }
  }
}

// As CpuEdges has them.
TEST(CpuSumsEdges, SmallStacks) {
  check_small_stack<ddu::float16, float>();
  check_small_stack<float, float>();
  check_small_stack<double, double>();
}
#endif

TEST(CpuSumsEdges, EmptyTensors) {
  for (const HeadCase& c : {HeadCase{{0, 4, 5, 5, options(3, 1)}, 2, true}, HeadCase{{2, 0, 5, 5, options(3, 1), true}, 2}}) {
    const HeadProblem<float, float> problem(c, near_rates);
    EXPECT_EQ(Aggregate::forward(problem, {}).size(), 0u);
    const auto grads = Aggregate::backward(problem, {});
    for (std::size_t i = 0; i < grads.other.size(); ++i) EXPECT_EQ(grads.other[static_cast<std::int64_t>(i)], 0);
    for (std::size_t i = 0; i < grads.map.size(); ++i) EXPECT_EQ(grads.map[static_cast<std::int64_t>(i)], 0);
    const auto scores = Correlate::forward(problem, {});
    EXPECT_EQ(scores.size(), static_cast<std::size_t>(c.sizes.batch * 2 * 9 * 25));
    for (std::size_t i = 0; i < scores.size(); ++i) EXPECT_EQ(scores[static_cast<std::int64_t>(i)], 0);
  }
}

TEST(CpuSumsEdges, NothingWantedNeedsNoMemory) {
  const HeadProblem<float, float> p({{1, 4, 8, 8, options(3, 1)}, 2}, near_rates);
  const ddu::AggregateBackward none{};
  EXPECT_EQ(ddu::cpu::aggregate_backward_workspace_bytes(p.h, p.types(), none, 4), 0u);
  ddu::cpu::aggregate_backward(p.h, p.types(), none, 4);
}

}  // namespace
