#pragma once

// The convolution's own kernels for LibTorch, where libddu has some that serve a call (ddu/conv2d.h): elsewhere chunks do.

#include <ATen/Context.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "ddu/conv2d.h"
#include "ddu/torch/common.h"

namespace ddu::torch_detail {

/// Of a call, in the order of the schema: input, weight, dilation_map, bias, mask.
using TensorsOfConv2d = std::array<at::Tensor, 5>;
using WantedOfConv2d = std::array<bool, 5>;

/// Whether torch's convolutions may round the factors of float32 products to TF32. Torch 2.9 and later keep that apart from
/// other operators, as strings first and then as enumerations.
template <class Precision, class Backend, class Operator>
bool rounds_to_tf32(const at::Context& context, Precision (at::Context::*precision)(Backend, Operator) const) {
  if constexpr (std::is_enum_v<Precision>) {
    return (context.*precision)(Backend::CUDA, Operator::CONV) == Precision::TF32;
  } else {
    return (context.*precision)("cuda", "conv") == "tf32";
  }
}
template <class Context>
auto convolutions_round_to_tf32(const Context& context, int) -> decltype(rounds_to_tf32(context, &Context::float32Precision)) {
  return rounds_to_tf32(context, &Context::float32Precision);
}
template <class Context>
bool convolutions_round_to_tf32(const Context& context, std::int64_t) {
  return context.allowTF32CuDNN();
}

/// The call as the kernels take it.
inline Conv2dGeometry for_kernels(Conv2dGeometry geometry) {
  const at::Context& context = at::globalContext();
  geometry.allow_tf32 = context.userEnabledCuDNN() && convolutions_round_to_tf32(context, 0);
  return geometry;
}

/// The tensors as the kernels read them; the input, and what is like it, in its format.
inline TensorsOfConv2d for_kernels(const TensorsOfConv2d& given, MemoryFormat format) {
  constexpr std::array<const char*, 5> names{"input", "weight", "dilation_map", "bias", "mask"};
  TensorsOfConv2d tensors;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (given[i].defined()) tensors[i] = in_memory(names[i], given[i], i == 0 ? format : MemoryFormat::contiguous);
  }
  return tensors;
}

inline const void* address_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
inline void* new_address_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

inline constexpr Types all_float32{DType::float32, DType::float32};

/// Whether they are of half types on a CPU, whose kernels read float32, and there are some for the call.
inline bool reads_float32(const Conv2dGeometry& geometry, const TensorsOfConv2d& given) {
  return given[0].is_cpu() && c10::elementSize(given[0].scalar_type()) == 2 && cpu::conv2d_supported(geometry, all_float32);
}
inline TensorsOfConv2d in_float32(TensorsOfConv2d tensors) {
  for (at::Tensor& tensor : tensors) {
    if (tensor.defined()) tensor = tensor.to(at::kFloat);
  }
  return tensors;
}

/// Fills the output, or returns false for a call that the kernels do not serve.
inline bool conv2d_by_kernels(const Conv2dGeometry& geometry, Types types, const TensorsOfConv2d& given,
                              const at::Tensor& output) {
  if (!given[0].is_cuda() && !given[0].is_cpu()) return false;
  bool served = false;
  const MemoryFormat format = format_of(given[0]);
  TensorsOfConv2d kept;
  const auto prepared = [&] {
    kept = for_kernels(given, format);
    const auto& [input, weight, map, bias, mask] = kept;
    return Conv2d{address_of(input), address_of(weight),     address_of(map), address_of(mask),
                  address_of(bias),  new_address_of(output), nullptr,         format};
  };
  on_device_of(
      given[0],
      [&](int threads) {
        served = cpu::conv2d_supported(geometry, types);
        if (!served) return;
        Conv2d tensors = prepared();
        const at::Tensor workspace = scratch(cpu::conv2d_forward_workspace_bytes(geometry, types, tensors, threads), given[0]);
        tensors.workspace = workspace.mutable_data_ptr();
        cpu::conv2d_forward(geometry, types, tensors, threads);
      },
      [&](cuda::Stream stream) {
        const Conv2dGeometry call = for_kernels(geometry);
        served = cuda::conv2d_supported(call, types);
        if (!served) return;
        Conv2d tensors = prepared();
        const at::Tensor workspace = scratch(cuda::conv2d_forward_workspace_bytes(call, types, tensors), given[0]);
        tensors.workspace = workspace.mutable_data_ptr();
        cuda::conv2d_forward(call, types, tensors, stream);
      });
  return served;
}

/// Makes and fills the gradients that are wanted, but for the bias's; or returns false for a call that the kernels do not
/// serve.
inline bool conv2d_backward_by_kernels(const Conv2dGeometry& geometry, Types types, const at::Tensor& given_grad,
                                       const TensorsOfConv2d& given, WantedOfConv2d wanted, TensorsOfConv2d& grads) {
  if (!given[0].is_cuda() && !given[0].is_cpu()) return false;
  const bool deterministic = at::globalContext().deterministicAlgorithms();
  bool served = false;
  const MemoryFormat format = format_of(given[0]);
  TensorsOfConv2d kept;
  at::Tensor grad;
  const auto prepared = [&] {
    grad = in_memory("grad", given_grad, format);
    kept = for_kernels(given, format);
    const auto& [input, weight, map, bias, mask] = kept;
    const TensorsOfConv2d likes{input, weight, map, at::Tensor(), mask};
    for (std::size_t i = 0; i < likes.size(); ++i) {
      if (!wanted[i] || !likes[i].defined()) continue;
      grads[i] = at::empty(likes[i].sizes(), likes[i].options(), torch_format(i == 0 ? format : MemoryFormat::contiguous));
    }
    Conv2dBackward tensors{};
    tensors.grad_output = address_of(grad);
    tensors.input = address_of(input);
    tensors.weight = address_of(weight);
    tensors.dilation_map = address_of(map);
    tensors.mask = address_of(mask);
    tensors.grad_input = new_address_of(grads[0]);
    tensors.grad_weight = new_address_of(grads[1]);
    tensors.grad_map = new_address_of(grads[2]);
    tensors.grad_mask = new_address_of(grads[4]);
    tensors.input_format = format;
    return tensors;
  };
  on_device_of(
      given[0],
      [&](int threads) {
        served = cpu::conv2d_supported(geometry, types);
        if (!served) return;
        Conv2dBackward tensors = prepared();
        const at::Tensor workspace = scratch(cpu::conv2d_backward_workspace_bytes(geometry, types, tensors, threads), given[0]);
        tensors.workspace = workspace.mutable_data_ptr();
        cpu::conv2d_backward(geometry, types, tensors, threads);
      },
      [&](cuda::Stream stream) {
        const Conv2dGeometry call = for_kernels(geometry);
        served = cuda::conv2d_backward_supported(call, types, deterministic);
        if (!served) return;
        Conv2dBackward tensors = prepared();
        const at::Tensor workspace =
            scratch(cuda::conv2d_backward_workspace_bytes(call, types, tensors, deterministic), given[0]);
        tensors.workspace = workspace.mutable_data_ptr();
        cuda::conv2d_backward(call, types, tensors, deterministic, stream);
      });
  return served;
}

}  // namespace ddu::torch_detail
