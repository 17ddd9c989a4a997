// The CUDA kernels against the oracle; where there is no device, that every entry point says what is missing.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>

#include "cuda_call.h"
#include "ddu/error.h"

namespace {

using namespace cuda_call;
using oracle::Case;

// Every family of kernels: 3x3 with one channel a group, in one step, in runs of several steps; 5x5, 7x7, others; images of one
// tile, of many, narrow ones, and such as no window holds as a whole; maps for each image and for all of them; a part of the
// output; as many taps as integer sums take, and more.
const Case kCases[] = {
    {2, 6, 13, 70, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}},
    {1, 4, 12, 11, {{4, 4}, {2, 2}, {3, 3}, {1, 1}, 2}},
    {3, 5, 20, 24, {{7, 5}, {1, 1}, {3, 2}, {1, 2}, 1}, true},
    {2, 2, 11, 67, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 2}, true},
    {1, 72, 8, 8, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},
    {1, 5, 14, 33, {{5, 5}, {1, 1}, {2, 2}, {1, 1}, 1}},
    {1, 3, 16, 20, {{7, 7}, {1, 1}, {3, 3}, {1, 1}, 1}},
    {1, 2, 12, 12, {{9, 10}, {1, 1}, {4, 5}, {1, 1}, 1}},
    {1, 3, 40, 3, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},
    {1, 4, 30, 40, {{3, 3}, {1, 1}, {8, 8}, {8, 8}, 2}},
    {1, 3, 29, 31, {{3, 2}, {3, 5}, {0, 0}, {1, 1}, 1}},
    {1, 136, 5, 9, {{3, 2}, {1, 1}, {1, 1}, {2, 1}, 2}},
    {1, 3, 88, 90, {{3, 3}, {5, 4}, {1, 1}, {2, 3}, 1}},
    {1, 10, 44, 43, {{3, 3}, {2, 2}, {1, 1}, {2, 2}, 1}},
    {1, 2, 70, 90, {{5, 5}, {5, 4}, {1, 1}, {2, 2}, 2}},
    {1, 2, 70, 80, {{3, 3}, {5, 4}, {1, 1}, {1, 1}, 2}},
    {1, 6, 40, 45, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, ddu::PaddingMode::zeros, true, {21, 3}}, false, {17, 41}},
    {1, 2, 14, 15, {{11, 11}, {1, 1}, {5, 5}, {1, 1}, 1}},
    {1, 2, 14, 15, {{11, 12}, {1, 1}, {5, 5}, {1, 1}, 1}},
};

/// Windows of the usual size are asked for. Deterministic calls have them anyway.
bool is_planar(const Way& way) { return way.forced && std::strcmp(way.forced, "planar") == 0; }

template <class Given>
class Cuda : public testing::Test {
 protected:
  using T = typename Given::T;
  using M = typename Given::M;

  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
  static void against_the_oracle(const Problem<T, M>& problem,
                                 std::initializer_list<bool> deterministic_or_not = {false, true}) {
    const ddu::Geometry& g = problem.geometry;
    const auto expected = oracle::run(g, problem.input, problem.map, problem.grad_output);
    for (const Way& way : kWays) {
      SCOPED_TRACE(way.channels_last ? "channels-last input" : way.forced ? way.forced : "the usual way");
      EXPECT_LE(error(forward(problem, way), expected.output), 1);
      for (const bool deterministic : deterministic_or_not) {
        if (deterministic && is_planar(way)) continue;
        SCOPED_TRACE(deterministic ? "deterministic" : "default");
        const auto both = backward(problem, {deterministic, true, true, 0, way});
        EXPECT_LE(error(both.input, expected.grad_input), 1);
        EXPECT_LE(error(both.map, expected.grad_map), 1);
        EXPECT_LE(error(backward(problem, {deterministic, true, false, 0, way}).input, expected.grad_input), 1);
        EXPECT_LE(error(backward(problem, {deterministic, false, true, 0, way}).map, expected.grad_map), 1);
      }
    }
  }
};
TYPED_TEST_SUITE(Cuda, Every);

