#pragma once

// Slices of weights in shared memory, on their way through a ring of stages:
//
//   stage     0        1        2          A block asks for `stages` slices at its start, and for another one each time that
//   all
//         ┌────────┬────────┬────────┐     of its warpgroups have done with one, a step late, so that they may drift apart by
//         │ step 3 │ step 4 │ step 2 │     one. Where all slices of a tile have their stages, each is copied once.
//         └────────┴────────┴────────┘
//
// Barriers of two kinds: `full` tells that a slice is there, `empty` that each warpgroup has done with it. Devices without them
// meet at each step instead (MeetingRing).

#include "../core/async_copy.cuh"
#include "../core/dependent_launch.cuh"
#include "../core/warpgroup_mma.cuh"

namespace ddu::cuda {

/// A barrier in shared memory that also counts bytes of copies.
struct CopyBarrier {
  std::uint64_t state;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __device__ __forceinline__ unsigned address() const { return unsigned(__cvta_generic_to_shared(&state)); }
  __device__ __forceinline__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals));
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  /// Copies a whole slice; the barrier's phase ends when it is there.
  __device__ __forceinline__ void copy(char* shared, const char* global, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     unsigned(__cvta_generic_to_shared(shared))),
                 "l"(global), "r"(bytes), "r"(address())
                 : "memory");
  }
  /// Waits for the end of a phase of that parity.
  __device__ __forceinline__ void wait(unsigned parity) const {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(
                     address()),
                 "r"(parity)
                 : "memory");
  }
  __device__ __forceinline__ static void publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
#else
  __device__ void init(int) {}
  __device__ void arrive() {}
  __device__ void copy(char*, const char*, unsigned) {}
  __device__ void wait(unsigned) const {}
  __device__ static void publish() {}
#endif
};

/// A *round* is nine steps, the taps of a block of channels; stages divide it, so that each tap has its stage.
constexpr int kRound = 9;

template <int kSliceBytes, int kStages>
struct WeightRing {
  static constexpr int kRounds = kRound / kStages;  // times that a stage is used in a round
  static_assert(kRound % kStages == 0 && kRounds % 2 == 1, "parities");
  static constexpr int kBytes = kStages * (kSliceBytes + 2 * int(sizeof(CopyBarrier)));

  char* slices;
  const char* from;  // the first slice of a tile
  int rounds;        // of a tile
  int left;          // slices that are still to be asked for
  int ahead = 0;     // which slice of a tile comes next
  int round = 0;     // of the block's
  bool resident;     // whether each slice of a tile has a stage

  __device__ __forceinline__ CopyBarrier& full(int stage) const {
    return reinterpret_cast<CopyBarrier*>(slices + kStages * kSliceBytes)[stage];
  }
  __device__ __forceinline__ CopyBarrier& empty(int stage) const { return full(kStages + stage); }

  __device__ __forceinline__ WeightRing(char* shared, const char* weights, int rounds_of_tile, int tiles)
      : slices(shared),
        from(weights),
        rounds(rounds_of_tile),
        left(rounds_of_tile * tiles * kRound - kStages),
        resident(rounds_of_tile * kRound == kStages) {
    if (!resident) ahead = kStages;
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        full(i).init(1);
        empty(i).init(int(blockDim.x) / kWarpgroupThreads);
      }
      CopyBarrier::publish();
    }
    __syncthreads();
  }
  /// Asks for the first slices, which the kernel before this one has packed.
  __device__ __forceinline__ void start() const {
    if (threadIdx.x != 0) return;
    wait_for_previous();
    for (int i = 0; i < kStages; ++i) full(i).copy(slices + i * kSliceBytes, from + std::int64_t{i} * kSliceBytes, kSliceBytes);
  }
  /// The slice of tap t of this round, once it is there.
  __device__ __forceinline__ const char* wait(int t) const {
    full(t % kStages).wait(resident ? 0 : (round + t / kStages) & 1);
    return slices + t % kStages * kSliceBytes;
  }
  /// The warpgroup has done with tap t of a round: asks for a slice in place of the one before.
  __device__ __forceinline__ void release(int t, int of_round) {
    if (resident) return;
    if (threadIdx.x % kWarpgroupThreads == 0) empty(t % kStages).arrive();
    if ((t == 0 && of_round == 0) || left <= 0) return;
    if (threadIdx.x < 32) {
      const int before = (t + kStages - 1) % kStages;
      empty(before).wait((t > 0 ? of_round + (t - 1) / kStages : of_round - 1 + kRounds - 1) & 1);
      if (threadIdx.x == 0) {
        full(before).copy(slices + before * kSliceBytes, from + std::int64_t{ahead} * kSliceBytes, kSliceBytes);
      }
      __syncwarp();
    }
    ahead = ahead + 1 == rounds * kRound ? 0 : ahead + 1;
    --left;
  }
};

/// The same where all threads copy: a slice is asked for a step ahead, and the block meets at each step.
template <int kSliceBytes, int kStages>
struct MeetingRing {
  static_assert(kRound % kStages == 0 && kStages > 1, "parities");
  static constexpr int kBytes = kStages * kSliceBytes;

  char* slices;
  const char* from;
  int rounds, left;
  int ahead = 0, round = 0;
  bool resident;

  __device__ __forceinline__ MeetingRing(char* shared, const char* weights, int rounds_of_tile, int tiles)
      : slices(shared),
        from(weights),
        rounds(rounds_of_tile),
        left(rounds_of_tile * tiles * kRound),
        resident(rounds_of_tile * kRound == kStages) {}
  __device__ __forceinline__ void copy(int stage) {
    const char* source = from + std::int64_t{ahead} * kSliceBytes;
    for (int i = int(threadIdx.x) * 16; i < kSliceBytes; i += int(blockDim.x) * 16) {
      copy_async(reinterpret_cast<uint4*>(slices + stage * kSliceBytes + i), source + i);
    }
    ahead = ahead + 1 == rounds * kRound ? 0 : ahead + 1;
    --left;
  }
  __device__ __forceinline__ void start() {
    wait_for_previous();
    for (int stage = 0; stage < (resident ? kStages : 1); ++stage) copy(stage);
  }
  __device__ __forceinline__ const char* wait(int t) {
    if (!resident || (t == 0 && round == 0)) {
      wait_for_copies();
      __syncthreads();  // the slice is there, and all have done with the one before the last
      if (!resident && left > 0) copy((t + 1) % kStages);
    }
    return slices + t % kStages * kSliceBytes;
  }
  __device__ __forceinline__ void release(int, int) const {}
};

}  // namespace ddu::cuda
