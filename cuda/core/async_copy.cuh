#pragma once

// Copies from global to shared memory that need no registers on their way: a thread asks for them ahead of need. Devices before
// sm_80 copy at once.

namespace ddu::cuda {

/// Copies 16 bytes, past L1; L2 gets the whole line, which a neighbour is about to ask for. Only the thread that asked sees
/// them, until a barrier.
__device__ __forceinline__ void copy_async(uint4* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
#else
  *shared = __ldcs(static_cast<const uint4*>(global));
#endif
}
/// The same, or 16 zeros, of which nothing is read.
__device__ __forceinline__ void copy_or_clear(uint4* shared, const void* global, bool copied) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(copied ? 16 : 0)
               : "memory");
#else
  *shared = copied ? __ldcs(static_cast<const uint4*>(global)) : uint4{0, 0, 0, 0};
#endif
}
/// Waits for all copies that this thread asked for.
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace ddu::cuda