TYPED_TEST(Cuda, AgainstTheOracle) {
  using Problem = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const auto rates : {near_rates, wide_rates, any_rates}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(testing::Message() << "case " << &c - kCases
                                      << (rates == near_rates   ? ", near rates"
                                          : rates == wide_rates ? ", wide rates"
                                                                : ", any rates"));
      this->against_the_oracle(Problem(c, rates));
    }
  }
}

// padding_mode border: windows of zeros are not even tried, so all ways are those of the channels-last kernels.
TYPED_TEST(Cuda, Border) {
  for (const int which : {0, 1, 2, 4, 7, 8, 11, 12}) {
    Case c = kCases[which];
    c.options.padding_mode = ddu::PaddingMode::border;
    SCOPED_TRACE(testing::Message() << "case " << which);
    this->against_the_oracle({c, any_rates});
  }
  for (Case c :
       {Case{2, 3, 1, 1, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}}, Case{1, 9, 1, 12, {{3, 2}, {1, 1}, {9, 1}, {1, 1}, 1}}}) {
    c.options.padding_mode = ddu::PaddingMode::border;
    this->against_the_oracle({c, any_rates});
  }
}

TYPED_TEST(Cuda, OnesCopyPixelsWithTheSignOfZeros) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    Problem<typename TypeParam::T, typename TypeParam::M> problem(c, [](auto&) { return 1.0; });
    for (std::int64_t i = 0; i < std::int64_t(problem.input.size()); ++i) {
      const double values[] = {-0.0, 1.5, -0.0, 0.0, -2};
      problem.input.set(i, values[i % 5]);
    }
    const ddu::Geometry& g = problem.geometry;
    const auto pixel = [](const ddu::Axis& axis, std::int64_t position, std::int64_t tap) {
      return (axis.origin + position) * axis.stride - axis.padding + tap * axis.dilation;
    };
    for (const Way& way : kWays) {
      const auto actual = forward(problem, way);
      for (std::int64_t i = 0; i < g.columns_numel(); ++i) {
        const std::int64_t column = i / g.positions(), tap = column % g.taps(), position = i % g.positions();
        const std::int64_t y = pixel(g.h, position / g.w.out_size, tap / g.w.kernel_size),
                           x = pixel(g.w, position % g.w.out_size, tap % g.w.kernel_size);
        const bool inside = 0 <= y && y < g.h.size && 0 <= x && x < g.w.size;
        const double expected = inside ? problem.input[(column / g.taps() * g.h.size + y) * g.w.size + x] : 0.0;
        ASSERT_EQ(actual[i], expected) << i;
        ASSERT_EQ(std::signbit(actual[i]), std::signbit(expected)) << i;
      }
    }
  }
}

TYPED_TEST(Cuda, PixelsThatAreNotFinite) {
  using Problem = Problem<typename TypeParam::T, typename TypeParam::M>;
  const double strange[] = {NAN, INFINITY, -INFINITY};
  for (const auto rates : {near_rates, wide_rates}) {
    for (const int which : {0, 1, 5, 13}) {
      SCOPED_TRACE(testing::Message() << "case " << which << (rates == near_rates ? ", near rates" : ", wide rates"));
      Problem problem(kCases[which], rates);
      for (std::int64_t i = 0; i < 9; ++i) problem.input.set(i * 7919 % std::int64_t(problem.input.size()), strange[i % 3]);
      const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
      for (const Way& way : kWays) EXPECT_LE(error(forward(problem, way), expected.output), 1);
    }
  }
}

TYPED_TEST(Cuda, DeterministicGradientsRepeat) {
  using Problem = Problem<typename TypeParam::T, typename TypeParam::M>;
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    Problem problem(c, any_rates);
    for (const bool finite : {true, false}) {
      SCOPED_TRACE(finite ? "finite" : "not finite");
      if (!finite) {
        const double strange[] = {NAN, -NAN, INFINITY, -INFINITY};
        const auto size = static_cast<std::int64_t>(problem.grad_output.size());
        for (std::int64_t i = 0; i < 40; ++i) problem.grad_output.set(i * 7919 % size, strange[i % 4]);
      }
      for (const Way& way : kWays) {
        if (is_planar(way)) continue;
        const How how{true, true, true, 0, way};
        const auto once = backward(problem, how);
        const Environment backwards("DDU_EMULATION_BACKWARDS", "1");  // the other order of threads, where they are emulated
        const auto again = backward(problem, how);
        EXPECT_EQ(once.input, again.input);
        EXPECT_EQ(once.map, again.map);
      }
    }
  }
}

