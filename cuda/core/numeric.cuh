#pragma once

// Element types on the device, and the numbers they are computed in.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../../cpp/src/accumulator.h"
#include "ddu/dtype.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 600
/// Devices before sm_60 have no such instruction.
__device__ inline double atomicAdd(double* address, double value) {
  auto* bits = reinterpret_cast<unsigned long long*>(address);
  unsigned long long seen = *bits, expected;
  do {
    expected = seen;
    seen = atomicCAS(bits, expected, __double_as_longlong(__longlong_as_double(expected) + value));
  } while (seen != expected);
  return __longlong_as_double(seen);
}
#endif

namespace ddu::cuda {

/// Whether this device computes with both half types.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kHalfArithmetic = true;
#else
constexpr bool kHalfArithmetic = false;
#endif

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T narrow(accumulator_t<T> v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

/// a / b for 0 <= a < 2^16 and 0 < b < 2^16 without an integer division.
__device__ __forceinline__ int small_quotient(int a, int b) { return int(__fdividef(float(a) + 0.5f, float(b))); }

/// Element `index` of a map, which has the input's type or float32 beside a half input.
template <class Acc>
__device__ __forceinline__ Acc load_rate(const void* map, DType type, std::int64_t index) {
  if constexpr (sizeof(Acc) == 8) {
    return static_cast<const double*>(map)[index];
  } else {
    if (type == DType::float16) return widen(static_cast<const __half*>(map)[index]);
    if (type == DType::bfloat16) return widen(static_cast<const __nv_bfloat16*>(map)[index]);
    return static_cast<const float*>(map)[index];
  }
}

/// Stores such an element, where the map is not of float64.
__device__ __forceinline__ void store_rate(void* map, DType type, std::int64_t index, float value) {
  if (type == DType::float16) {
    static_cast<__half*>(map)[index] = narrow<__half>(value);
  } else if (type == DType::bfloat16) {
    static_cast<__nv_bfloat16*>(map)[index] = narrow<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(map)[index] = value;
  }
}

}  // namespace ddu::cuda
