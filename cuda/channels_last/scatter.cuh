#pragma once

// The transpose of gather: gradients of channels onto the four corners of a tap, in sums whose channels lie side by side.

#include "gather.cuh"

namespace ddu::cuda {

/// Adds the first `count` of kN values to memory; in vectors, and all of them, where they lie aligned.
template <bool kAligned, int kN>
__device__ __forceinline__ void add_channels(float* to, const float (&value)[kN], int count) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kAligned && kN == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(value[0]), "f"(value[1]), "f"(value[2]),
                 "f"(value[3])
#ifdef CL_CLOBBER
                 : "memory"
#endif
                 );
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i < count) atomicAdd(to + i, value[i]);
  }
}
template <bool kAligned, int kN>
__device__ __forceinline__ void add_channels(double* to, const double (&value)[kN], int count) {
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i < count) atomicAdd(to + i, value[i]);
  }
}

/// Adds arrays in shared memory to arrays in global memory, both at multiples of 16 bytes, as a copy that runs beside the
/// program: of what 16 lanes have, it makes one request to L2. From sm_90 on.
__device__ __forceinline__ void add_bulk(float* to, const float* shared, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(unsigned(__cvta_generic_to_shared(shared))), "r"(count * 4)
               : "memory");
#elif !defined(__CUDA_ARCH__)
  for (int i = 0; i < count; ++i) to[i] += shared[i];
#endif
}
__device__ __forceinline__ void add_bulk(double* to, const double* shared, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f64 [%0], [%1], %2;" ::"l"(to),
               "r"(unsigned(__cvta_generic_to_shared(shared))), "r"(count * 8)
               : "memory");
#elif !defined(__CUDA_ARCH__)
  for (int i = 0; i < count; ++i) to[i] += shared[i];
#endif
}
/// Lets such additions read what this thread has written to shared memory.
__device__ __forceinline__ void publish_to_bulk() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Closes the group of this thread's additions.
__device__ __forceinline__ void commit_bulk() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
/// Waits until this thread's additions have read shared memory.
__device__ __forceinline__ void wait_for_bulk_reads() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}

/// A warp's rows on their way to L2: for kPositions positions of each quad the four corners' channels.
template <class Acc, int kPositions>
struct ScatterStage {
  static constexpr int kN = kVec<Acc>;
  static constexpr int kLanes = 16;  // that share a position
  static constexpr int kRow = kLanes * kN;  // elements
  static constexpr int kBytes = 32 / kLanes * kPositions * 4 * kRow * int(sizeof(Acc));

  Acc* rows;  // of this lane's quad

  __device__ __forceinline__ ScatterStage(char* shared, int quad)
      : rows(reinterpret_cast<Acc*>(shared + int(threadIdx.x) / 32 * kBytes) + quad * kPositions * 4 * kRow) {}

  /// Writes this lane's channels of the position's corners.
  __device__ __forceinline__ void write(int position, int vector, const Acc (&weight)[4], const Acc (&grad)[kN]) const {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      Vec<Acc, kN> v;
#pragma unroll
      for (int c = 0; c < kN; ++c) v.value[c] = weight[corner] * grad[c];
      VecBits<Vec<Acc, kN>>::write(*reinterpret_cast<Vec<Acc, kN>*>(rows + (position * 4 + corner) * kRow + vector * kN), v);
    }
  }
};

}  // namespace ddu::cuda
