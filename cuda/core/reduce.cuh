#pragma once

// Reductions over a warp and over a block.

namespace ddu::cuda {

__device__ __forceinline__ int warp_min(int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(~0u, value);
#else
  for (int step = 16; step > 0; step /= 2) value = min(value, __shfl_xor_sync(~0u, value, step));
  return value;
#endif
}
__device__ __forceinline__ int warp_max(int value) { return ~warp_min(~value); }

/// The maximum over the block. `slots` is one int a warp in shared memory; it is free again after the next barrier.
template <int kThreads>
__device__ __forceinline__ int block_max(int value, int* slots) {
  const int largest = warp_max(value);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = largest;
  __syncthreads();
  return warp_max(slots[threadIdx.x % (kThreads / 32)]);
}

}  // namespace ddu::cuda
