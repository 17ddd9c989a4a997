#pragma once

// Products of matrices by a warpgroup, four warps together: wgmma, of sm_90a alone.
//
//   D [64, N] += A [64, depth] x B [depth, N]     depth as in mma.cuh: 32 bytes of each row
//
// Warp w of the four has rows 16w to 16w + 15 of A and D, as fragments of mma.cuh: for D one after the other for each 8
// columns. B lies in shared memory, column by column: the 128 bytes of four depths, 8 columns make 1024 bytes. In each column
// 16-byte piece p lies at place p ^ (column % 8), so that neighbours in a depth lie in different banks.

#include "mma.cuh"

namespace ddu::cuda {

constexpr int kWarpgroupThreads = 128;  // threads
constexpr int kDepthsOfColumn = 4;      // of the 128 bytes

/// Whether the code that is compiled has them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWarpgroupMma = true;
#else
constexpr bool kHasWarpgroupMma = false;
#endif

/// What names B to the products: an address in shared memory, a multiple of 1024; columns in eights of 1024 bytes; the order of
/// pieces.
__device__ __forceinline__ std::uint64_t matrix_in_shared(const char* columns) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const auto address = unsigned(__cvta_generic_to_shared(columns));
  return std::uint64_t{(address & 0x3ffff) >> 4} | std::uint64_t{1} << 16 | std::uint64_t{64} << 32 | std::uint64_t{1} << 62;
#else
  return 0;
#endif
}
/// The same matrix so many times 16 bytes further. Sums of 32 bits: what changes lies there.
__device__ __forceinline__ std::uint64_t further(std::uint64_t matrix, unsigned vectors) {
  return (matrix & ~std::uint64_t{0xffffffff}) | (unsigned(matrix) + vectors);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Operands in eights; sums come first, so that they are numbers 0 to N / 2 - 1.
#define DDU_SUMS8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define DDU_SUMS32(i) DDU_SUMS8(i), DDU_SUMS8(i + 8), DDU_SUMS8(i + 16), DDU_SUMS8(i + 24)
#define DDU_NAMES10(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define DDU_NAMES16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DDU_NAMES32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " DDU_NAMES10(1) ", " DDU_NAMES10(2) ", %30, %31"
#define DDU_NAMES64 \
  DDU_NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, " DDU_NAMES10(4) ", " DDU_NAMES10(5) ", %60, %61, %62, %63"
#define DDU_NAMES128                                                                                                      \
  DDU_NAMES64 ", %64, %65, %66, %67, %68, %69, " DDU_NAMES10(7) ", " DDU_NAMES10(8) ", " DDU_NAMES10(9) ", " DDU_NAMES10( \
      10) ", " DDU_NAMES10(11) ", %120, %121, %122, %123, %124, %125, %126, %127"
#define DDU_WGMMA(shape, types, transposed, names, sums, a0, a1, a2, a3, b, add)                                           \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #add ", 0; wgmma.mma_async.sync.aligned." shape ".f32." types " {" names \
               "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1" transposed "; }"                            \
               : sums                                                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(columns), "r"(int(adds)))
#define DDU_WGMMA_TYPES(n, names, sums, ...)                                           \
  if constexpr (std::is_same_v<T, __half>) {                                           \
    DDU_WGMMA("m64n" #n "k16", "f16.f16", ", 0", names, DDU_ALL(sums), __VA_ARGS__);   \
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {                             \
    DDU_WGMMA("m64n" #n "k16", "bf16.bf16", ", 0", names, DDU_ALL(sums), __VA_ARGS__); \
  } else {                                                                             \
    DDU_WGMMA("m64n" #n "k8", "tf32.tf32", "", names, DDU_ALL(sums), __VA_ARGS__);     \
  }
#define DDU_ALL(...) DDU_STRIP __VA_ARGS__
#define DDU_STRIP(...) __VA_ARGS__
#endif

/// Starts d = a x b, or d += a x b: of one depth. Neither a nor d may be touched until it is done. `columns` is what
/// matrix_in_shared() says of B, plus 2 for each further depth.
template <class T, int kN>
__device__ __forceinline__ void start_product(float (&d)[kN / 2], const unsigned (&a)[4], std::uint64_t columns, bool adds) {
  static_assert(kN == 32 || kN == 64 || kN == 128 || kN == 256, "columns of B");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kN == 32) {
    DDU_WGMMA_TYPES(32, DDU_NAMES16, (DDU_SUMS8(0), DDU_SUMS8(8)), 16, 17, 18, 19, 20, 21)
  } else if constexpr (kN == 64) {
    DDU_WGMMA_TYPES(64, DDU_NAMES32, (DDU_SUMS32(0)), 32, 33, 34, 35, 36, 37)
  } else if constexpr (kN == 128) {
    DDU_WGMMA_TYPES(128, DDU_NAMES64, (DDU_SUMS32(0), DDU_SUMS32(32)), 64, 65, 66, 67, 68, 69)
  } else {
    DDU_WGMMA_TYPES(256, DDU_NAMES128, (DDU_SUMS32(0), DDU_SUMS32(32), DDU_SUMS32(64), DDU_SUMS32(96)), 128, 129, 130, 131, 132,
                    133)
  }
#endif
}
/// Starts d += a x b of half types, 64 rows by 64 columns, of one depth. Both factors lie in shared memory with the depth
/// running down the rows: 16 of 128 bytes, 16-byte piece n of row k at place n ^ (k % 8).
template <class T>
__device__ __forceinline__ void start_turned_product(float (&d)[32], std::uint64_t a, std::uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DDU_TURNED(type)                                                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" DDU_NAMES32 "}, %32, %33, 1, 1, 1, 1, 1;" \
               : DDU_SUMS32(0)                                                                                            \
               : "l"(a), "l"(b))
  if constexpr (std::is_same_v<T, __half>) {
    DDU_TURNED("f16");
  } else {
    DDU_TURNED("bf16");
  }
#undef DDU_TURNED
#endif
}
/// Starts d = a x b, or d += a x b, of half types, 64 rows by 64 columns, of one depth. Both factors lie in shared memory, as
/// matrix_in_shared() has it: rows of A as columns of B.
template <class T>
__device__ __forceinline__ void start_product_of_shared(float (&d)[32], std::uint64_t a, std::uint64_t b, bool adds) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DDU_OF_SHARED(type)                                                                                       \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" DDU_NAMES32 "}, %32, %33, p, 1, 1, 0, 0; }"                                                   \
               : DDU_SUMS32(0)                                                                                    \
               : "l"(a), "l"(b), "r"(int(adds)))
  if constexpr (std::is_same_v<T, __half>) {
    DDU_OF_SHARED("f16");
  } else {
    DDU_OF_SHARED("bf16");
  }
#undef DDU_OF_SHARED
#endif
}
/// Before the first of several products: what threads wrote to a and d is seen by them.
__device__ __forceinline__ void products_begin() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// After a thread has written factors to shared memory, and before the barrier behind which products read them.
__device__ __forceinline__ void show_to_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// After the last of several, which are then waited for together.
__device__ __forceinline__ void products_end() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Waits until no more than `kLeft` of those are on their way.
template <int kLeft>
__device__ __forceinline__ void wait_for_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}

/// Waits until all are done, and keeps what reads their sums behind that.
template <int kN>
__device__ __forceinline__ void finish_products(float (&d)[kN]) {
  wait_for_products<0>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma unroll
  for (float& sum : d) asm volatile("" : "+f"(sum));
#endif
}

}  // namespace ddu::cuda
