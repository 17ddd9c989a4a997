#pragma once

// What aggregate and correlate for LibTorch share: an operator of two tensors and a map, and its autograd.

#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ddu/head_geometry.h"
#include "ddu/torch/common.h"

namespace ddu::torch_detail {

/// Of the three tensors of a call: which gradients are asked for, and the gradients, undefined for one that is not.
using WantedOfThree = std::array<bool, 3>;
using GradientsOfThree = std::array<at::Tensor, 3>;

/// The sizes of a tensor that has channels and positions, and of one that has heads, taps and positions.
inline std::vector<std::int64_t> values_sizes(const HeadGeometry& g, bool batched) {
  std::vector<std::int64_t> sizes{g.geometry.channels, g.geometry.h.out_size, g.geometry.w.out_size};
  if (batched) sizes.insert(sizes.begin(), g.geometry.batch);
  return sizes;
}
inline std::vector<std::int64_t> factors_sizes(const HeadGeometry& g, bool batched) {
  std::vector<std::int64_t> sizes{g.heads, g.geometry.taps(), g.geometry.h.out_size, g.geometry.w.out_size};
  if (batched) sizes.insert(sizes.begin(), g.factors_batch);
  return sizes;
}

/// New memory for a gradient, in a memory format, and its address; nothing and null if it is not wanted.
inline void* new_gradient(bool wanted, const at::Tensor& like, MemoryFormat format, at::Tensor& gradient) {
  if (!wanted) return nullptr;
  gradient = at::empty(like.sizes(), like.options(), torch_format(format));
  return gradient.mutable_data_ptr();
}

/// Runs a forward of libddu on the device of a tensor, with scratch memory: functions of its CPU and of its CUDA namespace.
template <class Tensors, class CpuBytes, class Cpu, class CudaBytes, class Cuda>
void run_forward(const at::Tensor& on, const HeadGeometry& geometry, Types types, Tensors& tensors, CpuBytes cpu_bytes, Cpu cpu,
                 [[maybe_unused]] CudaBytes cuda_bytes, [[maybe_unused]] Cuda cuda) {
  on_device_of(
      on,
      [&](int threads) {
        const at::Tensor workspace = scratch(cpu_bytes(geometry, types, tensors, threads), on);
        tensors.workspace = workspace.mutable_data_ptr();
        cpu(geometry, types, tensors, threads);
      },
      [&](cuda::Stream stream) {
        const at::Tensor workspace = scratch(cuda_bytes(geometry, types, tensors), on);
        tensors.workspace = workspace.mutable_data_ptr();
        cuda(geometry, types, tensors, stream);
      });
}

/// The same of a backward.
template <class Tensors, class CpuBytes, class Cpu, class CudaBytes, class Cuda>
void run_backward(const at::Tensor& on, const HeadGeometry& geometry, Types types, Tensors& tensors, CpuBytes cpu_bytes,
                  Cpu cpu, CudaBytes cuda_bytes, Cuda cuda) {
  const bool deterministic = at::globalContext().deterministicAlgorithms();
  run_forward(
      on, geometry, types, tensors, cpu_bytes, cpu,
      [&](const HeadGeometry& g, Types t, const Tensors& given) { return cuda_bytes(g, t, given, deterministic); },
      [&](const HeadGeometry& g, Types t, const Tensors& given, cuda::Stream stream) {
        cuda(g, t, given, deterministic, stream);
      });
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// An Operator has a `name`, and as static functions
///   at::Tensor forward(first, other, map, options, heads)
///   GradientsOfThree backward(grad, first, other, map, options, heads, wanted)
/// where only correlate reads `heads`.
template <class Operator>
struct HeadBackwardFunction : torch::autograd::Function<HeadBackwardFunction<Operator>> {
  static variable_list forward(AutogradContext*, const at::Tensor& grad, const at::Tensor& first, const at::Tensor& other,
                               const at::Tensor& map, const Options& options, std::int64_t heads, WantedOfThree wanted) {
    GradientsOfThree grads = Operator::backward(grad, first, other, map, options, heads, wanted);
    variable_list all;
    for (at::Tensor& gradient : grads) {  // an operator cannot return undefined tensors
      all.push_back(gradient.defined() ? std::move(gradient) : at::zeros({0}, first.options()));
    }
    return all;
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    throw error((std::string(Operator::name) + " is differentiable once: second derivatives are there in Python").c_str());
  }
};

template <class Operator>
struct HeadFunction : torch::autograd::Function<HeadFunction<Operator>> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& first, const at::Tensor& other, const at::Tensor& map,
                            const Options& options, std::int64_t heads) {
    ctx->save_for_backward({first, other, map});
    ctx->saved_data["options"] = packed(options);
    ctx->saved_data["heads"] = heads;
    return Operator::forward(first, other, map, options, heads);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const WantedOfThree wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)};
    variable_list grads = HeadBackwardFunction<Operator>::apply(grad_outputs[0], saved[0], saved[1], saved[2],
                                                                unpacked(ctx->saved_data.at("options").toIntVector()),
                                                                ctx->saved_data.at("heads").toInt(), wanted);
    for (std::size_t i = 0; i < 3; ++i) {
      if (!wanted[i]) grads[i] = at::Tensor();
    }
    grads.resize(5);  // nothing for the options and the heads
    return grads;
  }
};

}  // namespace ddu::torch_detail
