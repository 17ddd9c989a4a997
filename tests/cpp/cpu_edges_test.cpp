// The CPU operators at the edges of their domain.

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "cpu/core/tile.h"
#include "ddu/error.h"
#include "oracle.h"
#include "small_stack.h"

namespace {

using oracle::Case;

const ddu::Options kThree{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};

double between_half_and_three(std::mt19937& random) { return std::uniform_real_distribution<double>(0.5, 3)(random); }

TEST(CpuEdges, CapabilityIsTheOneAskedFor) {
  const std::string name = ddu::cpu::capability();
  EXPECT_TRUE(name == "baseline" || name == "avx2" || name == "avx512") << name;
  const char* wish = std::getenv("DDU_CPU_CAPABILITY");
  std::string wanted = wish ? wish : "";
  for (char& c : wanted) c = static_cast<char>(std::tolower(c));
  if (wanted == "baseline" || wanted == "avx2" || wanted == "avx512") {
    EXPECT_EQ(name, wanted);
  }
}

// F.unfold copies pixels; at rate 1 so must this, to the bit, also of pixels that arithmetic could change: the smallest, the
// largest, and zeros with a sign.
TEST(CpuEdges, RateOneCopiesPixels) {
  for (std::int64_t kernel_size : {1, 2, 3, 5}) {
    for (std::int64_t channels : {1, 3, 18}) {
      const ddu::Options options{{kernel_size, kernel_size}, {2, 1}, {kernel_size / 2, 2}, {1, 2}, 1};
      oracle::Problem<float, float> problem(Case{2, channels, 12, 23, options}, [](auto&) { return 1.0; });
      problem.input.set(5, 1e-45);
      problem.input.set(7, 3e38);
      for (std::int64_t i = 8; i < problem.geometry.input_numel(); i += 3) problem.input.set(i, -0.0);
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
                const double expected = inside ? problem.input[(plane * g.h.size + y) * g.w.size + x] : 0.0;
                ASSERT_EQ(output[index], expected);
                ASSERT_EQ(std::signbit(output[index]), std::signbit(expected));
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

// With padding_mode border a tap beyond the image reads its nearest pixel alone, be that infinite, with a window and without.
TEST(CpuEdges, InfinitePixelsAtABorder) {
  ddu::Options near = kThree, leaps{{3, 3}, {16, 18}, {1, 1}, {1, 1}, 1};
  near.padding_mode = leaps.padding_mode = ddu::PaddingMode::border;
  for (std::int64_t channels : {1, 3, 17}) {
    for (const Case& c : {Case{1, channels, 12, 40, near}, Case{1, channels, 230, 250, leaps}}) {
      for (double rate : {0.0, 1.0, -1.5, 40.0}) {
        SCOPED_TRACE(testing::Message() << channels << " channels, height " << c.height << ", rate " << rate);
        oracle::Problem<float, float> problem(c, [=](auto&) { return rate; });
        const std::int64_t last_row = (c.height - 1) * c.width;
        for (const std::int64_t pixel : {std::int64_t{3}, 5 * c.width, 7 * c.width - 1, last_row + 9, last_row + c.width - 1}) {
          problem.input.set(pixel, INFINITY);
        }
        const auto expected = oracle::run(problem.geometry, problem.input, problem.map, problem.grad_output);
        EXPECT_LE(worst_error(problem.forward(), expected.output), 1);
        EXPECT_LE(worst_error(problem.backward().input, expected.grad_input), 1);
      }
    }
  }
}

// Far rates of both signs spread a tile over a large image, which may have more pixels than 32 bits count.
TEST(CpuEdges, TilesOfMorePixelsThan32BitsCount) {
  const ddu::Geometry g = Case{1, 1, 46400, 46400, kThree}.geometry();
  oracle::Tensor<float> rates(16);
  oracle::Tensor<float> memory(static_cast<std::int64_t>(ddu::cpu::TileArrays<float>(nullptr, g, 16).bytes / sizeof(float)));
  for (const double reach : {2.0, 1e9}) {
    for (std::int64_t i = 0; i < 16; ++i) rates.set(i, i % 2 == 0 ? reach : -reach);
    const ddu::cpu::Tile<float> tile(g, rates.data(), ddu::DType::float32, 0, {0, 0, 1, 16}, memory.data());
    EXPECT_EQ(tile.fits, reach == 2);
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

#if defined(DDU_SMALL_STACKS)
template <class T, class M>
void check_small_stack() {
  for (std::int64_t channels : {1, 2, 3, 32}) {
    for (double reach : {2.0, 14.0, 500.0}) {  // wide windows, narrow ones, none
      const ddu::Options options{{3, 3}, {1, 1}, {6, 6}, {6, 6}, 1};
      const oracle::Problem<T, M> problem(Case{1, channels, 40, 200, options}, [=](auto& random) {
        return std::uniform_real_distribution<double>(-reach, reach)(random);
      });
      on_small_stack([&] {
        problem.forward(1);
        problem.backward(true, true, 1);
      });
    }
  }
}

// OpenMP's own threads get such stacks too, in a test run of its own: see CMakeLists.txt.
TEST(CpuEdges, SmallStacks) {
  check_small_stack<ddu::float16, float>();
  check_small_stack<ddu::bfloat16, ddu::bfloat16>();
  check_small_stack<float, float>();
  check_small_stack<double, double>();
}
#endif

#if defined(__SSE2__)
// Workers take tiny numbers for what the caller takes them for, so that results do not depend on who computes what.
TEST(CpuEdges, WorkersComputeUnderTheCallersState) {
  oracle::Problem<float, float> problem(Case{4, 20, 24, 33, kThree}, between_half_and_three);
  for (std::size_t i = 0; i < problem.input.size(); ++i) problem.input.set(static_cast<std::int64_t>(i), 3e-39);
  for (std::size_t i = 0; i < problem.grad_output.size(); ++i) problem.grad_output.set(static_cast<std::int64_t>(i), 3e-39);
  const unsigned before = _mm_getcsr();
  for (const unsigned flush : {0x8040u, 0u}) {  // FTZ and DAZ
    _mm_setcsr(before | flush);
    const auto output = problem.forward(1), parallel = problem.forward(5);
    const auto grads = problem.backward(true, true, 1), parallel_grads = problem.backward(true, true, 5);
    _mm_setcsr(before);
    EXPECT_TRUE(output == parallel);
    EXPECT_TRUE(grads.input == parallel_grads.input);
    EXPECT_TRUE(grads.map == parallel_grads.map);
    EXPECT_EQ(grads.input[24 * 33 / 2] == 0, flush != 0);
  }
}
#endif

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
