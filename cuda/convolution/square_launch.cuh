#pragma once

// How the host launches square_convolution_kernel, with one product or the other.

#include <algorithm>

#include "../core/integer.h"
#include "../core/launch.h"
#include "square.cuh"
#include "square.h"

namespace ddu::cuda::convolution {

/// Cuts the output into tiles of so many warpgroups.
template <class Params>
void cut_tiles(const Geometry& g, int groups, Params& p) {
  p.block_columns = groups > 1 ? 2 : 1;
  const std::int64_t columns = ceil_div(g.w.out_size, std::int64_t{8} * p.block_columns);
  const std::int64_t rows = ceil_div(g.h.out_size, std::int64_t{8} * (groups / p.block_columns));
  p.by_tile_columns = Divider(static_cast<unsigned>(columns));
  p.by_tiles = Divider(grid_size(columns * rows));
  p.tiles = grid_size(columns * rows * g.batch);
}

template <class T, int kOutputs, bool kWarpgroup, bool kAll = false, bool kPlain = false>
void launch_square(SquareParams p, const SquareCall& call, const Geometry& g, Stream stream) {
  if constexpr (kWarpgroup && !kAll && kStages<kOutputs> == kRound) {
    if (p.units * p.unit_blocks == 1) return launch_square<T, kOutputs, kWarpgroup, true>(p, call, g, stream);
  }
  if constexpr (kWarpgroup && !kPlain && kOutputs == 256) {  // 3 to 12 % faster; smaller ones are not
    if (!p.masked) return launch_square<T, kOutputs, kWarpgroup, kAll, true>(p, call, g, stream);
  }
  const int blocks_of_tile = static_cast<int>(p.by_output_blocks.divisor * p.by_weight_groups.divisor);
  constexpr int kMostGroups = square_threads(kOutputs) / kWarpgroupThreads;
  int groups = kMostGroups;
  cut_tiles(g, groups, p);
  while (groups > 1 && std::int64_t{p.tiles} * blocks_of_tile < current_device().multiprocessors) {
    groups /= 2;  // no multiprocessor without a tile
    cut_tiles(g, groups, p);
  }
  using Ring = SquareRing<kOutputs, kWarpgroup, kAll>;
  const auto shared = static_cast<std::size_t>(SquareShared<Ring, kOutputs>::bytes(groups * kWarpgroupThreads / 32, p.masked));
  const int room = std::max(1, int(current_device().shared_per_multiprocessor / (shared + 1024)));
  const int at_once = std::min(kMostGroups / groups, room);  // blocks of a multiprocessor
  const int blocks = at_once * current_device().multiprocessors;
  const auto tiles_at_once = static_cast<unsigned>(std::clamp<std::int64_t>(blocks / blocks_of_tile, 1, p.tiles));
  const auto kernel = square_convolution_kernel<T, kOutputs, kWarpgroup, kAll, kPlain>;
  // What shared memory does not take is L1's, which the samples come from.
  const int percent = static_cast<int>(std::min<std::size_t>(
      100, (std::size_t(at_once) * (shared + 1024) * 100) / std::size_t(current_device().shared_per_multiprocessor) + 1));
  DDU_CUDA_CHECK(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributePreferredSharedMemoryCarveout, percent));
  const SquarePointers<T> tensors{
      static_cast<const T*>(call.input), static_cast<const char*>(call.slices), call.map, static_cast<const T*>(call.mask),
      static_cast<const T*>(call.bias),  static_cast<T*>(call.output),          call.left};
  launch(kernel, {grid_size(std::int64_t{tiles_at_once} * blocks_of_tile), groups * kWarpgroupThreads, shared, true}, stream, p,
         tensors);
}

}  // namespace ddu::cuda::convolution
