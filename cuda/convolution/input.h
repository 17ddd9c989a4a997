#pragma once

// How the host calls the two kernels of the gradient of the input (backward_input.cuh, input_gather.cuh). Each is compiled
// twice, as that of square.h.

#include "../core/launch.h"
#include "backward_input.cuh"
#include "input_gather.cuh"

namespace ddu::cuda::convolution {

/// A call. Pointers are those of ConvInputPointers.
struct InputCall {
  ConvInputParams params;
  DType type;
  unsigned blocks;
  const void* grad_output;
  const uint4* weights;
  const void *weight, *mask, *map;
  float* sums;
};

template <bool kWarpgroup>
void launch_input(const InputCall& call, Stream stream) {
  visit(call.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) {
      FloatingSums<T> sums{};
      sums.words = call.sums;
      const ConvInputPointers<T> tensors{
          static_cast<const T*>(call.grad_output), call.weights, static_cast<const T*>(call.weight),
          static_cast<const T*>(call.mask),        call.map,     sums};
      const auto shared = static_cast<std::size_t>(InputMemory::bytes(call.params, call.mask != nullptr));
      launch(conv_input_backward_kernel<T, kWarpgroup>, {call.blocks, kInputThreads, shared, true}, stream, call.params,
             tensors);
    }
  });
}

void launch_input_warpgroup_kernel(const InputCall& call, Stream stream);

/// A call whose gradient is gathered. Pointers are those of InputGatherPointers.
struct GatherCall {
  InputGatherParams params;
  DType type;
  unsigned blocks;
  const void* grad_output;
  const uint4* slices;
  const RateRange* ranges;
  const void *mask, *map, *weight;
  void* gradient;
  float* sums;
};

template <class T, bool kWarpgroup>
constexpr int kGatherBytes = StepRing<kGatherSliceBytes<T>, kGatherTaps, kWarpgroup, true>::kBytes + InputLists::kBytes;

template <bool kWarpgroup>
void launch_gather(const GatherCall& call, Stream stream) {
  visit(call.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) {
      const InputGatherPointers<T> tensors{static_cast<const T*>(call.grad_output),
                                           reinterpret_cast<const char*>(call.slices),
                                           call.ranges,
                                           static_cast<const T*>(call.mask),
                                           call.map,
                                           static_cast<const T*>(call.weight),
                                           static_cast<T*>(call.gradient),
                                           call.sums};
      const auto kernel =
          call.mask ? conv_input_gather_kernel<T, kWarpgroup, true> : conv_input_gather_kernel<T, kWarpgroup, false>;
      launch(kernel, {call.blocks, kGatherThreads, kGatherBytes<T, kWarpgroup>, true}, stream, call.params, tensors);
    }
  });
}

void launch_gather_warpgroup_kernel(const GatherCall& call, Stream stream);

}  // namespace ddu::cuda::convolution
