#pragma once

// 16 bytes of channels, as words of a product's factors.

#include "../channels_last/gather.cuh"
#include "../core/mma.cuh"

namespace ddu::cuda {

/// 16 bytes of T as words of a product's factor.
template <class T>
__device__ __forceinline__ Bits16<T> as_factor(Bits16<T> bits) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int w = 0; w < 4; ++w) bits.word[w] = to_tf32(__uint_as_float(bits.word[w]));
  }
  return bits;
}

/// Two values as a word of a factor of a half type.
template <class T>
__device__ __forceinline__ unsigned pack_pair(float first, float second) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 two = __floats2half2_rn(first, second);
    return reinterpret_cast<const unsigned&>(two);
  } else {
    const __nv_bfloat162 two = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const unsigned&>(two);
  }
}

/// 16 bytes of factors from values that were computed.
template <class T>
__device__ __forceinline__ uint4 factors_of(const float (&value)[kVec<T>]) {
  Bits16<T> bits;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) bits.word[k] = result_to_tf32(value[k]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      bits.word[k] = pack_pair<T>(value[2 * k], value[2 * k + 1]);
    }
  }
  return bits.whole;
}

}  // namespace ddu::cuda
