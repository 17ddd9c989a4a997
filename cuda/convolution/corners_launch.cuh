#pragma once

// How the host launches conv_corners_backward_kernel, with one product or the other.

#include "backward_corners.cuh"
#include "corners.h"
#include "square_launch.cuh"

namespace ddu::cuda::convolution {

template <class T>
CornersPointers<T> corners_pointers(const CornersCall& call) {
  return {static_cast<const T*>(call.grad_output),
          static_cast<const T*>(call.image),
          reinterpret_cast<const char*>(call.slices),
          static_cast<const T*>(call.mask),
          call.map,
          call.map_sums,
          call.mask_sums,
          call.grad_map,
          static_cast<T*>(call.grad_mask),
          call.map_part,
          call.mask_part,
          static_cast<uint4*>(call.zeros),
          call.zeros_count,
          call.flags};
}

/// What shared memory does not take is L1's, which the corners come from.
template <class Kernel>
void leave_rest_to_l1(Kernel kernel, std::size_t shared) {
  const int percent = static_cast<int>(
      std::min<std::size_t>(100, (shared + 1024) * 100 / std::size_t(current_device().shared_per_multiprocessor) + 1));
  DDU_CUDA_CHECK(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributePreferredSharedMemoryCarveout, percent));
}

template <class T, int kOutputs, bool kWarpgroup, CornersMode kMode>
void launch_corners(const CornersCall& call, const Geometry& g, Stream stream) {
  CornersParams p = call.params;
  const int blocks_of_tile = static_cast<int>(p.by_output_blocks.divisor * p.by_weight_groups.divisor);
  int groups = corners_threads(kOutputs) / kWarpgroupThreads;
  cut_tiles(g, groups, p);
  const bool of_mask = call.mask_sums || call.grad_mask;
  const auto shared_bytes = [&] { return static_cast<std::size_t>(corners_shared_bytes(p, kOutputs, groups, of_mask)); };
  while (groups > 1 &&
         (std::int64_t{p.tiles} * blocks_of_tile < current_device().multiprocessors ||  // no multiprocessor without a tile
          shared_bytes() > std::size_t(current_device().shared_per_block))) {
    groups /= 2;
    cut_tiles(g, groups, p);
  }
  const std::size_t shared = shared_bytes();
  const auto tiles_at_once =
      static_cast<unsigned>(std::clamp<std::int64_t>(current_device().multiprocessors / blocks_of_tile, 1, p.tiles));
  const auto kernel = conv_corners_backward_kernel<T, kOutputs, kWarpgroup, kMode>;
  leave_rest_to_l1(kernel, shared);
  launch(kernel, {grid_size(std::int64_t{tiles_at_once} * blocks_of_tile), groups * kWarpgroupThreads, shared, true}, stream, p,
         corners_pointers<T>(call));
}

template <bool kWarpgroup>
void launch_corners(const CornersCall& call, const Geometry& g, Stream stream) {
  visit(call.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) {
      if (call.outputs > 64) return launch_corners<T, 256, kWarpgroup, CornersMode::exact>(call, g, stream);
      if constexpr (kHasFlags<T, 64> && kWarpgroup) {
        if (call.params.finite) return launch_corners<T, 64, true, CornersMode::finite>(call, g, stream);
      }
      constexpr bool kAsks = kHasFlags<T, 64> && !kWarpgroup;
      launch_corners<T, 64, kWarpgroup, kAsks ? CornersMode::ask : CornersMode::exact>(call, g, stream);
    }
  });
}

}  // namespace ddu::cuda::convolution
