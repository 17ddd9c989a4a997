#pragma once

// What the backward kernels of operators without columns have in common: how a lane starts, and how the map's gradient ends.

#include "columns_backward.cuh"
#include "heads.cuh"
#include "shared_gradient.cuh"

namespace ddu::cuda {

/// The taps of a lane's positions.
template <class Acc>
struct HeadTaps {
  using Table = TapTable<Acc, true>;
  Table table;
  int positions;         // how many of kHeadPositions there are, where there is a unit; none if not positive
  unsigned there, ours;  // a bit for each of them, and for each of which this lane has channels

  /// `shared` is where the tables of the block's warps start.
  template <class Work>
  __device__ __forceinline__ HeadTaps(const HeadParams<Acc>& p, const Work& work, char* shared, const void* map)
      : table(shared, work.run), positions(work.any && work.any_unit ? work.there : 0) {
    table.load_rates(p, work, map);
    there = unsigned((1 << max(min(positions, kHeadPositions), 0)) - 1);
    ours = work.channels > 0 ? there : 0;
  }
  /// Adds up the map's gradient over the lanes of each position, and stores it in its array of sums, of `part` elements each,
  /// as store_sum does: with a shared map, other images are other warps' work on the same element, as other channels are.
  template <class Work>
  __device__ __forceinline__ void store_map_gradient(const HeadParams<Acc>& p, const Work& work, Acc (&moves)[kHeadPositions],
                                                     Acc* sums, std::int64_t part) const {
    const std::int64_t array = (p.shared_map ? work.image : 0) * p.slices + work.slice;
    const std::int64_t to = work.map_plane(p) * p.positions + work.first_position + work.first;
    add_over_lanes(moves, p.log_lanes, [&](int i, Acc sum) {
      if (i >= work.there || !work.any) return;
      sum += nan_unless_finite(table.rates[work.first + i]);
      store_sum<Acc>(sums, nullptr, array, part, to + i, sum);
    });
  }
};

}  // namespace ddu::cuda
