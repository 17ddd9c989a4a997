#pragma once

// Bulk copies and reductions: one thread has the device move or add up a run of shared memory, beside the program. They come in
// groups, which a thread closes and waits for.

#include <cstring>
#include <type_traits>

namespace ddu::cuda {

/// Whether a device has them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kBulkCopies = false;
#else
constexpr bool kBulkCopies = true;
#endif

/// Adds `bytes` of words in shared memory to words in global memory, both at multiples of 16 bytes, beside the program.
/// From sm_90 on.
template <class Word>
__device__ __forceinline__ void add_bulk(Word* to, const Word* shared, int bytes) {
#if __CUDA_ARCH__ >= 900
  const auto from = unsigned(__cvta_generic_to_shared(shared));
  if constexpr (std::is_same_v<Word, float>) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  } else if constexpr (std::is_same_v<Word, double>) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f64 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u64 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  }
#elif !defined(__CUDA_ARCH__)
  for (int i = 0; i < bytes / int(sizeof(Word)); ++i) to[i] += shared[i];
#endif
}
/// Writes `bytes` of shared memory to global memory, both at multiples of 16 bytes, beside the program. From sm_90 on.
__device__ __forceinline__ void store_bulk(void* to, const void* shared, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(unsigned(__cvta_generic_to_shared(shared))), "r"(bytes)
               : "memory");
#elif !defined(__CUDA_ARCH__)
  std::memcpy(to, shared, bytes);
#endif
}
/// Lets bulk copies read what this thread has written to shared memory.
__device__ __forceinline__ void publish_to_bulk() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Closes the group of this thread's copies.
__device__ __forceinline__ void commit_bulk() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
/// Waits until this thread's copies have read shared memory.
__device__ __forceinline__ void wait_for_bulk_reads() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}
/// Waits until they have written, too.
__device__ __forceinline__ void wait_for_bulk_writes() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

}  // namespace ddu::cuda
