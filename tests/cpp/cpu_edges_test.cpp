// The CPU operators at the edges of their domain.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "ddu/error.h"
#include "oracle.h"

namespace {

using oracle::Case;

const ddu::Options kThree{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};

double between_half_and_three(std::mt19937& random) { return std::uniform_real_distribution<double>(0.5, 3)(random); }

TEST(CpuEdges, CapabilityIsTheOneAskedFor) {
  const std::string name = ddu::cpu::capability();
  EXPECT_TRUE(name == "baseline" || name == "avx2" || name == "avx512") << name;
}

// F.unfold copies pixels; at rate 1 so must this, to the bit, also of pixels that arithmetic could change.
TEST(CpuEdges, RateOneCopiesPixels) {
  for (std::int64_t kernel_size : {1, 2, 3, 5}) {
    for (std::int64_t channels : {1, 3, 18}) {
      const ddu::Options options{{kernel_size, kernel_size}, {2, 1}, {kernel_size / 2, 2}, {1, 2}, 1};
      oracle::Problem<float, float> problem(Case{2, channels, 12, 23, options}, [](auto&) { return 1.0; });
      problem.input.set(5, 1e-45);
      problem.input.set(7, 3e38);
      const auto output = problem.forward();
      const ddu::Geometry& g = problem.geometry;
      std::int64_t index = 0;
      for (std::int64_t plane = 0; plane < g.batch * g.channels; ++plane)
        for (std::int64_t ky = 0; ky < g.h.kernel_size; ++ky)
          for (std::int64_t kx = 0; kx < g.w.kernel_size; ++kx)
            for (std::int64_t oy = 0; oy < g.h.out_size; ++oy)
              for (std::int64_t ox = 0; ox < g.w.out_size; ++ox, ++index) {
                const std::int64_t y = oy * g.h.stride - g.h.padding + ky * g.h.dilation;
                const std::int64_t x = ox * g.w.stride - g.w.padding + kx * g.w.dilation;
                const bool inside = y >= 0 && y < g.h.size && x >= 0 && x < g.w.size;
                ASSERT_EQ(output[index], inside ? problem.input[(plane * g.h.size + y) * g.w.size + x] : 0.0);
              }
    }
  }
}

// Pixels that are not finite reach every tap whose cell touches them, and the map's gradient there.
TEST(CpuEdges, PixelsThatAreNotFinite) {
  for (double bad : {double(NAN), double(INFINITY)}) {
    for (double rate : {0.0, 1.0, 1.5, 40.0}) {
      for (std::int64_t channels : {1, 3, 17}) {
        oracle::Problem<float, float> problem(Case{1, channels, 40, 40, kThree}, [=](auto&) { return rate; });
        problem.input.set(20 * 40 + 20, bad);
        const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
        const auto output = problem.forward();
        const auto grads = problem.backward();
        std::int64_t touched = 0;
        for (std::size_t i = 0; i < expected.output.size(); ++i) {
          const auto index = static_cast<std::int64_t>(i);
          EXPECT_EQ(std::isfinite(output[index]), std::isfinite(expected.output[i].value)) << i;
          touched += !std::isfinite(output[index]);
        }
        EXPECT_GE(touched, 4);
        for (std::size_t i = 0; i < expected.grad_map.size(); ++i) {
          EXPECT_EQ(std::isfinite(grads.map[static_cast<std::int64_t>(i)]), std::isfinite(expected.grad_map[i].value)) << i;
        }
        EXPECT_LE(worst_error(grads.input, expected.grad_input), 1);
      }
    }
  }
}

// The input gets no gradient from positions whose rate is not finite, even where the gradient itself is not.
TEST(CpuEdges, RatesThatAreNotFiniteSendNothingBack) {
  oracle::Problem<float, float> problem(Case{1, 2, 8, 8, kThree}, [](auto&) { return double(NAN); });
  for (std::size_t i = 0; i < problem.grad_output.size(); ++i) problem.grad_output.set(static_cast<std::int64_t>(i), INFINITY);
  const auto grads = problem.backward();
  for (std::size_t i = 0; i < grads.input.size(); ++i) EXPECT_EQ(grads.input[static_cast<std::int64_t>(i)], 0);
  for (std::size_t i = 0; i < grads.map.size(); ++i) EXPECT_TRUE(std::isnan(grads.map[static_cast<std::int64_t>(i)]));
}

TEST(CpuEdges, EmptyTensors) {
  for (const Case& c : {Case{0, 3, 5, 5, kThree}, Case{0, 3, 5, 5, kThree, true}, Case{2, 0, 5, 5, kThree}}) {
    const oracle::Problem<float, float> problem(c, [](auto&) { return 1.5; });
    EXPECT_EQ(problem.forward().size(), 0u);
    const auto grads = problem.backward();
    EXPECT_TRUE(grads.guarded);
    for (std::size_t i = 0; i < grads.map.size(); ++i) EXPECT_EQ(grads.map[static_cast<std::int64_t>(i)], 0);
  }
}

TEST(CpuEdges, NothingWantedNeedsNoMemory) {
  const oracle::Problem<float, float> problem(Case{1, 2, 8, 8, kThree}, between_half_and_three);
  const ddu::UnfoldBackward tensors{
      problem.grad_output.data(), problem.input.data(), problem.map.data(), nullptr, nullptr, nullptr};
  EXPECT_EQ(ddu::cpu::unfold_backward_workspace_bytes(problem.geometry, problem.types(), tensors, 4), 0u);
  ddu::cpu::unfold_backward(problem.geometry, problem.types(), tensors, 4);
}

TEST(CpuEdges, TypesAreChecked) {
  const oracle::Problem<float, float> problem(Case{1, 2, 8, 8, kThree}, between_half_and_three);
  const ddu::Types mixed{ddu::DType::float32, ddu::DType::float64};
  EXPECT_THROW(ddu::cpu::unfold(problem.geometry, mixed, {}, 1), ddu::type_error);
  EXPECT_THROW(ddu::cpu::unfold_backward(problem.geometry, mixed, {}, 1), ddu::type_error);
  EXPECT_THROW(ddu::cpu::unfold_backward_workspace_bytes(problem.geometry, mixed, {}, 1), ddu::type_error);
}

TEST(CpuEdges, BuildWithoutCudaSaysSo) {
  if (ddu::cuda::toolkit_version() != 0) GTEST_SKIP() << "this build has CUDA kernels";
  const oracle::Problem<float, float> problem(Case{1, 2, 8, 8, kThree}, between_half_and_three);
  try {
    ddu::cuda::unfold(problem.geometry, problem.types(), {}, nullptr);
    FAIL();
  } catch (const ddu::unsupported_device& error) {
    EXPECT_STREQ(error.what(), "this build of dynamic_dilation_unfold has no CUDA kernels");
  }
}

}  // namespace
