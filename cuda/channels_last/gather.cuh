#pragma once

// Four corners of 16 bytes of channels each, the value between them, and squares of values turned from channels to positions.

#include "../core/vec.cuh"
#include "tap.cuh"

namespace ddu::cuda {

/// 16 bytes of T, as words.
template <class T>
union Bits16 {
  uint4 whole;
  unsigned word[4];
  double wide[2];

  __device__ __forceinline__ Bits16() : whole{0, 0, 0, 0} {}
  __device__ __forceinline__ T at(int i) const {
    if constexpr (sizeof(T) == 8) {
      return wide[i];
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word[i]);
    } else {
      const auto bits = static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16));
      return reinterpret_cast<const T&>(bits);
    }
  }
  __device__ __forceinline__ accumulator_t<T> get(int i) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // the upper half of a float
      return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
    } else {
      return widen(at(i));
    }
  }
  __device__ __forceinline__ void set(int i, T value) {
    if constexpr (sizeof(T) == 8) {
      wide[i] = value;
    } else if constexpr (sizeof(T) == 4) {
      word[i] = __float_as_uint(value);
    } else {
      const unsigned bits = reinterpret_cast<const unsigned short&>(value);
      word[i / 2] = i % 2 ? word[i / 2] & 0xffffu | bits << 16 : word[i / 2] & 0xffff0000u | bits;
    }
  }
  /// Not zero if an element is not finite: adding one to its exponent then reaches the bit of the sign.
  __device__ __forceinline__ unsigned strange() const {
    if constexpr (sizeof(T) == 8) {
      return wide[0] * 0 + wide[1] * 0 != 0;
    } else {
      constexpr unsigned kOne = sizeof(T) == 4 ? 0x00800000 : std::is_same_v<T, __half> ? 0x04000400 : 0x00800080;
      constexpr unsigned kSign = sizeof(T) == 4 ? 0x80000000 : 0x80008000, kExponent = kSign - kOne;
      unsigned found = 0;
#pragma unroll
      for (int w = 0; w < 4; ++w) found |= ((word[w] & kExponent) + kOne) & kSign;
      return found;
    }
  }
  /// Moves element kCount to the place of the first, and those behind it likewise: a loop that is not unrolled cannot index
  /// registers.
  template <int kCount>
  __device__ __forceinline__ void skip() {
    constexpr int kWords = kCount * int(sizeof(T)) / 4;
#pragma unroll
    for (int w = 0; w + kWords < 4; ++w) word[w] = word[w + kWords];
  }
};

/// Moves values `kBy` places down, and the first ones to the end.
template <int kBy, class V, int kN>
__device__ __forceinline__ void rotate(V (&values)[kN]) {
  V first[kBy];
#pragma unroll
  for (int i = 0; i < kBy; ++i) first[i] = values[i];
#pragma unroll
  for (int i = 0; i < kN; ++i) values[i] = i + kBy < kN ? values[i + kBy] : first[i + kBy - kN];
}

/// Loads 16 bytes that another block of this kernel may have written, before a barrier of both: not by __ldg. As free to move
/// as that, since it is not volatile; its address must depend on something after the barrier.
__device__ __forceinline__ uint4 load_shared_work(const void* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
#else
  return *static_cast<const uint4*>(from);
#endif
}

/// Loads 16 bytes, or leaves them as they are; in one instruction, for a load in a branch is waited for where paths meet.
__device__ __forceinline__ void load_if(bool wanted, uint4& bits, const void* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
               : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w)
               : "l"(from), "r"(int(wanted)));
#else
  if (wanted) bits = *static_cast<const uint4*>(from);
#endif
}

/// Loads `count` elements of at most kN; in one piece, and all of them, where they lie aligned.
template <bool kAligned, int kN, class T>
__device__ __forceinline__ Bits16<T> load_channels(const T* from, int count) {
  Bits16<T> bits;
  if constexpr (kAligned && kN == kVec<T>) {
    bits.whole = load_shared_work(from);
  } else if constexpr (kAligned) {
    static_assert(2 * kN == kVec<T>, "half of 16 bytes");
    const uint2 half = __ldg(reinterpret_cast<const uint2*>(from));
    bits.word[0] = half.x;
    bits.word[1] = half.y;
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (i < count) bits.set(i, __ldg(from + i));
    }
  }
  return bits;
}