TYPED_TEST(Cuda, GradientsMayStartAnywhere) {
  using Problem = Problem<typename TypeParam::T, typename TypeParam::M>;
  const Problem problem(kCases[5], near_rates);
  for (const bool deterministic : {false, true}) {
    const auto aligned = backward(problem, {deterministic}), shifted = backward(problem, {deterministic, true, true, 1});
    if (deterministic) {
      EXPECT_EQ(shifted.input, aligned.input);
      EXPECT_EQ(shifted.map, aligned.map);
    } else {  // sums may be added in another order
      const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
      EXPECT_LE(error(shifted.input, expected.grad_input), 1);
      EXPECT_LE(error(shifted.map, expected.grad_map), 1);
    }
  }
}

TYPED_TEST(Cuda, NothingWantedNeedsNoMemory) {
  using Problem = Problem<typename TypeParam::T, typename TypeParam::M>;
  const Problem problem(kCases[0], near_rates);
  const ddu::UnfoldBackward tensors{};
  for (const bool deterministic : {false, true}) {
    EXPECT_EQ(ddu::cuda::unfold_backward_workspace_bytes(problem.geometry, problem.types(), tensors, deterministic), 0u);
    ddu::cuda::unfold_backward(problem.geometry, problem.types(), tensors, deterministic, nullptr);
  }
}

using CudaFloat = Cuda<Types<float, float>>;

// Where a window holds the whole image, no rate sends a tile to other kernels, and there is no memory for them.
TEST_F(CudaFloat, SmallImagesNeedNoScratchMemoryAtAnyRates) {
  const auto extreme_rates = [](std::mt19937& random) {
    const double rates[] = {3e38, -3e38, 1e9, -1e5, 40, 7.25, 1, 0, INFINITY, -INFINITY, NAN};
    return rates[random() % 11];
  };
  const Case cases[] = {{2, 16, 16, 16, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},
                        {1, 3, 24, 22, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}},
                        {1, 6, 12, 20, {{5, 5}, {1, 1}, {2, 2}, {2, 1}, 2}},
                        {1, 2, 64, 50, {{3, 3}, {9, 3}, {1, 1}, {1, 1}, 1}},  // few blocks: larger windows
                        {2, 4, 9, 40, {{4, 2}, {2, 1}, {1, 0}, {3, 7}, 1}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - cases);
    const Problem<float, float> problem(c, extreme_rates);
    const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
    EXPECT_EQ(ddu::cuda::unfold_workspace_bytes(problem.geometry, problem.types(), {}), 0u);
    EXPECT_LE(error(forward(problem, {}), expected.output), 1);
    float some;  // its address is not used
    const ddu::UnfoldBackward wanted{nullptr, nullptr, nullptr, &some, &some, nullptr};
    EXPECT_EQ(ddu::cuda::unfold_backward_workspace_bytes(problem.geometry, problem.types(), wanted, false), 0u);
    for (const bool deterministic : {false, true}) {
      const auto both = backward(problem, {deterministic});
      EXPECT_LE(error(both.input, expected.grad_input), 1);
      EXPECT_LE(error(both.map, expected.grad_map), 1);
    }
  }
  const Problem<float, float> large({1, 3, 130, 150, {{3, 3}, {5, 4}, {1, 1}, {2, 3}, 1}}, near_rates);
  EXPECT_GT(ddu::cuda::unfold_workspace_bytes(large.geometry, large.types(), {}), 0u);
}

using CudaDouble = Cuda<Types<double, double>>;

