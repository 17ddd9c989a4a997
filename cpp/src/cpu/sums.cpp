// Aggregate and correlate on the CPU, a value at a time: what is to be replaced by kernels on tiles and vectors of channels.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../half.h"
#include "../sampling.h"
#include "core/parallel.h"
#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "ddu/error.h"

namespace ddu::cpu {
namespace {

/// A tensor of [batch, channels, height, width].
template <class T>
struct Planes {
  T* data;
  std::int64_t channels, height, width;
  MemoryFormat format;

  T& at(std::int64_t b, std::int64_t c, std::int64_t y, std::int64_t x) const {
    return format == MemoryFormat::channels_last ? data[((b * height + y) * width + x) * channels + c]
                                                 : data[((b * channels + c) * height + y) * width + x];
  }
};

/// What a call and its backward are given; some of it is null.
struct Sums {
  const void *image, *values, *factors, *map;
  void *grad_image, *grad_values, *grad_factors, *grad_map;
  MemoryFormat format;
};

template <class T, class M>
struct Walk {
  using Acc = accumulator_t<T>;
  const HeadGeometry& heads;
  const Geometry& g;
  const Sums& s;
  Sampler<Acc> sample_y{g.h, g.padding_mode}, sample_x{g.w, g.padding_mode};
  Planes<const T> image{static_cast<const T*>(s.image), g.channels, g.h.size, g.w.size, s.format};
  Planes<const T> values{static_cast<const T*>(s.values), g.channels, g.h.out_size, g.w.out_size, s.format};

  Acc rate(std::int64_t b, std::int64_t c, std::int64_t oy, std::int64_t ox) const {
    const std::int64_t index = g.map_offset(b, c / g.group_channels()) + oy * g.w.out_size + ox;
    return static_cast<Acc>(widen(static_cast<const M*>(s.map)[index]));
  }
  std::int64_t factor_index(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t oy, std::int64_t ox) const {
    return heads.factors_offset(b, h) + (t * g.h.out_size + oy) * g.w.out_size + ox;
  }
  Acc factor(std::int64_t b, std::int64_t c, std::int64_t t, std::int64_t oy, std::int64_t ox) const {
    return widen(static_cast<const T*>(s.factors)[factor_index(b, c / heads.head_channels(), t, oy, ox)]);
  }
  /// body(cell of y, cell of x, corner(y, x), offset_y, offset_x) of a tap at a position.
  template <class Body>
  auto tap(std::int64_t b, std::int64_t c, std::int64_t t, std::int64_t oy, std::int64_t ox, Body body) const {
    const int ky = static_cast<int>(t / g.w.kernel_size), kx = static_cast<int>(t % g.w.kernel_size);
    const Acc given = rate(b, c, oy, ox), r = is_finite(given) ? given : 0;
    const Pixels<Acc> y = sample_y.pixels(sample_y.base(static_cast<std::int32_t>(oy)), sample_y.offset(ky), r);
    const Pixels<Acc> x = sample_x.pixels(sample_x.base(static_cast<std::int32_t>(ox)), sample_x.offset(kx), r);
    const auto corner = [&, b, c, y, x](int down, int right) {
      const bool is_there = (down ? y.second : y.first) && (right ? x.second : x.first);
      return is_there ? widen(image.at(b, c, y.index + down, x.index + right)) : Acc(0);
    };
    return body(y, x, corner, nan_unless_finite(given));
  }
  Acc sample(std::int64_t b, std::int64_t c, std::int64_t t, std::int64_t oy, std::int64_t ox) const {
    return tap(b, c, t, oy, ox, [](auto y, auto x, auto corner, Acc nan) {
      return nan + interpolate(corner(0, 0), corner(0, 1), corner(1, 0), corner(1, 1), y.fraction, x.fraction);
    });
  }
  Acc slope_at(std::int64_t b, std::int64_t c, std::int64_t t, std::int64_t oy, std::int64_t ox) const {
    return tap(b, c, t, oy, ox, [](auto y, auto x, auto corner, Acc nan) {
      return nan + slope(corner(0, 0), corner(0, 1), corner(1, 0), corner(1, 1), y.fraction, x.fraction, y.offset, x.offset);
    });
  }

