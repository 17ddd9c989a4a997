#pragma once

// Copies from global to shared memory that need no registers on their way: a thread asks for them ahead of need, in groups, and
// waits for the oldest. Devices before sm_80 copy at once.

namespace ddu::cuda {

/// Copies 16 bytes, past L1. Only the thread that asked sees them, until a barrier.
__device__ __forceinline__ void copy_async(uint4* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global" CL_L2HINT " [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))), "l"(global)
               : "memory");
#else
  *shared = __ldcs(static_cast<const uint4*>(global));
#endif
}
/// Closes this thread's group of copies, which may be empty.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits for all of this thread's groups but the last kLeft.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace ddu::cuda
