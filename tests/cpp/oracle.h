#pragma once

// The operator's definition, tap by tap in double precision, and tensors to run it on. It shares no code with the kernels.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <type_traits>
#include <vector>

#include "ddu/geometry.h"
#include "ddu/unfold.h"
#include "half.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace oracle {

/// A tensor with guards around it, filled with a pattern that is NaN in every type until it is written.
template <class T>
class Tensor {
 public:
  explicit Tensor(std::int64_t size)
      : size_(static_cast<std::size_t>(size)), memory_(size_ * sizeof(T) + 2 * kGuard + kAlignment) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data()) + kGuard;
    first_ = (address + kAlignment - 1) / kAlignment * kAlignment - reinterpret_cast<std::uintptr_t>(memory_.data());
    std::memset(memory_.data(), kPattern, memory_.size());
#if defined(__SANITIZE_ADDRESS__)  // reading the guards is an error too
    ASAN_POISON_MEMORY_REGION(memory_.data(), first_);
    ASAN_POISON_MEMORY_REGION(memory_.data() + first_ + size_ * sizeof(T), memory_.size() - first_ - size_ * sizeof(T));
#endif
  }
  /// A copy has guards of its own, and reads none.
  Tensor(const Tensor& other) : Tensor(static_cast<std::int64_t>(other.size_)) {
    std::memcpy(data(), other.data(), size_ * sizeof(T));
  }
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  std::size_t size() const { return size_; }
  T* data() { return reinterpret_cast<T*>(memory_.data() + first_); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.data() + first_); }
  double operator[](std::int64_t i) const { return static_cast<double>(ddu::widen(data()[i])); }
  void set(std::int64_t i, double value) { data()[i] = ddu::narrow<T>(static_cast<ddu::accumulator_t<T>>(value)); }
  bool operator==(const Tensor& other) const { return std::memcmp(data(), other.data(), size_ * sizeof(T)) == 0; }

  /// Whether nothing was written around the tensor.
  bool guarded() const {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size());
#endif
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      const bool inside = i >= first_ && i < first_ + size_ * sizeof(T);
      if (!inside && memory_[i] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 512, kAlignment = 64;
  static constexpr unsigned char kPattern = 0xff;
  std::size_t size_, first_;
  std::vector<unsigned char> memory_;
};

/// A tensor [batch, channels, count] with its channels last, or back.
template <class T>
Tensor<T> turned(std::int64_t batch, std::int64_t channels, std::int64_t count, const Tensor<T>& from, bool back = false) {
  Tensor<T> to(static_cast<std::int64_t>(from.size()));
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t planar = (b * channels + c) * count + i, last = (b * count + i) * channels + c;
        to.data()[back ? planar : last] = from.data()[back ? last : planar];
      }
  return to;
}

/// A value, and the sum of the magnitudes that were added to it: what rounding errors are measured by.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

struct Results {
  std::vector<Sum> output, grad_input, grad_map;
  std::vector<Sum> weighted;  // grad_input without what pixels get by no weight, be it NaN
};

/// With padding_mode border a coordinate is clamped to the image, and where it is outside or on the last pixel it does not
/// move.
struct Coordinate {
  double at;
  bool clamped;
  Coordinate(double at, std::int64_t size, bool border)
      : at(border ? std::fmin(std::fmax(at, 0), double(size - 1)) : at),
        clamped(border && (at < 0 || at >= double(size - 1))) {}
};

