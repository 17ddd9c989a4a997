#pragma once

// Where a warp turns channels side by side into positions side by side, or back: a tile in shared memory, of its own.
//
//   a row for each channel of the slice; in it a unit of 16 bytes for each kVec positions, at least a line of 128 bytes
//
//                unit 0   unit 1   ...                       Lanes that write have different channel vectors v: unit u of
//   channel 0   [p0 p1..] [..    ]                           theirs lies at u ^ v, in other banks than its neighbours'.
//   channel 1   [       ] [      ]                           Lanes that read whole lines have one channel each: they too meet
//   ...                                                      no bank twice.

#include "gather.cuh"

namespace ddu::cuda {

template <class T>
struct TurnTile {
  static constexpr int kN = kVec<T>;
  uint4* units;
  int log_units;

  /// Units of a row, where a position's channels take 2^log_lanes lanes.
  __host__ __device__ static int log_units_of(int log_lanes) { return log_lanes > 2 ? 3 : 5 - log_lanes; }
  __host__ __device__ static int bytes(int log_lanes) { return 16 * kN << (log_lanes + log_units_of(log_lanes)); }

  __device__ TurnTile(char* shared, int log_lanes) : log_units(log_units_of(log_lanes)) {
    units = reinterpret_cast<uint4*>(shared + int(threadIdx.x) / 32 * bytes(log_lanes));
  }
  __device__ __forceinline__ uint4& unit(int channel, int index) const {
    return units[(channel << log_units) + (index ^ (channel / kN & 7))];
  }
  __device__ __forceinline__ T& element(int channel, int position) const {
    return reinterpret_cast<T*>(&unit(channel, position / kN))[position % kN];
  }
};

}  // namespace ddu::cuda
