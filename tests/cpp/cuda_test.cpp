// The CUDA kernels against the oracle; where there is no device, that every entry point says what is missing.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "ddu/error.h"
#include "oracle.h"

namespace {

using oracle::Case;
using oracle::Problem;

const Case kCases[] = {
    {2, 6, 13, 70, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}},
    {1, 4, 12, 11, {{4, 4}, {2, 2}, {3, 3}, {1, 1}, 2}},
    {3, 5, 20, 24, {{7, 5}, {1, 1}, {3, 2}, {1, 2}, 1}, true},
};

bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Device memory, a copy of the host's if that is given.
class Memory {
 public:
  explicit Memory(std::size_t bytes, const void* host = nullptr) : bytes_(bytes) {
    if (bytes == 0) return;
    EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess);
    if (!host) return;
    EXPECT_EQ(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  template <class T>
  explicit Memory(const oracle::Tensor<T>& tensor) : Memory(tensor.size() * sizeof(T), tensor.data()) {}
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }
  template <class T>
  oracle::Tensor<T> on_host() const {
    oracle::Tensor<T> tensor(static_cast<std::int64_t>(bytes_ / sizeof(T)));
    EXPECT_EQ(cudaMemcpy(tensor.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return tensor;
  }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// Norm of the difference over the norm of what is expected, in units of what the type allows: the kernels add integers of a
/// scale that a whole tile shares, so a small gradient beside large ones is not exact to its own size.
template <class T>
double error(const oracle::Tensor<T>& actual, const std::vector<oracle::Sum>& expected) {
  const double allowed = std::is_same_v<T, ddu::float16>    ? 5e-4
                         : std::is_same_v<T, ddu::bfloat16> ? 4e-3
                         : std::is_same_v<T, float>         ? 2e-6
                                                            : 1e-13;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(actual[static_cast<std::int64_t>(i)] - expected[i].value, 2);
    norm += std::pow(expected[i].value, 2);
  }
  return std::sqrt(difference / norm) / allowed;
}

template <class T, class M>
struct Types {
  using Input = T;
  using Map = M;
};

template <class Pair>
class Cuda : public testing::Test {};
using Pairs =
    testing::Types<Types<ddu::float16, float>, Types<ddu::bfloat16, ddu::bfloat16>, Types<float, float>, Types<double, double>>;
TYPED_TEST_SUITE(Cuda, Pairs);

TYPED_TEST(Cuda, AgainstTheOracle) {
  using T = typename TypeParam::Input;
  using M = typename TypeParam::Map;
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  for (const Case& c : kCases) {
    SCOPED_TRACE(&c - kCases);
    // Multiples of 1/64 are exact in every type.
    const Problem<T, M> problem(c, [](auto& random) { return std::uniform_int_distribution<int>(-127, 127)(random) / 64.0; });
    const ddu::Geometry& g = problem.geometry;
    const auto expected = oracle::run(g, problem.input, problem.map, problem.grad_output);
    const Memory input(problem.input), map(problem.map), grad_output(problem.grad_output);
    const Memory output(problem.grad_output.size() * sizeof(T));
    ddu::cuda::unfold(g, problem.types(), {input.data(), map.data(), output.data()}, nullptr);
    EXPECT_LE(error(output.on_host<T>(), expected.output), 1);
    for (const bool deterministic : {false, true}) {
      const Memory grad_input(problem.input.size() * sizeof(T)), grad_map(problem.map.size() * sizeof(M));
      ddu::Backward tensors{grad_output.data(), input.data(), map.data(), grad_input.data(), grad_map.data(), nullptr};
      const Memory workspace(ddu::cuda::workspace_bytes(g, problem.types(), tensors, deterministic));
      tensors.workspace = workspace.data();
      ddu::cuda::unfold_backward(g, problem.types(), tensors, deterministic, nullptr);
      EXPECT_LE(error(grad_input.on_host<T>(), expected.grad_input), 1);
      EXPECT_LE(error(grad_map.on_host<M>(), expected.grad_map), 1);
    }
  }
}

TEST(CudaWithoutDevice, SaysWhatIsMissing) {
  if (has_device()) GTEST_SKIP() << "there is a CUDA device";
  const Problem<float, float> problem(kCases[0], [](auto&) { return 1.0; });
  const char memory[64] = {};
  const ddu::Backward backward{memory, memory, memory, nullptr, nullptr, nullptr};
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
