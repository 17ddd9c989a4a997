#pragma once

// Programmatic dependent launch: a kernel starts while the one before it in the stream still runs, does what does not depend on
// it, and then waits. Devices before sm_90 have no such launches: there both functions do nothing, and the stream keeps the
// order.

namespace ddu::cuda {

/// Waits until the kernel before has ended and what it wrote can be read. Every kernel that is launched with `overlap` calls
/// it.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/// Lets the next kernel of the stream start, as soon as a thread of every block has called this or the block has ended.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/// The next kernel of the stream may read what this thread has written before it calls wait_for_previous(), past L1, if this
/// stands ahead of let_next_start().
__device__ __forceinline__ void publish() {
#if __CUDA_ARCH__ >= 900
  __threadfence();
#endif
}

}  // namespace ddu::cuda
