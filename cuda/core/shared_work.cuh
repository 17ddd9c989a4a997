#pragma once

// Phases of one kernel, each of which needs all of the one before: as launches of their own they cost those calls that have
// nothing to do in them, which are most.

namespace ddu::cuda {

/// Pieces of work that all blocks of a kernel take in turn, phase by phase. A block that waits holds no piece, and those that
/// hold some wait for nobody: it does not matter whether all blocks run at once.
struct SharedWork {
  unsigned* counters;  // two of each phase, zero before the kernel: pieces that are taken, and that are done

  /// Memory for so many phases.
  __host__ __device__ static constexpr int bytes(int phases) { return 2 * phases * int(sizeof(unsigned)); }

  /// The next piece.
  __device__ unsigned take(int phase) const {
    static __shared__ unsigned taken;
    __syncthreads();
    if (threadIdx.x == 0) taken = atomicAdd(counters + 2 * phase, 1u);
    __syncthreads();
    return taken;
  }
  /// Once this block has done one.
  __device__ void finish(int phase) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(counters + 2 * phase + 1, 1u);
  }
  /// Waits until all pieces are done, and lets the block read what they wrote.
  __device__ void wait(int phase, unsigned pieces) const {
    if (threadIdx.x == 0) {
      while (static_cast<volatile unsigned*>(counters)[2 * phase + 1] < pieces) {
      }
      __threadfence();
    }
    __syncthreads();
  }
};

}  // namespace ddu::cuda
