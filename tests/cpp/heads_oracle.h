#pragma once

// Aggregate and correlate by their definition, by way of the oracle's columns, and tensors to run them on.

#include <random>
#include <utility>
#include <vector>

#include "ddu/head_geometry.h"
#include "oracle.h"

namespace oracle {

struct HeadCase {
  Case sizes;
  std::int64_t heads = 1;
  bool shared_factors = false;
};

/// Tensors of one call: an image, values of [batch, channels, output], factors of [batch or 1, heads, taps, output]. Aggregate
/// has factors and a gradient of values, correlate values and a gradient of factors; here they are the same tensors.
template <class T, class M>
struct HeadProblem {
  ddu::HeadGeometry h{};
  Tensor<T> image, values, factors;
  Tensor<M> map;

  HeadProblem(const HeadCase& c, const std::function<double(std::mt19937&)>& rate)
      : h{c.sizes.geometry(), c.heads, c.shared_factors ? 1 : c.sizes.batch},
        image(h.geometry.input_numel()),
        values(h.values_numel()),
        factors(h.factors_numel()),
        map(h.geometry.map_numel()) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    const auto fill = [&](auto& tensor, auto value) {
      for (std::size_t i = 0; i < tensor.size(); ++i) tensor.set(static_cast<std::int64_t>(i), value());
    };
    for (Tensor<T>* tensor : {&image, &values, &factors}) fill(*tensor, [&] { return normal(random); });
    fill(map, [&] { return rate(random); });
  }
  static constexpr ddu::Types types() { return {dtype_of<T>(), dtype_of<M>()}; }
  /// The geometry of a correlate: its scores are of every image.
  ddu::HeadGeometry of_scores() const { return {h.geometry, h.heads, h.geometry.batch}; }
};

/// sums over taps of factor * column, and over channels of value * column: of all images that share factors, and of each;
/// gradients of the image and of the map.
struct HeadResults {
  std::vector<Sum> values, factors, scores, image, map;
};

template <class T, class M>
HeadResults run(const HeadProblem<T, M>& problem) {
  const ddu::HeadGeometry& h = problem.h;
  const ddu::Geometry& g = h.geometry;
  Tensor<double> image(g.input_numel()), columns_gradient(g.columns_numel());
  for (std::int64_t i = 0; i < g.input_numel(); ++i) image.set(i, problem.image[i]);
  const auto each = [&](auto body) {
    std::int64_t column = 0;
    for (std::int64_t b = 0; b < g.batch; ++b)
      for (std::int64_t c = 0; c < g.channels; ++c)
        for (std::int64_t t = 0; t < g.taps(); ++t)
          for (std::int64_t at = 0; at < g.positions(); ++at, ++column) {
            const std::int64_t head = c / h.head_channels();
            body(column, (b * g.channels + c) * g.positions() + at, h.factors_offset(b, head) + t * g.positions() + at,
                 ((b * h.heads + head) * g.taps() + t) * g.positions() + at);
          }
  };
  each([&](std::int64_t column, std::int64_t value, std::int64_t factor, std::int64_t) {
    columns_gradient.set(column, problem.values[value] * problem.factors[factor]);
  });
  Results columns = run(g, image, problem.map, columns_gradient);
  HeadResults e;
  e.values.resize(problem.values.size());
  e.factors.resize(problem.factors.size());
  e.scores.resize(static_cast<std::size_t>(g.batch * h.heads * g.taps() * g.positions()));
  each([&](std::int64_t column, std::int64_t value, std::int64_t factor, std::int64_t score) {
    const Sum& sampled = columns.output[static_cast<std::size_t>(column)];
    const auto add = [&](Sum& sum, double by) {
      sum.value += by * sampled.value;
      sum.magnitude += std::fabs(by) * sampled.magnitude;
    };
    add(e.values[static_cast<std::size_t>(value)], problem.factors[factor]);
    add(e.factors[static_cast<std::size_t>(factor)], problem.values[value]);
    add(e.scores[static_cast<std::size_t>(score)], problem.values[value]);
  });
  e.image = std::move(columns.grad_input);
  e.map = std::move(columns.grad_map);
  return e;
}

}  // namespace oracle