/// The corners of one tap, kN channels each, zero where there is no pixel.
template <class T, int kN = kVec<T>>
struct Corners {
  Bits16<T> a, b, c, d;

  /// `inside` has a bit for each corner. Pixels are `pixel` elements apart, rows `row`.
  template <bool kAligned>
  __device__ __forceinline__ static Corners load(const T* at, std::int64_t pixel, std::int64_t row, unsigned inside,
                                                 int count) {
    Corners corners;
    if (inside & 1) corners.a = load_channels<kAligned, kN>(at, count);
    if (inside & 2) corners.b = load_channels<kAligned, kN>(at + pixel, count);
    if (inside & 4) corners.c = load_channels<kAligned, kN>(at + row, count);
    if (inside & 8) corners.d = load_channels<kAligned, kN>(at + row + pixel, count);
    return corners;
  }
  __device__ __forceinline__ static Corners load(bool aligned, const T* at, std::int64_t pixel, std::int64_t row,
                                                 unsigned inside, int count) {
    return aligned ? load<true>(at, pixel, row, inside, count) : load<false>(at, pixel, row, inside, count);
  }
};

/// A lane's values of one tap: kVec positions of kVec channels.
template <class T>
struct Square {
  static constexpr int kN = kVec<T>;
  using Acc = accumulator_t<T>;
  Bits16<T> channel[kN];  // positions side by side
  Acc before[sizeof(T) == 2 ? kN : 1];

  /// The values of position i. Half types come in twos: both halves of a word are rounded at once.
  __device__ __forceinline__ void set(int i, const Acc (&value)[kN]) {
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      if constexpr (sizeof(T) != 2) {
        channel[c].set(i, value[c]);
      } else if (i % 2 == 0) {
        before[c] = value[c];
      } else if constexpr (std::is_same_v<T, __half>) {
        const __half2 two = __floats2half2_rn(before[c], value[c]);
        channel[c].word[i / 2] = reinterpret_cast<const unsigned&>(two);
      } else {
        const __nv_bfloat162 two = __floats2bfloat162_rn(before[c], value[c]);
        channel[c].word[i / 2] = reinterpret_cast<const unsigned&>(two);
      }
    }
  }
  /// Moves positions as Bits16::skip does.
  template <int kCount>
  __device__ __forceinline__ void skip() {
#pragma unroll
    for (int c = 0; c < kN; ++c) channel[c].template skip<kCount>();
  }
};

/// Stores 16 bytes of positions past the caches' memory of what will be read again; or, unaligned, the first `count`.
template <bool kAligned, class T>
__device__ __forceinline__ void store_positions(T* to, const Bits16<T>& bits, int count) {
  if constexpr (kAligned) {
#if __CUDA_ARCH__ >= 800
#if __CUDA_ARCH__ == 900
    constexpr std::uint64_t policy = 0x12F0000000000000;  // evict first, as in store_non_temporal
#else
    std::uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to), "r"(bits.word[0]), "r"(bits.word[1]),
                 "r"(bits.word[2]), "r"(bits.word[3]), "l"(policy)
                 : "memory");
#else
    *reinterpret_cast<uint4*>(to) = bits.whole;
#endif
  } else {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      if (i < count) to[i] = bits.at(i);
    }
  }
}

/// Loads 16 bytes of positions that nobody reads again.
template <bool kAligned, class T>
__device__ __forceinline__ Bits16<T> load_positions(const T* from, int count) {
  Bits16<T> bits;
  if constexpr (kAligned) {
    bits.whole = __ldcs(reinterpret_cast<const uint4*>(from));
  } else {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      if (i < count) bits.set(i, __ldg(from + i));
    }
  }
  return bits;
}

}  // namespace ddu::cuda
