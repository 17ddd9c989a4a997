#pragma once

#include "../../cpp/src/workspace.h"
#include "../core/dependent_launch.cuh"
#include "../core/params.cuh"
#include "../core/shared_work.cuh"

namespace ddu::cuda {

/// Tiles of the planar kernels, and which of them are left to these.
struct TileMarks {
  static constexpr unsigned char kMarked = 1, kWide = 2;  // bits of a mark: left to these kernels, or to wide tiles
  static constexpr int kPhases = 2;                       // of a kernel's shared work (SharedWork)
  static constexpr int kCounterBytes = SharedWork::bytes(kPhases);

  unsigned char* marks = nullptr;  // [image, group, tile], where eight can be read at once; null where everything is
  int tile_height = 1, tile_columns = 1;
  unsigned tiles = 1;
  Divider by_tile_width;
  std::int64_t all = 0;  // of all images and groups
  int share = 0;         // pixels of each image that the planar blocks of a marked tile have turned to rows; 0 where none do

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

  /// Whether any of `count` tiles from `first` on has a mark of kBits. For a whole block, and the same in all its threads. Past
  /// L1: marks may change while a kernel runs.
  template <unsigned char kBits = kMarked>
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
    return __syncthreads_or((found & (kBits * 0x0101010101010101ull)) != 0);
  }

  /// Whether all tiles have a mark of kBits, as `any`.
  template <unsigned char kBits>
  __device__ bool every() const {
    const volatile unsigned char* of_tiles = marks;
    bool missing = false;
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < all; i += blockDim.x) missing = missing || !(of_tiles[i] & kBits);
    return !__syncthreads_or(missing);
  }

  /// Whether a kernel behind the planar one has nothing to do, as most often. Else it has waited for the kernel before it.
  ///
  /// Its blocks ask that first, while planar blocks still run: where a tile is marked, its mark was published before this
  /// kernel could start. The others' marks may not be there yet, so that one looks marked that is not: who finds any waits, and
  /// looks again. Who finds none ends; but one block waits before it does, so that what waits for this kernel waits for those
  /// before it too.
  template <unsigned char kBits = kMarked>
  __device__ bool nothing_left() const {
    if (!marks) return false;
    const bool perhaps = any<kBits>(0, all);
    if (perhaps || blockIdx.x == 0) wait_for_previous();
    return !perhaps || !any<kBits>(0, all);
  }

  /// Of the kernel behind the planar one that has phases.
  __device__ SharedWork work() const { return {reinterpret_cast<unsigned*>(marks - kCounterBytes)}; }
};

/// What is left to the kernel of planar/deterministic_fallback.cuh, of a channel of a tile: all of its gradients, or those
/// that OrderedSums::is_beyond says.
enum FallbackMark : unsigned char { kAllGradients = 1, kGradientsBeyond = 2 };

/// What that kernel looks at first. Behind it lie its marks: [image, channel, 1 + tile], the first of each says whether any
/// tile has one. Zero before the first kernel of a call.
struct alignas(16) FallbackHead {
  unsigned any;  // whether there is a mark
  unsigned counters[SharedWork::bytes(2) / sizeof(unsigned)];

  __host__ __device__ static FallbackHead* of(unsigned char* marks) { return reinterpret_cast<FallbackHead*>(marks) - 1; }
};

/// Sets such a mark; `plane` counts channels of all images.
__device__ __forceinline__ void leave_to_fallback(unsigned char* marks, std::int64_t plane, std::int64_t tiles,
                                                  std::int64_t tile, FallbackMark mark) {
  FallbackHead::of(marks)->any = 1;
  marks += plane * (1 + tiles);
  marks[0] = 1;
  marks[1 + tile] = mark;
}

}  // namespace ddu::cuda
