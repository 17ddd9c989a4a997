#pragma once

// The convolution by its definition, by way of the oracle's columns, and tensors to run it on.

#include <random>
#include <vector>

#include "ddu/conv2d_geometry.h"
#include "oracle.h"

namespace oracle {

struct ConvCase {
  Case sizes;
  std::int64_t outputs;
  std::int64_t weight_groups = 1;
  std::int64_t heads = 0;  // of the mask; 0 for none
  bool shared_mask = false, bias = false;

  ddu::Conv2dGeometry geometry() const {
    const ddu::Geometry g = sizes.geometry();
    return {g, outputs, weight_groups, heads > 0 ? heads : 1, shared_mask || heads == 0 ? 1 : g.batch, heads > 0, true};
  }
};

template <class T, class M>
struct ConvProblem {
  ddu::Conv2dGeometry c;
  bool has_bias;
  Tensor<T> input, weight, mask, bias, grad_output;
  Tensor<M> map;

  ConvProblem(const ConvCase& sizes, const std::function<double(std::mt19937&)>& rate)
      : c(sizes.geometry()),
        has_bias(sizes.bias),
        input(c.geometry.input_numel()),
        weight(c.weight_numel()),
        mask(c.mask_numel()),
        bias(c.out_channels),
        grad_output(c.output_numel()),
        map(c.geometry.map_numel()) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    for (Tensor<T>* tensor : {&input, &weight, &mask, &bias, &grad_output}) {
      for (std::size_t i = 0; i < tensor->size(); ++i) tensor->set(static_cast<std::int64_t>(i), normal(random));
    }
    for (std::size_t i = 0; i < map.size(); ++i) map.set(static_cast<std::int64_t>(i), rate(random));
  }
  static constexpr ddu::Types types() { return {dtype_of<T>(), dtype_of<M>()}; }
};

/// Calls body(output, column, weight, mask) with an index of each, for every product that the output is a sum of.
template <class Body>
void each_product(const ddu::Conv2dGeometry& c, Body body) {
  const ddu::Geometry& g = c.geometry;
  const std::int64_t channels = c.weight_group_channels(), outputs = c.weight_group_outputs();
  for (std::int64_t b = 0; b < g.batch; ++b)
    for (std::int64_t o = 0; o < c.out_channels; ++o)
      for (std::int64_t of_group = 0; of_group < channels; ++of_group)
        for (std::int64_t t = 0; t < g.taps(); ++t)
          for (std::int64_t at = 0; at < g.positions(); ++at) {
            const std::int64_t channel = o / outputs * channels + of_group;
            body((b * c.out_channels + o) * g.positions() + at,
                 ((b * g.channels + channel) * g.taps() + t) * g.positions() + at, (o * channels + of_group) * g.taps() + t,
                 c.mask_offset(b, channel / c.head_channels()) + t * g.positions() + at);
          }
}

/// The output, with the magnitude of what was added up.
template <class T, class M>
std::vector<Sum> output_of(const ConvProblem<T, M>& problem) {
  const ddu::Conv2dGeometry& c = problem.c;
  const ddu::Geometry& g = c.geometry;
  Tensor<double> image(g.input_numel()), zeros(g.columns_numel());
  for (std::int64_t i = 0; i < g.input_numel(); ++i) image.set(i, problem.input[i]);
  for (std::int64_t i = 0; i < g.columns_numel(); ++i) zeros.set(i, 0);
  const Results columns = run(g, image, problem.map, zeros);
  std::vector<Sum> output(static_cast<std::size_t>(c.output_numel()));
  each_product(c, [&](std::int64_t o, std::int64_t column, std::int64_t weight, std::int64_t mask) {
    const double factor = problem.weight[weight] * (c.has_mask ? problem.mask[mask] : 1);
    const Sum& sampled = columns.output[static_cast<std::size_t>(column)];
    Sum& sum = output[static_cast<std::size_t>(o)];
    sum.value += factor * sampled.value;
    sum.magnitude += std::fabs(factor) * sampled.magnitude;
  });
  if (problem.has_bias) {
    for (std::size_t o = 0; o < output.size(); ++o)
      output[o].add(problem.bias[static_cast<std::int64_t>(o) / g.positions() % c.out_channels]);
  }
  return output;
}

}  // namespace oracle
