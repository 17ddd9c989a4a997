#pragma once

// Vectors of channels: an element of a window in shared memory holds the same pixel of several channels, so that one wide load
// serves them all. They are stored as Vec<T, N> and computed with as FloatVec<N>.

#include <type_traits>

#include "numeric.cuh"

namespace ddu::cuda {

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T value[N];
};

/// An unsigned integer, or a vector of them, of so many bytes.
template <std::size_t kBytes>
using BitsOf = std::conditional_t<kBytes == 2, unsigned short,
                                  std::conditional_t<kBytes == 4, unsigned, std::conditional_t<kBytes == 8, uint2, uint4>>>;

/// A vector and its bits: it moves as a whole where a compiler would take it value by value.
template <class V>
union VecBits {
  BitsOf<sizeof(V)> bits;
  V vec;

  __device__ __forceinline__ VecBits(const V& v) : vec(v) {}
  __device__ __forceinline__ explicit VecBits(BitsOf<sizeof(V)> b) : bits(b) {}
  __device__ __forceinline__ static VecBits load(const void* global) {
    return VecBits(__ldg(static_cast<const BitsOf<sizeof(V)>*>(global)));
  }
  __device__ __forceinline__ static V read(const V& shared) {
    return VecBits(reinterpret_cast<const BitsOf<sizeof(V)>&>(shared)).vec;
  }
  __device__ __forceinline__ static void write(V& shared, const V& vec) {
    reinterpret_cast<BitsOf<sizeof(V)>&>(shared) = VecBits(vec).bits;
  }
};

/// A vector in float32, with the arithmetic that interpolation needs.
template <int N>
struct FloatVec {
  float value[N];

  template <class T>
  __device__ __forceinline__ static FloatVec of(const Vec<T, N>& shared) {
    const Vec<T, N> vec = VecBits<Vec<T, N>>::read(shared);
    FloatVec f;
    if constexpr (std::is_same_v<T, __nv_bfloat16> && N % 2 == 0) {
      // A bfloat16 is the upper half of a float: two of them come out of a word by one instruction each.
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        const unsigned two = reinterpret_cast<const unsigned&>(vec.value[j]);
        f.value[j] = __uint_as_float(two << 16);
        f.value[j + 1] = __uint_as_float(two & 0xffff0000u);
      }
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) f.value[j] = widen(vec.value[j]);
    }
    return f;
  }
  __device__ __forceinline__ friend FloatVec operator*(float s, FloatVec v) {
#pragma unroll
    for (int j = 0; j < N; ++j) v.value[j] *= s;
    return v;
  }
  __device__ __forceinline__ friend FloatVec operator+(FloatVec a, const FloatVec& b) {
#pragma unroll
    for (int j = 0; j < N; ++j) a.value[j] += b.value[j];
    return a;
  }
  __device__ __forceinline__ friend FloatVec operator-(FloatVec a, const FloatVec& b) {
#pragma unroll
    for (int j = 0; j < N; ++j) a.value[j] -= b.value[j];
    return a;
  }
};

}  // namespace ddu::cuda
