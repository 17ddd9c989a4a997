#pragma once

// Channels in packs: an element of a window holds the same pixel of several channels, so that one wide load serves them all.

#include <type_traits>

#include "numeric.cuh"

namespace ddu::cuda {

template <class T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T value[kPack];
};

/// An unsigned integer, or a vector of them, of so many bytes.
template <std::size_t kBytes>
using Word = std::conditional_t<kBytes == 2, unsigned short,
                                std::conditional_t<kBytes == 4, unsigned, std::conditional_t<kBytes == 8, uint2, uint4>>>;

/// A pack and its bits: moves as a whole where a compiler would take it value by value.
template <class P>
union Whole {
  Word<sizeof(P)> bits;
  P pack;

  __device__ __forceinline__ Whole(const P& p) : pack(p) {}
  __device__ __forceinline__ explicit Whole(Word<sizeof(P)> b) : bits(b) {}
  __device__ __forceinline__ static Whole load(const void* global) {
    return Whole(__ldg(static_cast<const Word<sizeof(P)>*>(global)));
  }
  __device__ __forceinline__ static P read(const P& shared) {
    return Whole(reinterpret_cast<const Word<sizeof(P)>&>(shared)).pack;
  }
  __device__ __forceinline__ static void write(P& shared, const P& pack) {
    reinterpret_cast<Word<sizeof(P)>&>(shared) = Whole(pack).bits;
  }
};

/// A pack in float32, with the arithmetic that interpolation needs.
template <int kPack>
struct Floats {
  float value[kPack];

  template <class T>
  __device__ __forceinline__ static Floats of(const Pack<T, kPack>& shared) {
    const Pack<T, kPack> pack = Whole<Pack<T, kPack>>::read(shared);
    Floats f;
    if constexpr (std::is_same_v<T, __nv_bfloat16> && kPack % 2 == 0) {
      // A bfloat16 is the upper half of a float: two of them come out of a word by one instruction each.
#pragma unroll
      for (int j = 0; j < kPack; j += 2) {
        const unsigned two = reinterpret_cast<const unsigned&>(pack.value[j]);
        f.value[j] = __uint_as_float(two << 16);
        f.value[j + 1] = __uint_as_float(two & 0xffff0000u);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) f.value[j] = widen(pack.value[j]);
    }
    return f;
  }
  __device__ __forceinline__ friend Floats operator*(float s, Floats v) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) v.value[j] *= s;
    return v;
  }
  __device__ __forceinline__ friend Floats operator+(Floats a, const Floats& b) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) a.value[j] += b.value[j];
    return a;
  }
  __device__ __forceinline__ friend Floats operator-(Floats a, const Floats& b) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) a.value[j] -= b.value[j];
    return a;
  }
};

/// Asks L2 for memory that will be read soon. Reading it in such runs, ahead of need, disturbs the writes least.
__device__ __forceinline__ void prefetch(const void* memory, std::int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const std::uint64_t first = reinterpret_cast<std::uint64_t>(memory) & ~std::uint64_t{15};
  const unsigned size = unsigned(reinterpret_cast<std::uint64_t>(memory) + std::uint64_t(bytes) - first) & ~15u;
  if (bytes > 0 && size > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(size) : "memory");
#endif
}

/// Writes past the caches' memory of what will be read again: columns are many times the input, and must not push it out.
template <class T>
__device__ __forceinline__ void stream_out(void* address, T value) {
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
