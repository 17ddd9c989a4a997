#pragma once

// Calls of the convolution's CUDA kernels with an oracle's problem.

#include "conv2d_backward_oracle.h"
#include "cuda_call.h"
#include "ddu/conv2d.h"

namespace conv2d_call {

using cuda_call::Shifted;
using cuda_call::turned;
using cuda_call::Workspace;

/// Why there is no convolution by tensor cores, by what the build and the device are; null if there has to be.
inline const char* missing() {
  if (!cuda_call::has_device()) return "no CUDA device";
#if defined(DDU_TEST_TENSOR_CORES)
  int major = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  return major < 8 ? "this device's tensor cores lack the products" : nullptr;
#else
  return "this build has no convolution by tensor cores";
#endif
}

struct How {
  bool channels_last = false;
  std::size_t shift = 0;  // elements from where memory is aligned to where every tensor starts
  bool input = true, weight = true, map = true, mask = true;  // gradients wanted
  bool deterministic = false;
};

/// A tensor [batch, channels, count] as the call has it, or back.
template <class T>
oracle::Tensor<T> formatted(const How& how, std::int64_t batch, std::int64_t channels, std::int64_t count,
                            const oracle::Tensor<T>& tensor, bool back = false) {
  return how.channels_last ? turned(batch, channels, count, tensor, back) : turned(1, 1, batch * channels * count, tensor);
}

template <class T, class M>
oracle::Tensor<T> forward(const oracle::ConvProblem<T, M>& problem, const How& how) {
  const ddu::Conv2dGeometry& c = problem.c;
  const ddu::Geometry& g = c.geometry;
  const Shifted<T> input(formatted(how, g.batch, g.channels, g.pixels(), problem.input), how.shift),
      weight(problem.weight, how.shift), mask(problem.mask, how.shift), bias(problem.bias, how.shift),
      output(c.output_numel(), how.shift);
  const Shifted<M> map(problem.map, how.shift);
  ddu::Conv2d tensors{
      input.data(), weight.data(), map.data(), c.has_mask ? mask.data() : nullptr, problem.has_bias ? bias.data() : nullptr,
      output.data()};
  if (how.channels_last) tensors.input_format = ddu::MemoryFormat::channels_last;
  const Workspace workspace(ddu::cuda::conv2d_forward_workspace_bytes(c, problem.types(), tensors));
  tensors.workspace = workspace.data();
  ddu::cuda::conv2d_forward(c, problem.types(), tensors, nullptr);
  EXPECT_TRUE(workspace.kept_within());
  return formatted(how, g.batch, c.out_channels, g.positions(), output.on_host(), true);
}

template <class T, class M>
struct Gradients {
  oracle::Tensor<T> input, weight, mask;
  oracle::Tensor<M> map;
};

template <class T, class M>
Gradients<T, M> backward(const oracle::ConvProblem<T, M>& problem, const How& how) {
  const ddu::Conv2dGeometry& c = problem.c;
  const ddu::Geometry& g = c.geometry;
  const Shifted<T> grad_output(formatted(how, g.batch, c.out_channels, g.positions(), problem.grad_output), how.shift),
      input(formatted(how, g.batch, g.channels, g.pixels(), problem.input), how.shift), weight(problem.weight, how.shift),
      mask(problem.mask, how.shift);
  const Shifted<M> map(problem.map, how.shift);
  const Shifted<T> grad_input(g.input_numel(), how.shift), grad_weight(c.weight_numel(), how.shift),
      grad_mask(c.mask_numel(), how.shift);
  const Shifted<M> grad_map(g.map_numel(), how.shift);
  ddu::Conv2dBackward tensors{};
  tensors.grad_output = grad_output.data();
  tensors.input = input.data();
  tensors.weight = weight.data();
  tensors.dilation_map = map.data();
  if (c.has_mask) tensors.mask = mask.data();
  if (how.input) tensors.grad_input = grad_input.data();
  if (how.weight) tensors.grad_weight = grad_weight.data();
  if (how.map) tensors.grad_map = grad_map.data();
  if (c.has_mask && how.mask) tensors.grad_mask = grad_mask.data();
  tensors.input_format = how.channels_last ? ddu::MemoryFormat::channels_last : ddu::MemoryFormat::contiguous;
  const Workspace workspace(ddu::cuda::conv2d_backward_workspace_bytes(c, problem.types(), tensors, how.deterministic));
  tensors.workspace = workspace.data();
  ddu::cuda::conv2d_backward(c, problem.types(), tensors, how.deterministic, nullptr);
  EXPECT_TRUE(workspace.kept_within());
  return {formatted(how, g.batch, g.channels, g.pixels(), grad_input.on_host(), true), grad_weight.on_host(),
          grad_mask.on_host(), grad_map.on_host()};
}

}  // namespace conv2d_call
