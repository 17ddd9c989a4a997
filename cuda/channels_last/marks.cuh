#pragma once

#include "../core/params.cuh"

namespace ddu::cuda {

/// Tiles of the planar kernels, and which of them are left to these.
struct TileMarks {
  unsigned char* marks = nullptr;  // [image, group, tile]; null where everything is
  int tile_height = 1, tile_columns = 1;
  unsigned tiles = 1;
  Divider by_tile_width;
  unsigned* counters = nullptr;  // two, zero before the first of these kernels: of blocks of work taken, and done

  /// Whether any of `count` tiles from `first` on is marked. For a whole block, and the same in all its threads.
  __device__ bool any(std::int64_t first, std::int64_t count) const {
    if (!marks) return true;
    unsigned found = 0;
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) found |= marks[first + i];
    return __syncthreads_or(int(found));
  }
};

}  // namespace ddu::cuda
