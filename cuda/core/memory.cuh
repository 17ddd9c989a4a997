#pragma once

// Hints for L2: what will be read soon, and what will not be read again.

#include <cstdint>

namespace ddu::cuda {

/// Asks L2 for a line of memory, or for what is left of it.
__device__ __forceinline__ void prefetch_line([[maybe_unused]] const void* memory) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(memory));
#endif
}

/// Asks L2 for memory that will be read soon. Reading it in such runs, ahead of need, disturbs the writes least.
__device__ __forceinline__ void prefetch(const void* memory, std::int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const std::uint64_t first = reinterpret_cast<std::uint64_t>(memory) & ~std::uint64_t{15};
  const unsigned size = unsigned(reinterpret_cast<std::uint64_t>(memory) + std::uint64_t(bytes) - first) & ~15u;
  if (bytes > 0 && size > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(size) : "memory");
#endif
}

/// The same of a short array that many blocks read first of all: all threads of a small kernel ask for its lines.
__device__ __forceinline__ void prefetch_lines(const void* memory, std::int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x * 128;
  for (std::int64_t at = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 128; at < bytes; at += step)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(memory) + at));
#endif
}

/// Stores a value that L2 gives up first: columns are many times the input, and must not push it out.
template <class T>
__device__ __forceinline__ void store_non_temporal(void* address, T value) {
#if __CUDA_ARCH__ >= 800
#if __CUDA_ARCH__ == 900
  // What createpolicy.fractional.L2::evict_first gives for the fraction 1.0, here and on sm_100 (CUTLASS has the same for
  // both); as a constant it costs no register.
  constexpr std::uint64_t policy = 0x12F0000000000000;
#else
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.L2::cache_hint.f32 [%0], %1, %2;" ::"l"(address), "f"(value), "l"(policy) : "memory");
  } else {
    const unsigned short bits = reinterpret_cast<const unsigned short&>(value);
    asm volatile("st.global.L2::cache_hint.u16 [%0], %1, %2;" ::"l"(address), "h"(bits), "l"(policy) : "memory");
  }
#else
  *static_cast<T*>(address) = value;
#endif
}

}  // namespace ddu::cuda
