#pragma once

// Products of small matrices by a warp's tensor cores: mma.sync, sm_80 and up.
//
//   D [16, 8] += A [16, depth] x B [depth, 8]      depth is 16 for half types, 8 for float32, which is rounded to TF32
//
// Either way a row of A, and a column of B, is 8 words of 32 bits along the depth: a word is 2 neighbours of a half type (the
// first in its lower half), or one float. Each of the 32 lanes holds a part, its fragment. With g = lane / 4 and q = lane % 4:
//
//   A         word  q        q+4          B   word  column g            D   columns 2q, 2q+1
//   row g         a[0]      a[2]              q       b[0]              row g     d[0]  d[1]
//   row g+8       a[1]      a[3]              q+4     b[1]              row g+8   d[2]  d[3]
//
// Four lanes, a quad, so hold a row of A and of D. The depth may be walked in any order, if A and B take the same one: what a
// lane has of A need not be what lies at word q, as long as B's word q is the weight of that.

#include "numeric.cuh"

namespace ddu::cuda {

/// Whether the code that is compiled has these products. Kernels with them are empty elsewhere, and the host launches none.
#if defined(DDU_CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
constexpr bool kHasMma = true;
#else
constexpr bool kHasMma = false;
#endif

constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaWords = 8;
/// Elements of T along the depth of a product.
template <class T>
constexpr int kMmaDepth = kMmaWords * 4 / int(sizeof(T));

/// A factor of a TF32 product: 10 bits of mantissa, rounded to nearest, ties away from zero. Half types need nothing of the
/// kind: their two values are packed.
__device__ __forceinline__ unsigned to_tf32(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
#elif defined(DDU_CUDA_EMULATION)
  return emulation::to_tf32(value);
#else
  return __float_as_uint(value);
#endif
}

/// The same of what arithmetic gave, whose NaN is a positive one. Products of warpgroups do not look at the bits behind the ten
/// of the mantissa, so the rounding is one addition; only a NaN would overflow.
__device__ __forceinline__ unsigned result_to_tf32(float value) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int bits = __float_as_int(value);
  return unsigned(__viaddmax_s32(bits, 0x1000, bits));
#else
  return to_tf32(value);
#endif
}

/// d += a x b. All lanes of a warp call it together. T: __half, __nv_bfloat16 or float (as TF32, see to_tf32).
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(sizeof(T) == 2 || std::is_same_v<T, float>, "half types, and float32 as TF32");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define DDU_MMA(shape, type)                                           \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "   \
               "{%0, %1, %2, %3};"                                     \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, __half>) {
    DDU_MMA("m16n8k16", "f16");
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    DDU_MMA("m16n8k16", "bf16");
  } else {
    DDU_MMA("m16n8k8", "tf32");
  }
#undef DDU_MMA
#elif defined(DDU_CUDA_EMULATION)
  emulation::mma<T>(d, a, b);
#endif
}

/// B of two products, one after the other along the depth: words {x, y} and {z, w}. Its 8 columns lie one after the other in
/// shared memory, from a multiple of 1024 bytes on, each with the 128 bytes of four depths, of which `half` says which two. In
/// each column 16-byte piece p lies at place p ^ column, so that neighbours in a depth lie in different banks.
__device__ __forceinline__ uint4 load_columns(const char* columns, int half) {
  const int lane = int(threadIdx.x) % 32;
  uint4 b;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const int column = lane % 8;
  const auto at = unsigned(__cvta_generic_to_shared(columns + column * 128 + ((half * 4 + lane / 8) ^ column) * 16));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w)
               : "r"(at)
               : "memory");
#else
  const auto word = [&](int piece) {
    const int column = lane / 4;
    return reinterpret_cast<const unsigned*>(columns + column * 128 + ((half * 4 + piece) ^ column) * 16)[lane % 4];
  };
  b = {word(0), word(1), word(2), word(3)};
#endif
  return b;
}

/// Turns what 16-bit elements in shared memory are to a fragment: of four matrices of 8 x 8, lane 8 m + i names row i of matrix
/// m, and gets in r[m] elements 2q and 2q + 1 of column g. A factor whose depth runs down the rows is so read as words along
/// it.
__device__ __forceinline__ void load_turned(unsigned (&r)[4], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(unsigned(__cvta_generic_to_shared(row)))
               : "memory");
#elif defined(DDU_CUDA_EMULATION)
  emulation::load_turned(r, row);
#endif
}

}  // namespace ddu::cuda
