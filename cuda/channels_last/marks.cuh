#pragma once

#include "../../cpp/src/workspace.h"
#include "../core/dependent_launch.cuh"
#include "../core/params.cuh"

namespace ddu::cuda {

/// Tiles of the planar kernels, and which of them are left to these.
struct TileMarks {
  static constexpr unsigned char kMarked = 1;  // a bit of a mark: others are for other kernels
  static constexpr int kPhases = 2;            // of a kernel's shared work (take_piece)
  static constexpr int kCounterBytes = 2 * kPhases * int(sizeof(unsigned));

  unsigned char* marks = nullptr;  // [image, group, tile], where eight can be read at once; null where everything is
  int tile_height = 1, tile_columns = 1;
  unsigned tiles = 1;
  Divider by_tile_width;
  std::int64_t all = 0;  // of all images and groups

  /// Memory for the marks of so many tiles, and ahead of them for two counters of each phase: of pieces taken, and done.
  static unsigned char* take(Workspace& workspace, std::int64_t tiles) {
    auto* counters = workspace.take<unsigned char>(kCounterBytes + tiles);
    return counters ? counters + kCounterBytes : nullptr;
  }
  /// Before the first kernel that shares work: who marks the first tile does it.
  __device__ __forceinline__ static void clear_counters(unsigned char* marks) {
    static_assert(kCounterBytes == sizeof(uint4), "one store");
    *reinterpret_cast<uint4*>(marks - kCounterBytes) = {0, 0, 0, 0};
  }

  /// Whether any of `count` tiles from `first` on is marked. For a whole block, and the same in all its threads. Past L1:
  /// marks may change while a kernel runs.
  __device__ bool any(std::int64_t first, std::int64_t count) const {
    if (!marks) return true;
    using Eight = unsigned long long;
    const std::int64_t eights = first % 8 == 0 ? count / 8 : 0;
    const volatile unsigned char* ones = marks + first;
    const auto* from = reinterpret_cast<const volatile Eight*>(ones);
    Eight found = 0;
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < eights; i += blockDim.x) found |= from[i];
    for (std::int64_t i = 8 * eights + threadIdx.x; i < count; i += blockDim.x) found |= ones[i];
    return __syncthreads_or((found & (kMarked * 0x0101010101010101ull)) != 0);
  }

  /// Whether a kernel behind the planar one has nothing to do, as most often. Else it has waited for the kernel before it.
  ///
  /// Its blocks ask that first, while planar blocks still run: where a tile is marked, its mark was published before this
  /// kernel could start. The others' marks may not be there yet, so that one looks marked that is not: who finds any waits, and
  /// looks again. Who finds none ends; but one block waits before it does, so that what waits for this kernel waits for those
  /// before it too.
  __device__ bool nothing_left() const {
    if (!marks) return false;
    const bool perhaps = any(0, all);
    if (perhaps || blockIdx.x == 0) wait_for_previous();
    return !perhaps || !any(0, all);
  }

  /// The next piece of work that all blocks of a kernel share: they take them in turn.
  __device__ unsigned take_piece(int phase) const {
    static __shared__ unsigned taken;
    __syncthreads();
    if (threadIdx.x == 0) taken = atomicAdd(counters_of(phase), 1u);
    __syncthreads();
    return taken;
  }
  /// Once this block has done one.
  __device__ void finish_piece(int phase) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(counters_of(phase) + 1, 1u);
  }
  /// Waits until all pieces are done, and lets the block read what they wrote. (A block that waits holds none, and those that
  /// hold some wait for nobody: it does not matter whether all blocks run at once.)
  __device__ void wait_for_pieces(int phase, unsigned pieces) const {
    if (threadIdx.x == 0) {
      while (static_cast<volatile unsigned*>(counters_of(phase))[1] < pieces) {
      }
      __threadfence();
    }
    __syncthreads();
  }

 private:
  __device__ unsigned* counters_of(int phase) const { return reinterpret_cast<unsigned*>(marks - kCounterBytes) + 2 * phase; }
};

}  // namespace ddu::cuda
