#pragma once

// What a deterministic backward needs before it adds up what planar tiles have left, in one launch, since most often they have
// left nothing.

#include "conversion.cuh"
#include "ordered_sums.cuh"

namespace ddu::cuda {

/// Ordered sums in planes that wide tiles add to, of so many pixels each.
struct OrderedPlanesToClear {
  OrderedPlanes planes;
  std::int64_t pixels;

  /// One plane, by `blocks` blocks together.
  __device__ __forceinline__ void clear(std::int64_t plane, unsigned block, unsigned blocks) const {
    const std::int64_t begin = plane * pixels, end = begin + pixels, step = std::int64_t{blocks} * blockDim.x,
                       first = std::int64_t{block} * blockDim.x + threadIdx.x;
    for (std::int64_t i = begin + first; i < end; i += step) planes.words[i] = 0;
  }
};

/// The largest of some gradients of channels with a tile that is left; zeros in planes that wide tiles add to; and for those
/// that are left to rows of channels the rows, with zeros in their sums.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    prepare_rest_kernel(const TileMarks tiles, const LargestSearch<T> search, const PlanesToRows<T> conversion,
                        const OrderedPlanesToClear of_wide, int group_channels) {
  static_assert(LargestSearch<T>::kThreads == kRowThreads, "blocks do both");
  extern __shared__ char shared[];
  constexpr unsigned char kLeft = TileMarks::kMarked | TileMarks::kWide;
  let_next_start();
  if (tiles.nothing_left<kLeft>()) return;
  if (tiles.any(0, tiles.all)) {
    conversion.sums.clear_array();
    const TurnTile<T> tile(shared, conversion.params.log_lanes);
#pragma unroll 1
    for (unsigned block = blockIdx.x; block < conversion.blocks; block += gridDim.x) conversion.run(block, tiles, tile);
  }
#pragma unroll 1
  for (unsigned block = blockIdx.x; block < search.blocks; block += gridDim.x) {
    search.run(block, [&](unsigned plane, unsigned of_plane) {
      const std::int64_t first = std::int64_t{plane / unsigned(group_channels)} * tiles.tiles;
      if (!tiles.any<kLeft>(first, tiles.tiles)) return false;
      if (of_wide.planes.words && tiles.any<TileMarks::kWide>(first, tiles.tiles))
        of_wide.clear(plane, of_plane, search.by_blocks.divisor);
      return true;
    });
  }
}

}  // namespace ddu::cuda
