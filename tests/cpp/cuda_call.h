#pragma once

// Calls of the CUDA kernels with an oracle's Problem: memory of the device, every way through the kernels, and errors in units
// of what their sums may cause.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "oracle.h"

namespace cuda_call {

using oracle::Problem;

// Rates in multiples of 1/64, which are exact in every type.
inline double near_rates(std::mt19937& random) { return std::uniform_int_distribution<int>(-127, 127)(random) / 64.0; }
inline double wide_rates(std::mt19937& random) { return std::uniform_int_distribution<int>(192, 384)(random) / 64.0; }
inline double any_rates(std::mt19937& random) {
  switch (random() % 24) {
    case 0:
      return 4096;
    case 1:
      return -INFINITY;
    case 2:
      return NAN;
    case 3:
      return 0;
    default:
      return near_rates(random);
  }
}

/// Types of the tensors and of the map, for tests of each.
template <class Input, class Map>
struct Types {
  using T = Input;
  using M = Map;
};
using EveryButDouble = testing::Types<Types<ddu::float16, float>, Types<ddu::bfloat16, ddu::bfloat16>, Types<float, float>>;
using Every =
    testing::Types<Types<ddu::float16, float>, Types<ddu::bfloat16, ddu::bfloat16>, Types<float, float>, Types<double, double>>;

inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Device memory, a copy of the host's or filled with a pattern that is NaN in every type, with bytes behind it that nobody may
/// write.
class Memory {
 public:
  explicit Memory(std::size_t bytes, const void* host = nullptr) : bytes_(bytes) {
    if (bytes == 0) return;
    std::vector<unsigned char> filled(bytes + kGuard, kPattern);
    if (host) std::memcpy(filled.data(), host, bytes);
    EXPECT_EQ(cudaMalloc(&data_, filled.size()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, filled.data(), filled.size(), cudaMemcpyHostToDevice), cudaSuccess);
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
    if (bytes_ == 0) return tensor;
    std::vector<unsigned char> now(bytes_ + kGuard);
    EXPECT_EQ(cudaMemcpy(now.data(), data_, now.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    std::memcpy(tensor.data(), now.data(), bytes_);
    EXPECT_TRUE(is_untouched(now.data() + bytes_, kGuard)) << "written behind its end";
    return tensor;
  }
  /// Whether bytes that were not copied from the host still hold the pattern.
  static bool is_untouched(const void* bytes, std::size_t count) {
    const auto* const first = static_cast<const unsigned char*>(bytes);
    return std::all_of(first, first + count, [](unsigned char byte) { return byte == kPattern; });
  }

 private:
  static constexpr std::size_t kGuard = 4096;
  static constexpr unsigned char kPattern = 0xff;
  std::size_t bytes_;
  void* data_ = nullptr;
};

/// Device memory of a tensor, `shift` elements behind its start.
template <class T>
class Shifted {
 public:
  Shifted(std::int64_t size, std::size_t shift)
      : size_(size), shift_(shift), memory_((std::size_t(size) + shift) * sizeof(T)) {}
  Shifted(const oracle::Tensor<T>& tensor, std::size_t shift) : Shifted(static_cast<std::int64_t>(tensor.size()), shift) {
    EXPECT_EQ(cudaMemcpy(data(), tensor.data(), tensor.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  T* data() const { return static_cast<T*>(memory_.data()) + shift_; }
  oracle::Tensor<T> on_host() const {
    const auto whole = memory_.template on_host<T>();
    oracle::Tensor<T> tensor(size_);
    EXPECT_TRUE(Memory::is_untouched(whole.data(), shift_ * sizeof(T))) << "written before its start";
    std::memcpy(tensor.data(), whole.data() + shift_, tensor.size() * sizeof(T));
    return tensor;
  }

 private:
  std::int64_t size_;
  std::size_t shift_;
  Memory memory_;
};

/// Scratch memory, with bytes behind it that nobody may write. It holds no zeros: nobody may count on them.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : host_(bytes + kGuard, 0xa5), memory_(host_.size(), host_.data()) {}
  void* data() const { return host_.size() > std::size_t(kGuard) ? memory_.data() : nullptr; }
  bool kept_within() const {
    std::vector<unsigned char> now(host_.size());
    EXPECT_EQ(cudaMemcpy(now.data(), memory_.data(), now.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    return std::equal(now.end() - kGuard, now.end(), host_.end() - kGuard);
  }

 private:
  static constexpr int kGuard = 4096;
  std::vector<unsigned char> host_;
  Memory memory_;
};

/// Norm of the difference over the norm of what is expected, in units of what the type allows: the kernels add integers of a
/// scale that a whole tile shares, so a small gradient beside large ones is not exact to its own size.
template <class T>
double error(const oracle::Tensor<T>& actual, const std::vector<oracle::Sum>& expected) {
  const double allowed = std::is_same_v<T, ddu::float16>    ? 5e-4
                         : std::is_same_v<T, ddu::bfloat16> ? 4e-3
                         : std::is_same_v<T, float>         ? 2e-6
                                                            : 1e-13;
  double difference = 0, norm = 0, largest = std::numeric_limits<double>::min();  // squares of what is so large have no place
  for (const oracle::Sum& sum : expected) largest = std::max(largest, std::isfinite(sum.value) ? std::fabs(sum.value) : 0);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = actual[static_cast<std::int64_t>(i)];
    if (std::isnan(value) != std::isnan(expected[i].value)) return INFINITY;
    if (std::isnan(value) || (std::isinf(value) && value == expected[i].value)) continue;
    difference += std::pow((value - expected[i].value) / largest, 2);
    norm += std::pow(expected[i].value / largest, 2);
  }
  return norm > 0 ? std::sqrt(difference / norm) / allowed : difference;
}

using oracle::turned;

/// An image with its channels last, or back.
template <class T>
oracle::Tensor<T> turned(const ddu::Geometry& g, const oracle::Tensor<T>& from, bool back = false) {
  return turned(g.batch, g.channels, g.pixels(), from, back);
}

/// Sets an environment variable for as long as it lives, unless the value is null.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* const before = std::getenv(name)) before_ = before;
    if (value) setenv(name, value, 1);
  }
  ~Environment() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

/// The ways of the kernels, and the format of the input.
struct Way {
  const char* forced = nullptr;  // DDU_CUDA_PATH
  bool channels_last = false;
};
const Way kWays[] = {{}, {"planar"}, {"wide"}, {"channels_last"}, {nullptr, true}};

template <class T, class M>
oracle::Tensor<T> forward(const Problem<T, M>& problem, const Way& way) {
  const Environment environment("DDU_CUDA_PATH", way.forced);
  const ddu::Geometry& g = problem.geometry;
  const Memory input(way.channels_last ? turned(g, problem.input) : problem.input), map(problem.map),
      output(problem.grad_output.size() * sizeof(T));
  ddu::Unfold tensors{input.data(), map.data(), output.data()};
  if (way.channels_last) tensors.input_format = ddu::MemoryFormat::channels_last;
  const Workspace workspace(ddu::cuda::unfold_workspace_bytes(g, problem.types(), tensors));
  tensors.workspace = workspace.data();
  ddu::cuda::unfold(g, problem.types(), tensors, nullptr);
  EXPECT_TRUE(workspace.kept_within());
  return output.template on_host<T>();
}

template <class T, class M>
struct Gradients {
  oracle::Tensor<T> input;
  oracle::Tensor<M> map;
};

struct How {
  bool deterministic = false, input = true, map = true;
  std::size_t shift = 0;  // elements from where memory is aligned to where the gradients start
  Way way = {};
};

template <class T, class M>
Gradients<T, M> backward(const Problem<T, M>& problem, const How& how) {
  const Environment environment("DDU_CUDA_PATH", how.way.forced);
  const Memory input(how.way.channels_last ? turned(problem.geometry, problem.input) : problem.input), map(problem.map),
      grad_output(problem.grad_output);
  const Shifted<T> grad_input(problem.geometry.input_numel(), how.shift);
  const Shifted<M> grad_map(problem.geometry.map_numel(), how.shift);
  ddu::UnfoldBackward tensors{grad_output.data(), input.data(), map.data(), nullptr, nullptr, nullptr};
  if (how.way.channels_last) tensors.input_format = ddu::MemoryFormat::channels_last;
  if (how.input) tensors.grad_input = grad_input.data();
  if (how.map) tensors.grad_map = grad_map.data();
  const Workspace workspace(
      ddu::cuda::unfold_backward_workspace_bytes(problem.geometry, problem.types(), tensors, how.deterministic));
  tensors.workspace = workspace.data();
  ddu::cuda::unfold_backward(problem.geometry, problem.types(), tensors, how.deterministic, nullptr);
  EXPECT_TRUE(workspace.kept_within());
  const auto input_gradient = grad_input.on_host();
  return {how.way.channels_last ? turned(problem.geometry, input_gradient, true) : input_gradient, grad_map.on_host()};
}

}  // namespace cuda_call
