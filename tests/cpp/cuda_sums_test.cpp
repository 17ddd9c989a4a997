// The CUDA kernels of aggregate and correlate against their definition, by way of the oracle's columns.

#include <initializer_list>

#include "cuda_call.h"
#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "heads_oracle.h"

namespace {

using cuda_call::any_rates;
using cuda_call::Environment;
using cuda_call::error;
using cuda_call::has_device;
using cuda_call::Memory;
using cuda_call::near_rates;
using cuda_call::Shifted;
using cuda_call::turned;
using cuda_call::Workspace;
using oracle::HeadCase;
using oracle::Sum;

// Heads finer and coarser than groups, and neither; one channel, vectors of them, several a head and several heads a vector;
// more channels than lanes take at once; strides, even kernels, many taps, few positions; factors and maps for all images;
// border; warps of which all lanes read all corners of a tap; heads of one lane that takes two pieces.
const HeadCase kCases[] = {
    {{2, 12, 9, 14, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}}, 2},
    {{1, 20, 10, 11, {{4, 4}, {2, 2}, {3, 3}, {1, 1}, 1, ddu::PaddingMode::border}}, 5},
    {{3, 3, 12, 9, {{7, 5}, {1, 1}, {3, 2}, {1, 2}, 1}, true}, 1, true},
    {{1, 1, 8, 9, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 1},
    {{2, 64, 6, 8, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 4},
    {{1, 144, 3, 7, {{3, 2}, {1, 1}, {1, 1}, {2, 1}, 1}}, 1},
    {{2, 64, 5, 4, {{2, 2}, {1, 1}, {1, 1}, {1, 1}, 4, ddu::PaddingMode::border}}, 1, true},
    {{1, 32, 4, 9, {{3, 3}, {1, 1}, {2, 2}, {2, 2}, 1}, true}, 32},
    {{1, 32, 7, 5, {{1, 3}, {1, 1}, {0, 1}, {1, 1}, 2}}, 16},
    {{1, 2, 13, 12, {{11, 11}, {1, 1}, {5, 5}, {1, 1}, 1}}, 2},
    {{1, 6, 29, 31, {{3, 2}, {3, 5}, {0, 0}, {1, 1}, 6}}, 1},
    {{1, 96, 5, 8, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 3},
    {{2, 8, 9, 11, {{3, 3}, {1, 2}, {1, 1}, {1, 1}, 2, ddu::PaddingMode::zeros, true, {3, 1}}, false, {4, 5}}, 2},
    {{1, 64, 6, 10, {{3, 3}, {1, 1}, {0, 0}, {1, 1}, 1}}, 4},
    {{1, 40, 5, 6, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 5},
};

template <class T, class M>
using Problem = oracle::HeadProblem<T, M>;
using Expected = oracle::HeadResults;

struct How {
  bool channels_last = false, deterministic = false;
  std::size_t shift = 0;                        // elements from where memory is aligned to where every tensor starts
  bool image = true, other = true, map = true;  // gradients wanted
};

/// The tensors of a problem on the device, in a format.
template <class T, class M>
struct OnDevice {
  const Problem<T, M>& problem;
  How how;
  Shifted<T> image, values, factors;
  Shifted<M> map;

  OnDevice(const Problem<T, M>& problem, const How& how)
      : problem(problem),
        how(how),
        image(formatted(problem.image, problem.h.geometry.pixels()), how.shift),
        values(formatted(problem.values, problem.h.geometry.positions()), how.shift),
        factors(problem.factors, how.shift),
        map(problem.map, how.shift) {}
  oracle::Tensor<T> formatted(const oracle::Tensor<T>& tensor, std::int64_t count, bool back = false) const {
    const ddu::Geometry& g = problem.h.geometry;
    return how.channels_last ? turned(g.batch, g.channels, count, tensor, back)
                             : turned(g.batch, 1, g.channels * count, tensor);
  }
  ddu::MemoryFormat format() const {
    return how.channels_last ? ddu::MemoryFormat::channels_last : ddu::MemoryFormat::contiguous;
  }
};

template <class T, class M>
struct Gradients {
  oracle::Tensor<T> image, other;
  oracle::Tensor<M> map;
};

/// What differs between the two operators: their structs and functions.
template <class T, class M>
struct Aggregate {
  static oracle::Tensor<T> forward(const Problem<T, M>& problem, const How& how) {
    const OnDevice<T, M> on(problem, how);
    const Shifted<T> output(problem.h.values_numel(), how.shift);
    ddu::Aggregate tensors{on.image.data(), on.factors.data(), on.map.data(), output.data(), nullptr, on.format()};
    const Workspace workspace(ddu::cuda::aggregate_workspace_bytes(problem.h, problem.types(), tensors));
    tensors.workspace = workspace.data();
    ddu::cuda::aggregate(problem.h, problem.types(), tensors, nullptr);
    EXPECT_TRUE(workspace.kept_within());
    return on.formatted(output.on_host(), problem.h.geometry.positions(), true);
  }
  static Gradients<T, M> backward(const Problem<T, M>& problem, const How& how) {
    const OnDevice<T, M> on(problem, how);
    const Shifted<T> image(problem.h.geometry.input_numel(), how.shift), other(problem.h.factors_numel(), how.shift);
    const Shifted<M> map(problem.h.geometry.map_numel(), how.shift);
    ddu::AggregateBackward tensors{on.values.data(), on.image.data(), on.factors.data(), on.map.data(), nullptr,
                                   nullptr,          nullptr};
    if (how.image) tensors.grad_input = image.data();
    if (how.other) tensors.grad_weights = other.data();
    if (how.map) tensors.grad_map = map.data();
    tensors.input_format = on.format();
    const Workspace workspace(
        ddu::cuda::aggregate_backward_workspace_bytes(problem.h, problem.types(), tensors, how.deterministic));
    tensors.workspace = workspace.data();
    ddu::cuda::aggregate_backward(problem.h, problem.types(), tensors, how.deterministic, nullptr);
    EXPECT_TRUE(workspace.kept_within());
    return {on.formatted(image.on_host(), problem.h.geometry.pixels(), true), other.on_host(), map.on_host()};
  }
  static const std::vector<Sum>& output(const Expected& expected) { return expected.values; }
  static const std::vector<Sum>& other(const Expected& expected) { return expected.factors; }
};

template <class T, class M>
struct Correlate {
  static oracle::Tensor<T> forward(const Problem<T, M>& problem, const How& how) {
    const OnDevice<T, M> on(problem, how);
    const ddu::Geometry& g = problem.h.geometry;
    const Shifted<T> scores(g.batch * problem.h.heads * g.taps() * g.positions(), how.shift);
    ddu::Correlate tensors{on.values.data(), on.image.data(), on.map.data(), scores.data(), nullptr, on.format()};
    const ddu::HeadGeometry h = problem.of_scores();
    const Workspace workspace(ddu::cuda::correlate_workspace_bytes(h, problem.types(), tensors));
    tensors.workspace = workspace.data();
    ddu::cuda::correlate(h, problem.types(), tensors, nullptr);
    EXPECT_TRUE(workspace.kept_within());
    return scores.on_host();
  }
  static Gradients<T, M> backward(const Problem<T, M>& problem, const How& how) {
    const OnDevice<T, M> on(problem, how);
    const Shifted<T> image(problem.h.geometry.input_numel(), how.shift), other(problem.h.values_numel(), how.shift);
    const Shifted<M> map(problem.h.geometry.map_numel(), how.shift);
    ddu::CorrelateBackward tensors{on.factors.data(), on.values.data(), on.image.data(), on.map.data(),
                                   nullptr,           nullptr,          nullptr};
    if (how.image) tensors.grad_key = image.data();
    if (how.other) tensors.grad_query = other.data();
    if (how.map) tensors.grad_map = map.data();
    tensors.input_format = on.format();
    const Workspace workspace(
        ddu::cuda::correlate_backward_workspace_bytes(problem.h, problem.types(), tensors, how.deterministic));
    tensors.workspace = workspace.data();
    ddu::cuda::correlate_backward(problem.h, problem.types(), tensors, how.deterministic, nullptr);
    EXPECT_TRUE(workspace.kept_within());
    return {on.formatted(image.on_host(), problem.h.geometry.pixels(), true),
            on.formatted(other.on_host(), problem.h.geometry.positions(), true), map.on_host()};
  }
  static const std::vector<Sum>& output(const Expected& expected) { return expected.scores; }
  static const std::vector<Sum>& other(const Expected& expected) { return expected.values; }
};

template <template <class, class> class Op, class Input, class Map>
struct Types {
  using T = Input;
  using M = Map;
  using Operator = Op<T, M>;
};

template <class Given>
class CudaSums : public testing::Test {
 protected:
  using Operator = typename Given::Operator;
  using P = Problem<typename Given::T, typename Given::M>;

  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
  static void expect_forward(const P& problem, const Expected& expected, const How& how) {
    EXPECT_LE(error(Operator::forward(problem, how), Operator::output(expected)), 1);
  }
  /// Every gradient that is wanted.
  static void expect_backward(const P& problem, const Expected& expected, const How& how) {
    SCOPED_TRACE(testing::Message() << (how.deterministic ? "deterministic" : "default") << ", wanted " << how.image
                                    << how.other << how.map);
    const auto actual = Operator::backward(problem, how);
    if (how.image) {
      EXPECT_LE(error(actual.image, expected.image), 1);
    }
    if (how.other) {
      EXPECT_LE(error(actual.other, Operator::other(expected)), 1);
    }
    if (how.map) {
      EXPECT_LE(error(actual.map, expected.map), 1);
    }
  }
  template <class Body>
  static void for_each_case(Body body) {
    for (const HeadCase& c : kCases) {
      for (const bool channels_last : {false, true}) {
        SCOPED_TRACE(testing::Message() << "case " << &c - kCases << (channels_last ? ", channels last" : ""));
        How how;
        how.channels_last = channels_last;
        body(c, how);
      }
    }
  }
};
using Every = testing::Types<Types<Aggregate, ddu::float16, float>, Types<Aggregate, ddu::bfloat16, ddu::bfloat16>,
                             Types<Aggregate, float, float>, Types<Aggregate, double, double>,
                             Types<Correlate, ddu::float16, float>, Types<Correlate, ddu::bfloat16, ddu::bfloat16>,
                             Types<Correlate, float, float>, Types<Correlate, double, double>>;
TYPED_TEST_SUITE(CudaSums, Every);

TYPED_TEST(CudaSums, AgainstTheOracle) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const auto rates : {near_rates, any_rates}) {
    SCOPED_TRACE(rates == near_rates ? "near rates" : "any rates");
    this->for_each_case([&](const HeadCase& c, How how) {
      const P problem(c, rates);
      const Expected expected = oracle::run(problem);
      this->expect_forward(problem, expected, how);
      for (const bool deterministic : {false, true}) {
        how.deterministic = deterministic;
        this->expect_backward(problem, expected, how);
      }
    });
  }
}

TYPED_TEST(CudaSums, OnlyWhatIsWanted) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const int which : {0, 4, 6}) {
    const P problem(kCases[which], near_rates);
    const Expected expected = oracle::run(problem);
    for (const bool channels_last : {false, true})
      for (const bool deterministic : {false, true})
        for (unsigned wanted = 1; wanted < 7; ++wanted)
          this->expect_backward(problem, expected,
                                {channels_last, deterministic, 0, (wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0});
  }
}

TYPED_TEST(CudaSums, TensorsMayStartAnywhere) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const int which : {0, 4}) {
    const P problem(kCases[which], near_rates);
    const Expected expected = oracle::run(problem);
    for (const bool channels_last : {false, true}) {
      this->expect_forward(problem, expected, {channels_last, false, 1});
      for (const bool deterministic : {false, true})
        this->expect_backward(problem, expected, {channels_last, deterministic, 1});
    }
  }
}