template <class T, class M>
Results run(const ddu::Geometry& g, const Tensor<T>& input, const Tensor<M>& map, const Tensor<T>& grad_output) {
  Results r;
  r.output.resize(static_cast<std::size_t>(g.columns_numel()));
  r.grad_input.resize(static_cast<std::size_t>(g.input_numel()));
  r.weighted.resize(r.grad_input.size());
  r.grad_map.resize(static_cast<std::size_t>(g.map_numel()));
  const double middle_y = double(g.h.kernel_size - 1) / 2, middle_x = double(g.w.kernel_size - 1) / 2;
  std::size_t index = 0;
  for (std::int64_t b = 0; b < g.batch; ++b)
    for (std::int64_t c = 0; c < g.channels; ++c)
      for (std::int64_t ky = 0; ky < g.h.kernel_size; ++ky)
        for (std::int64_t kx = 0; kx < g.w.kernel_size; ++kx)
          for (std::int64_t oy = 0; oy < g.h.out_size; ++oy)
            for (std::int64_t ox = 0; ox < g.w.out_size; ++ox, ++index) {
              const std::int64_t group = c / (g.channels / g.groups), image = g.map_batch == 1 ? 0 : b;
              const std::int64_t at = ((image * g.groups + group) * g.h.out_size + oy) * g.w.out_size + ox;
              const double rate = map[at], grad = grad_output[static_cast<std::int64_t>(index)];
              Sum& slopes = r.grad_map[static_cast<std::size_t>(at)];
              if (!std::isfinite(rate)) {
                r.output[index].value = slopes.value = std::nan("");
                continue;
              }
              const double way_y = (double(ky) - middle_y) * double(g.h.dilation);
              const double way_x = (double(kx) - middle_x) * double(g.w.dilation);
              const std::int64_t row = oy + g.h.origin, column = ox + g.w.origin;
              const double y = double(row * g.h.stride - g.h.padding) + middle_y * double(g.h.dilation) + way_y * rate;
              const double x = double(column * g.w.stride - g.w.padding) + middle_x * double(g.w.dilation) + way_x * rate;
              const bool border = g.padding_mode == ddu::PaddingMode::border;
              // Far outside nothing is read; the test for it must come before a coordinate is made an integer.
              if (!border && !(y > -2 && y < double(g.h.size) + 1 && x > -2 && x < double(g.w.size) + 1)) continue;
              const Coordinate cy(y, g.h.size, border), cx(x, g.w.size, border);
              const double top = std::floor(cy.at), left = std::floor(cx.at), fy = cy.at - top, fx = cx.at - left;
              double corner[2][2];
              for (int down = 0; down < 2; ++down)
                for (int right = 0; right < 2; ++right) {
                  const std::int64_t iy = std::int64_t(top) + down, ix = std::int64_t(left) + right;
                  corner[down][right] = 0;
                  if (iy < 0 || iy >= g.h.size || ix < 0 || ix >= g.w.size) continue;
                  if ((down && cy.clamped) || (right && cx.clamped)) continue;  // only the nearest pixel is read
                  const std::int64_t pixel = ((b * g.channels + c) * g.h.size + iy) * g.w.size + ix;
                  const double weight = (down ? fy : 1 - fy) * (right ? fx : 1 - fx);
                  corner[down][right] = input[pixel];
                  r.output[index].add(weight * input[pixel]);
                  r.grad_input[static_cast<std::size_t>(pixel)].add(weight * grad);
                  if (weight != 0) r.weighted[static_cast<std::size_t>(pixel)].add(weight * grad);
                }
              const double dy = (1 - fx) * (corner[1][0] - corner[0][0]) + fx * (corner[1][1] - corner[0][1]);
              const double dx = (1 - fy) * (corner[0][1] - corner[0][0]) + fy * (corner[1][1] - corner[1][0]);
              slopes.add(grad * ((cy.clamped ? 0 : dy * way_y) + (cx.clamped ? 0 : dx * way_x)));
            }
  return r;
}

template <class T>
constexpr ddu::DType dtype_of() {
  return std::is_same_v<T, ddu::float16>    ? ddu::DType::float16
         : std::is_same_v<T, ddu::bfloat16> ? ddu::DType::bfloat16
         : std::is_same_v<T, float>         ? ddu::DType::float32
                                            : ddu::DType::float64;
}

struct Case {
  std::int64_t batch, channels, height, width;
  ddu::Options options;
  bool broadcast = false;
  std::int64_t part[2] = {0, 0};  // positions, where the options say that the call is on a part

  ddu::Geometry geometry() const {
    std::int64_t input[4] = {batch, channels, height, width}, map[4] = {broadcast ? 1 : batch, options.groups, 0, 0};
    for (int i = 0; i < 2; ++i) {
      const std::int64_t span = input[2 + i] + 2 * options.padding[i] - options.dilation[i] * (options.kernel_size[i] - 1) - 1;
      map[2 + i] = options.part ? part[i] : span / options.stride[i] + 1;
    }
    return ddu::make_geometry({input, 4}, {map, 4}, options);
  }
};

/// Tensors of one call. `rate` makes the map's values.
template <class T, class M>
struct Problem {
  ddu::Geometry geometry;
  Tensor<T> input, grad_output;
  Tensor<M> map;

