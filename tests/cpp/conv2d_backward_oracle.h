#pragma once

// The convolution's gradients by their definition.

#include <cmath>
#include <utility>
#include <vector>

#include "conv2d_oracle.h"

namespace oracle {

struct ConvGradients {
  std::vector<Sum> input, weight, map, mask;
  std::vector<Sum> weighted_input;  // as Results has it
};

template <class T, class M>
ConvGradients gradients_of(const ConvProblem<T, M>& problem) {
  const ddu::Conv2dGeometry& c = problem.c;
  const ddu::Geometry& g = c.geometry;
  const auto mask_at = [&](std::int64_t i) { return c.has_mask ? problem.mask[i] : 1; };
  Tensor<double> image(g.input_numel()), columns_gradient(g.columns_numel());
  for (std::int64_t i = 0; i < g.input_numel(); ++i) image.set(i, problem.input[i]);
  for (std::int64_t i = 0; i < g.columns_numel(); ++i) columns_gradient.set(i, 0);
  each_product(c, [&](std::int64_t output, std::int64_t column, std::int64_t weight, std::int64_t mask) {
    const double by = problem.weight[weight] * mask_at(mask) * problem.grad_output[output];
    columns_gradient.set(column, columns_gradient[column] + by);
  });
  Results columns = run(g, image, problem.map, columns_gradient);
  ConvGradients e;
  e.weight.resize(problem.weight.size());
  e.mask.resize(problem.mask.size());
  each_product(c, [&](std::int64_t output, std::int64_t column, std::int64_t weight, std::int64_t mask) {
    const Sum& sampled = columns.output[static_cast<std::size_t>(column)];
    const auto add = [&](Sum& sum, double by) {
      sum.value += by * sampled.value;
      sum.magnitude += std::fabs(by) * sampled.magnitude;
    };
    add(e.weight[static_cast<std::size_t>(weight)], problem.grad_output[output] * mask_at(mask));
    if (c.has_mask) add(e.mask[static_cast<std::size_t>(mask)], problem.grad_output[output] * problem.weight[weight]);
  });
  e.input = std::move(columns.grad_input);
  e.weighted_input = std::move(columns.weighted);
  e.map = std::move(columns.grad_map);
  return e;
}

}  // namespace oracle