TYPED_TEST(CudaSums, PixelsThatAreNotFinite) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  const double strange[] = {NAN, INFINITY, -INFINITY};
  for (const int which : {0, 4, 5}) {
    P problem(kCases[which], near_rates);
    for (std::int64_t i = 0; i < 9; ++i) problem.image.set(i * 7919 % std::int64_t(problem.image.size()), strange[i % 3]);
    const Expected expected = oracle::run(problem);
    for (const bool channels_last : {false, true}) {
      this->expect_forward(problem, expected, {channels_last});
      How how{channels_last};
      how.map = false;
      this->expect_backward(problem, expected, how);
    }
  }
}

TYPED_TEST(CudaSums, DeterministicGradientsRepeat) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  this->for_each_case([&](const HeadCase& c, How how) {
    P problem(c, any_rates);
    how.deterministic = true;
    for (const bool finite : {true, false}) {
      if (!finite) {
        const double strange[] = {NAN, -NAN, INFINITY, -INFINITY};
        for (std::int64_t i = 0; i < 8; ++i) problem.values.set(i * 7919 % std::int64_t(problem.values.size()), strange[i % 4]);
      }
      const auto once = TypeParam::Operator::backward(problem, how);
      const auto output = TypeParam::Operator::forward(problem, how);
      const Environment backwards("DDU_EMULATION_BACKWARDS", "1");  // the other order of threads, where they are emulated
      const auto again = TypeParam::Operator::backward(problem, how);
      EXPECT_EQ(once.image, again.image);
      EXPECT_EQ(once.other, again.other);
      EXPECT_EQ(once.map, again.map);
      EXPECT_EQ(output, TypeParam::Operator::forward(problem, how));
    }
  });
}

TYPED_TEST(CudaSums, GradientsOfAnySize) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  using T = typename TypeParam::T;
  if (sizeof(T) == 2) return;  // there is no room for them
  for (const double scale : {1e-15, 1e15}) {
    P problem(kCases[4], near_rates);
    for (std::size_t i = 0; i < problem.values.size(); ++i) {
      problem.values.set(std::int64_t(i), scale * problem.values[std::int64_t(i)]);
    }
    const Expected expected = oracle::run(problem);
    for (const bool channels_last : {false, true}) this->expect_backward(problem, expected, {channels_last, true});
  }
}

TYPED_TEST(CudaSums, NothingToDo) {
  using P = Problem<typename TypeParam::T, typename TypeParam::M>;
  const P problem(kCases[0], near_rates);
  for (const bool deterministic : {false, true}) {
    TypeParam::Operator::backward(problem, {false, deterministic, 0, false, false, false});
  }
  // Without channels there is nothing to add, and sums are zero.
  HeadCase c = kCases[0];
  c.sizes.channels = 0;
  const P empty(c, near_rates);
  const Expected expected = oracle::run(empty);
  this->expect_forward(empty, expected, {});
  this->expect_backward(empty, expected, {});
}

}  // namespace
