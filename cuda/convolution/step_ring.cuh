#pragma once

// Slices of weights in shared memory for any number of steps: what ring.cuh has for rounds of nine.

#include "ring.cuh"

namespace ddu::cuda {

/// Steps come in their order, tile after tile. Where all slices of a tile have their stages, each is copied once;
/// `kAll`: they do in any case.
template <int kSliceBytes, int kStages, bool kWarpgroup, bool kAll = false>
struct StepRing {
  static constexpr int kBytes = kStages * (kSliceBytes + (kWarpgroup ? 2 * int(sizeof(CopyBarrier)) : 0));

  char* slices;
  const char* from;  // the first slice of a tile
  int steps;         // of a tile
  int left;          // slices that are still to be asked for
  int ahead = 0;     // which slice of a tile comes next
  int stage = 0;
  unsigned parity = 0;  // of how often the stage has been used
  bool resident, first = true;

  __device__ __forceinline__ CopyBarrier& full(int stage) const {
    return reinterpret_cast<CopyBarrier*>(slices + kStages * kSliceBytes)[stage];
  }
  __device__ __forceinline__ CopyBarrier& empty(int stage) const { return full(kStages + stage); }

  __device__ __forceinline__ StepRing(char* shared, const char* weights, int steps_of_tile, int tiles)
      : slices(shared),
        from(weights),
        steps(steps_of_tile),
        left(steps_of_tile * tiles),
        resident(kAll || steps_of_tile <= kStages) {
    if constexpr (kWarpgroup) {
      if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
          full(i).init(1);
          empty(i).init(int(blockDim.x) / kWarpgroupThreads);
        }
        CopyBarrier::publish();
      }
      __syncthreads();
    }
  }
  /// Asks for the first slices, which the kernel before this one has packed.
  __device__ __forceinline__ void start() {
    const int count = resident ? steps : kWarpgroup ? kStages : 1;
    if (!kWarpgroup || threadIdx.x == 0) {
      wait_for_previous();
      for (int i = 0; i < count; ++i) copy(i, i);
    }
    ahead = count % steps;
    left -= count;
  }
  /// The slice of this step, once it is there.
  __device__ __forceinline__ const char* wait() {
    if constexpr (kWarpgroup) {
      full(stage).wait(resident ? 0 : parity);
    } else if (!resident || first) {
      wait_for_copies();
      __syncthreads();  // the slice is there, and all have done with the one before the last
      if (!resident && left > 0) {
        copy(stage + 1 == kStages ? 0 : stage + 1, ahead);
        take();
      }
      first = false;
    }
    return slices + stage * kSliceBytes;
  }
  /// The warpgroup has done with this step: asks for a slice in place of the one before.
  __device__ __forceinline__ void release() {
    if (kWarpgroup && !resident) {
      if (threadIdx.x % kWarpgroupThreads == 0) empty(stage).arrive();
      if (!first && left > 0) {
        if (threadIdx.x < 32) {
          const int before = stage > 0 ? stage - 1 : kStages - 1;
          empty(before).wait(stage > 0 ? parity : parity ^ 1);
          if (threadIdx.x == 0) copy(before, ahead);
          __syncwarp();
        }
        take();
      }
      first = false;
    }
    if (++stage < (resident ? steps : kStages)) return;
    stage = 0;
    parity ^= 1;
  }

 private:
  __device__ __forceinline__ void take() {
    ahead = ahead + 1 == steps ? 0 : ahead + 1;
    --left;
  }
  __device__ __forceinline__ void copy(int to, int slice) const {
    char* const shared = slices + to * kSliceBytes;
    const char* const source = from + std::int64_t{slice} * kSliceBytes;
    if constexpr (kWarpgroup) {
      full(to).copy(shared, source, kSliceBytes);
    } else {
      for (int i = int(threadIdx.x) * 16; i < kSliceBytes; i += int(blockDim.x) * 16) {
        copy_async(reinterpret_cast<uint4*>(shared + i), source + i);
      }
    }
  }
};

}  // namespace ddu::cuda