  using Rate = std::function<double(std::mt19937&)>;
  Problem(const Case& c, Rate rate, unsigned seed = 1)
      : geometry(c.geometry()),
        input(geometry.input_numel()),
        grad_output(geometry.columns_numel()),
        map(geometry.map_numel()) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (std::size_t i = 0; i < input.size(); ++i) input.set(static_cast<std::int64_t>(i), normal(random));
    for (std::size_t i = 0; i < grad_output.size(); ++i) grad_output.set(static_cast<std::int64_t>(i), normal(random));
    for (std::size_t i = 0; i < map.size(); ++i) map.set(static_cast<std::int64_t>(i), rate(random));
  }

  /// A tensor of the input's shape in a memory format.
  Tensor<T> laid_out(const Tensor<T>& tensor, ddu::MemoryFormat format) const {
    if (format == ddu::MemoryFormat::contiguous) return tensor;
    return turned(geometry.batch, geometry.channels, geometry.pixels(), tensor);
  }
  static std::int64_t workspace_floats(std::size_t bytes) { return static_cast<std::int64_t>((bytes + 3) / 4); }
  static constexpr ddu::Types types() { return {dtype_of<T>(), dtype_of<M>()}; }

  Tensor<T> forward(int threads = 2, ddu::MemoryFormat format = ddu::MemoryFormat::contiguous) const {
    Tensor<T> output(geometry.columns_numel());
    const Tensor<T> given = laid_out(input, format);
    ddu::Unfold tensors{given.data(), map.data(), output.data(), nullptr, format};
    Tensor<float> workspace(workspace_floats(ddu::cpu::unfold_workspace_bytes(geometry, types(), tensors, threads)));
    tensors.workspace = workspace.data();
    ddu::cpu::unfold(geometry, types(), tensors, threads);
    EXPECT_TRUE(workspace.guarded());
    return output;
  }

  struct Gradients {
    Tensor<T> input;
    Tensor<M> map;
    bool guarded;  // also the workspace
  };
  Gradients backward(bool need_input = true, bool need_map = true, int threads = 2,
                     ddu::MemoryFormat format = ddu::MemoryFormat::contiguous) const {
    Gradients grads{Tensor<T>(geometry.input_numel()), Tensor<M>(geometry.map_numel()), true};
    const Tensor<T> given = laid_out(input, format);
    ddu::UnfoldBackward tensors{grad_output.data(), given.data(), map.data(), nullptr, nullptr, nullptr, format};
    if (need_input) tensors.grad_input = grads.input.data();
    if (need_map) tensors.grad_map = grads.map.data();
    Tensor<float> workspace(workspace_floats(ddu::cpu::unfold_backward_workspace_bytes(geometry, types(), tensors, threads)));
    tensors.workspace = workspace.data();
    ddu::cpu::unfold_backward(geometry, types(), tensors, threads);
    grads.guarded = grads.input.guarded() && grads.map.guarded() && workspace.guarded();
    return grads;
  }
};

/// Largest error of a tensor in units of what its type's and its sums' rounding may cause; NaN and infinities only
/// where they must be.
template <class T>
double worst_error(const Tensor<T>& actual, const std::vector<Sum>& expected) {
  const double rounding = std::is_same_v<T, ddu::float16>    ? std::ldexp(1, -11)
                          : std::is_same_v<T, ddu::bfloat16> ? std::ldexp(1, -8)
                                                             : 0;
  const double arithmetic = std::is_same_v<T, double> ? 1e-14 : 4e-6, subnormal = rounding > 0 ? std::ldexp(1, -24) : 0;
  double worst = actual.size() == expected.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = actual[static_cast<std::int64_t>(i)];
    if (std::isnan(value) || std::isnan(expected[i].value)) {
      if (std::isnan(value) != std::isnan(expected[i].value)) return INFINITY;
      continue;
    }
    if (value == expected[i].value) continue;
    if (!std::isfinite(value) || !std::isfinite(expected[i].value)) return INFINITY;
    const double allowed = rounding * std::fabs(expected[i].value) + arithmetic * expected[i].magnitude + subnormal;
    worst = std::max(worst, allowed > 0 ? std::fabs(value - expected[i].value) / allowed : INFINITY);
  }
  return worst;
}

}  // namespace oracle
