#pragma once

// What a call of the convolution's backward prepares at first, all by one kernel: packed weights, and ranges of rates.

#include "backward_corners.cuh"
#include "backward_input.cuh"
#include "input_gather.cuh"

namespace ddu::cuda {

/// The weights, in the orders of the kernels that multiply by them, and what rates boxes of positions have.
template <class T>
__global__ void __launch_bounds__(256)
    pack_for_backward_kernel(const CornersParams corners, int outputs, uint4* slices, std::int64_t of_corners,
                             const ConvInputParams input, uint4* fragments, std::int64_t of_input,
                             const InputGatherParams gather, uint4* gathered, std::int64_t of_gather, RateRange* ranges,
                             std::int64_t boxes, const void* map, const T* weight) {
  wait_for_previous();
  let_next_start();  // what that reads before it waits for this kernel was there before
  const std::int64_t n = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (n < of_corners) {
    pack_for_corners(corners, outputs, weight, slices, n);
  } else if (n - of_corners < of_input) {
    pack_for_input(input, weight, fragments, n - of_corners);
  } else if (n - of_corners - of_input < of_gather) {
    pack_for_gather(gather, weight, gathered, n - of_corners - of_input);
  } else {
    const std::int64_t box = (n - of_corners - of_input - of_gather) / 32;  // those before are whole warps
    if (box < boxes) find_rates(gather, map, box, ranges);
  }
}

}  // namespace ddu::cuda
