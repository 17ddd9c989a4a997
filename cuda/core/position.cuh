#pragma once

#include "numeric.cuh"
#include "params.cuh"

namespace ddu::cuda {

/// One thread's output position, and the rate that the map gives it.
template <class Acc>
struct Position {
  bool active;         // whether this thread has a position at all: the tiles at the edges are not full
  int base_y, base_x;  // pixel of the middle of the kernel (Sampler::base)
  std::int64_t index;  // within a plane of the output or of the map
  Acc rate;

  __device__ Position(const Params<Acc>& p, const WorkTile& work, const void* map) {
    unsigned column = threadIdx.x;
    const int row = int(p.by_tile_width.take(column));
    const int oy = work.tile_y * p.tile_height + row, ox = work.tile_x * p.tile_width + int(column);
    active = row < p.tile_height && oy < p.out_height && ox < p.out_width;
    base_y = p.y.base(oy);
    base_x = p.x.base(ox);
    index = std::int64_t{oy} * p.out_width + ox;
    rate = active ? load_rate<Acc>(map, p.map_type, work.map_plane(p) * p.positions() + index) : Acc(0);
  }
  /// Whether its taps read the input. Where the rate is not finite they are all NaN.
  __device__ bool sampled() const { return active && is_finite(rate); }
};

}  // namespace ddu::cuda
