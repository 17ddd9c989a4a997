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

/// A *round* is nine steps, the taps of a block of channels; stages divide it, so that each step has its stage.
constexpr int kRound = 9;

/// The tap of a step: that in the middle comes first. Where it is read no rate says, so its pixels, and with them many of those
/// that others are about to read, are on their way while the rates still are.
__host__ __device__ constexpr int tap_of_step(int step) { return step == 0 ? 4 : step <= 4 ? step - 1 : step; }

/// `kAll`: each slice of a tile has a stage, and is copied once.
template <int kSliceBytes, int kStages, bool kAll>
struct WeightRing {
  static constexpr int kRounds = kRound / kStages;  // times that a stage is used in a round
  static_assert(kRound % kStages == 0 && kRounds % 2 == 1, "parities");
  static constexpr int kBytes = kStages * (kSliceBytes + 2 * int(sizeof(CopyBarrier)));

  char* slices;
  const char* from;  // the first slice of a tile
  int rounds;        // of a tile
  int left;          // slices that are still to be asked for
  int round = 0;     // of the block's

  __device__ __forceinline__ CopyBarrier& full(int stage) const {
    return reinterpret_cast<CopyBarrier*>(slices + kStages * kSliceBytes)[stage];
  }
  __device__ __forceinline__ CopyBarrier& empty(int stage) const { return full(kStages + stage); }
  __device__ __forceinline__ void copy(int of_tile, int step) const {
    const int stage = step % kStages;
    full(stage).copy(slices + stage * kSliceBytes, from + (std::int64_t{of_tile} * kRound + tap_of_step(step)) * kSliceBytes,
                     kSliceBytes);
  }

  __device__ __forceinline__ WeightRing(char* shared, const char* weights, int rounds_of_tile, int tiles)
      : slices(shared), from(weights), rounds(rounds_of_tile), left(rounds_of_tile * tiles * kRound - kStages) {
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
#pragma unroll
    for (int i = 0; i < kStages; ++i) copy(0, i);
  }
  /// The slice of a step of this round, once it is there.
  __device__ __forceinline__ const char* wait(int step) const {
    full(step % kStages).wait(kAll ? 0 : (round + step / kStages) & 1);
    return slices + step % kStages * kSliceBytes;
  }
  /// The warpgroup has done with a step of the round `of_block` of the block, `of_tile` of its tile: asks for a slice in place
  /// of the one before.
  __device__ __forceinline__ void release(int step, int of_tile, int of_block) {
    if (kAll) return;
    if (threadIdx.x % kWarpgroupThreads == 0) empty(step % kStages).arrive();
    if ((step == 0 && of_block == 0) || left <= 0) return;
    if (threadIdx.x < 32) {
      empty((step + kStages - 1) % kStages).wait((step > 0 ? of_block + (step - 1) / kStages : of_block - 1 + kRounds - 1) & 1);
      const int next = step - 1 + kStages;  // of the round, or one of the next
      if (next >= kRound) ++of_tile;
      if (threadIdx.x == 0) copy(of_tile < rounds ? of_tile : 0, next % kRound);
      __syncwarp();
    }
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
    const char* source = from + std::int64_t{ahead / kRound * kRound + tap_of_step(ahead % kRound)} * kSliceBytes;
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
  __device__ __forceinline__ void release(int, int, int) const {}
};

}  // namespace ddu::cuda