template <class T>
void test_gradients_of_size(std::initializer_list<double> scales) {
  for (const double scale : scales) {
    SCOPED_TRACE(scale);
    Problem<T, T> problem(kCases[0], [](auto&) { return 1.0; });
    for (std::int64_t i = 0; i < std::int64_t(problem.grad_output.size()); ++i) {
      problem.grad_output.set(i, scale * double(1 + i % 3));  // all of one sign: as much as can come together does
    }
    const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
    for (const bool deterministic : {false, true}) {
      for (const Way& way : kWays) {
        EXPECT_LE(error(backward(problem, {deterministic, true, false, 0, way}).input, expected.grad_input), 1);
      }
    }
  }
}
TEST_F(CudaFloat, GradientsOfAnySize) { test_gradients_of_size<float>({1e-36, 1e-30, 1e-3, 1e30, 1e37}); }
TEST_F(CudaDouble, GradientsOfAnySize) { test_gradients_of_size<double>({1e-300, 1e-3, 1e300}); }

TEST_F(CudaFloat, GradientsOfAnyRange) {
  Problem<float, float> problem(kCases[0], near_rates);
  for (std::int64_t i = 0; i < std::int64_t(problem.grad_output.size()); ++i) {
    problem.grad_output.set(i, problem.grad_output[i] * std::pow(10, double(i % 70 / 3 - 12)));
  }
  this->against_the_oracle(problem);
}

// Units of what is left by tiles without a window come from some runs of 128 gradients: those of the 32nd run, which is none of
// these, may be much larger, or the only ones. No window holds the second image. Wide tiles take the third; those of that run
// have no others, so that they have units of their own, of which ordered sums could not hold the sums.
TEST_F(CudaFloat, GradientsThatOthersDoNotSuggest) {
  const struct {
    Case sizes;
    double (*rates)(std::mt19937&);
    double others;
  } calls[] = {{{1, 4, 40, 72, {{3, 3}, {1, 1}, {6, 6}, {6, 6}, 1}}, any_rates, 0},
               {{1, 4, 40, 72, {{3, 3}, {1, 1}, {6, 6}, {6, 6}, 1}}, any_rates, 1e-6},
               {{1, 1, 180, 180, {{3, 3}, {1, 1}, {6, 6}, {6, 6}, 1}}, any_rates, 0},
               {{1, 1, 180, 180, {{3, 3}, {1, 1}, {6, 6}, {6, 6}, 1}}, any_rates, 1e-6},
               {{1, 2, 40, 72, {{3, 3}, {1, 1}, {2, 2}, {2, 2}, 1}}, wide_rates, 1e-9}};
  for (const auto& call : calls) {
    SCOPED_TRACE(testing::Message() << "call " << &call - calls);
    Problem<float, float> problem(call.sizes, call.rates);
    const std::int64_t positions = problem.geometry.positions(), plane = problem.geometry.taps() * positions;
    for (std::int64_t i = 0; i < std::int64_t(problem.grad_output.size()); ++i) {
      if (i % plane / 128 == 31) continue;
      const bool near = call.rates == wide_rates && i % positions < 32 * problem.geometry.w.out_size;
      problem.grad_output.set(i, near ? 0 : problem.grad_output[i] * call.others);
    }
    this->against_the_oracle(problem, {true});
  }
}

TEST(CudaWithoutDevice, SaysWhatIsMissing) {
  if (has_device()) GTEST_SKIP() << "there is a CUDA device";
  const Problem<float, float> problem(kCases[0], [](auto&) { return 1.0; });
  const char memory[64] = {};
  char result[64];
  const ddu::UnfoldBackward backward{memory, memory, memory, result, nullptr, nullptr};
  const auto expect_error = [&](auto call) {
    try {
      call();
      FAIL();
    } catch (const ddu::cuda_error& error) {
      EXPECT_TRUE(std::strstr(error.what(), "driver") || std::strstr(error.what(), "device")) << error.what();
    }
  };
  expect_error([&] { ddu::cuda::unfold(problem.geometry, problem.types(), {memory, memory, nullptr}, nullptr); });
  expect_error([&] { ddu::cuda::unfold_backward(problem.geometry, problem.types(), backward, false, nullptr); });
}

TEST(CudaBuild, KnowsItsToolkitAndArchitectures) {
  EXPECT_EQ(ddu::cuda::toolkit_version(), CUDART_VERSION);
  EXPECT_NE(std::string(ddu::cuda::architectures()), "");
}

}  // namespace