  /// sum over taps of factor * sample, to `target`.
  void sum_taps(void* target, int threads) const {
    const Planes<T> result{static_cast<T*>(target), g.channels, g.h.out_size, g.w.out_size, s.format};
    parallel_for(g.batch * g.h.out_size, threads, [&](std::int64_t task, int) {
      const std::int64_t b = task / g.h.out_size, oy = task % g.h.out_size;
      for (std::int64_t ox = 0; ox < g.w.out_size; ++ox)
        for (std::int64_t c = 0; c < g.channels; ++c) {
          Acc sum = 0;
          for (std::int64_t t = 0; t < g.taps(); ++t) sum += factor(b, c, t, oy, ox) * sample(b, c, t, oy, ox);
          result.at(b, c, oy, ox) = narrow<T>(sum);
        }
    });
  }
  /// sum over the channels of a head, and the images that share factors, of value * sample, to `target`.
  void sum_channels(void* target, int threads) const {
    parallel_for(heads.factors_batch * heads.heads * g.taps(), threads, [&](std::int64_t task, int) {
      const std::int64_t t = task % g.taps(), h = task / g.taps() % heads.heads, fb = task / g.taps() / heads.heads;
      const std::int64_t images = heads.factors_batch == 1 ? g.batch : 1;
      for (std::int64_t oy = 0; oy < g.h.out_size; ++oy)
        for (std::int64_t ox = 0; ox < g.w.out_size; ++ox) {
          Acc sum = 0;
          for (std::int64_t b = fb; b < fb + images; ++b)
            for (std::int64_t c = h * heads.head_channels(); c < (h + 1) * heads.head_channels(); ++c)
              sum += widen(values.at(b, c, oy, ox)) * sample(b, c, t, oy, ox);
          static_cast<T*>(target)[factor_index(fb, h, t, oy, ox)] = narrow<T>(sum);
        }
    });
  }
  void grad_of_map(int threads) const {
    const std::int64_t images = g.map_batch == 1 ? g.batch : 1;
    parallel_for(g.map_batch * g.groups * g.h.out_size, threads, [&](std::int64_t task, int) {
      const std::int64_t oy = task % g.h.out_size, group = task / g.h.out_size % g.groups, mb = task / g.h.out_size / g.groups;
      for (std::int64_t ox = 0; ox < g.w.out_size; ++ox) {
        Acc sum = 0;
        for (std::int64_t b = mb; b < mb + images; ++b)
          for (std::int64_t c = group * g.group_channels(); c < (group + 1) * g.group_channels(); ++c)
            for (std::int64_t t = 0; t < g.taps(); ++t)
              sum += factor(b, c, t, oy, ox) * widen(values.at(b, c, oy, ox)) * slope_at(b, c, t, oy, ox);
        static_cast<M*>(s.grad_map)[g.map_offset(mb, group) + oy * g.w.out_size + ox] =
            narrow<M>(static_cast<accumulator_t<M>>(sum));
      }
    });
  }
  void grad_of_image(int threads) const {
    const Planes<T> result{static_cast<T*>(s.grad_image), g.channels, g.h.size, g.w.size, s.format};
    parallel_for(g.batch * g.channels, threads, [&](std::int64_t task, int) {
      const std::int64_t b = task / g.channels, c = task % g.channels;
      std::vector<Acc> sums(static_cast<std::size_t>(g.pixels()), Acc(0));
      for (std::int64_t oy = 0; oy < g.h.out_size; ++oy)
        for (std::int64_t ox = 0; ox < g.w.out_size; ++ox) {
          if (!is_finite(rate(b, c, oy, ox))) continue;
          for (std::int64_t t = 0; t < g.taps(); ++t) {
            const Acc grad = factor(b, c, t, oy, ox) * widen(values.at(b, c, oy, ox));
            tap(b, c, t, oy, ox, [&](auto y, auto x, auto, Acc) {
              for (int down : {0, 1})
                for (int right : {0, 1}) {
                  const std::int32_t iy = y.index + down, ix = x.index + right;
                  if (!(down ? y.second : y.first) || !(right ? x.second : x.first)) continue;
                  sums[static_cast<std::size_t>(iy * g.w.size + ix)] +=
                      corner_weight(down, right, y.fraction, x.fraction) * grad;
                }
            });
          }
        }
      for (std::int64_t p = 0; p < g.pixels(); ++p)
        result.at(b, c, p / g.w.size, p % g.w.size) = narrow<T>(sums[static_cast<std::size_t>(p)]);
    });
  }
  void backward(int threads) const {
    if (s.grad_image) grad_of_image(threads);
    if (s.grad_map) grad_of_map(threads);
    if (s.grad_values) sum_taps(s.grad_values, threads);
    if (s.grad_factors) sum_channels(s.grad_factors, threads);
  }
};

template <class Body>
void with_types(Types types, Body body) {
  check_types(types);
  const auto with_map = [&](auto input) {
    if (types.map == types.input) return body(input, input);
    if constexpr (sizeof(input) == 2) body(input, float());
  };
  if (types.input == DType::float16) return with_map(float16());
  if (types.input == DType::bfloat16) return with_map(bfloat16());
  if (types.input == DType::float32) return with_map(float());
  with_map(double());
}

void run(const HeadGeometry& g, Types types, const Sums& s, int threads, const char which, void* target = nullptr) {
  with_types(types, [&](auto input, auto map) {
    const Walk<decltype(input), decltype(map)> walk{g, g.geometry, s};
    if (which == 't') walk.sum_taps(target, threads);
    if (which == 'c') walk.sum_channels(target, threads);
    if (which == 'b') walk.backward(threads);
  });
}

}  // namespace

void aggregate(const HeadGeometry& g, Types types, const Aggregate& t, int threads) {
  const Sums s{t.input, nullptr, t.weights, t.dilation_map, nullptr, nullptr, nullptr, nullptr, t.input_format};
  run(g, types, s, threads, 't', t.output);
}
void correlate(const HeadGeometry& g, Types types, const Correlate& t, int threads) {
  const Sums s{t.key, t.query, nullptr, t.dilation_map, nullptr, nullptr, nullptr, nullptr, t.input_format};
  run(g, types, s, threads, 'c', t.scores);
}
void aggregate_backward(const HeadGeometry& g, Types types, const AggregateBackward& t, int threads) {
  const Sums s{t.input, t.grad_output,  t.weights,  t.dilation_map, t.grad_input,
               nullptr, t.grad_weights, t.grad_map, t.input_format};
  run(g, types, s, threads, 'b');
}
void correlate_backward(const HeadGeometry& g, Types types, const CorrelateBackward& t, int threads) {
  const Sums s{t.key, t.query, t.grad_scores, t.dilation_map, t.grad_key, t.grad_query, nullptr, t.grad_map, t.input_format};
  run(g, types, s, threads, 'b');
}
std::size_t aggregate_workspace_bytes(const HeadGeometry&, Types types, const Aggregate&, int) {
  check_types(types);
  return 0;
}
std::size_t correlate_workspace_bytes(const HeadGeometry&, Types types, const Correlate&, int) {
  check_types(types);
  return 0;
}
std::size_t aggregate_backward_workspace_bytes(const HeadGeometry&, Types types, const AggregateBackward&, int) {
  check_types(types);
  return 0;
}
std::size_t correlate_backward_workspace_bytes(const HeadGeometry&, Types types, const CorrelateBackward&, int) {
  check_types(types);
  return 0;
}

}  // namespace ddu::cpu
