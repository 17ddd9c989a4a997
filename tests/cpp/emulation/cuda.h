#pragma once

// The CUDA kernels as C++, for machines without a GPU: every thread of a block is a fiber, blocks run one after another.
// Included before each of the CUDA sources, which the host's compiler then takes as they are. Shows what they compute, that
// every barrier is reached by all, and, since the order of the threads is the caller's choice, whether results depend on it.
// Shows nothing of speed, and nothing of what stands behind `#if __CUDA_ARCH__`. The sources call shared arrays static, as CUDA
// takes them to be, so that one serves all fibers.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <functional>
#include <type_traits>

namespace emulation {

struct Index {
  unsigned x = 0;
};
extern Index thread_index, block_index, block_size, grid_size;

/// Runs a grid. Throws std::logic_error where some threads wait for others that do not come.
void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel);

/// Waits for the whole block; returns whether any thread gave true.
bool block_barrier(bool value);
/// Waits for the warp; returns what each of its threads gave (0 for those that have ended).
const std::uint32_t* warp_exchange(std::uint32_t value);

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace emulation

#define __launch_bounds__(...)
#define threadIdx ::emulation::thread_index
#define blockIdx ::emulation::block_index
#define blockDim ::emulation::block_size
#define gridDim ::emulation::grid_size
#define cudaLaunchKernelEx ::emulation::launch

// What the kernels use of CUDA's device functions.

inline void __syncthreads() { emulation::block_barrier(false); }
inline int __syncthreads_or(int value) { return emulation::block_barrier(value != 0); }
inline void __threadfence() {}
inline void __syncwarp() { emulation::warp_exchange(0); }
inline unsigned __activemask() { return ~0u; }
inline bool __any_sync(unsigned, bool value) {
  const std::uint32_t* all = emulation::warp_exchange(value);
  return std::any_of(all, all + 32, [](std::uint32_t one) { return one != 0; });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  constexpr int kWords = sizeof(T) / 4;
  std::uint32_t words[kWords];
  __builtin_memcpy(words, &value, sizeof value);
  for (std::uint32_t& word : words) word = emulation::warp_exchange(word)[(threadIdx.x % 32) ^ unsigned(mask)];
  __builtin_memcpy(&value, words, sizeof value);
  return value;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T, class V>
T atomicAdd(T* address, V value) {
  const T before = *address;
  *address = T(before + value);
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
inline unsigned atomicOr(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address = before | value;
  return before;
}
inline double __longlong_as_double(long long value) { return emulation::bits<double>(value); }
inline long long __double_as_longlong(double value) { return emulation::bits<long long>(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(std::uint64_t{a} * b >> 32); }
inline float __int_as_float(int value) { return emulation::bits<float>(value); }
inline float __uint_as_float(unsigned value) { return emulation::bits<float>(value); }
inline unsigned __float_as_uint(float value) { return emulation::bits<unsigned>(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(unsigned(value)); }
inline int __float_as_int(float value) { return emulation::bits<int>(value); }
inline int __float2int_rn(float value) {
  return value != value ? 0 : int(std::nearbyint(std::clamp(value, -2147483648.f, 2147483520.f)));
}
inline long long __float2ll_rn(float value) { return static_cast<long long>(std::nearbyint(value)); }
inline long long __double2ll_rn(double value) { return static_cast<long long>(std::nearbyint(value)); }
inline float __double2float_ru(double value) {
  const float nearest = float(value);
  return double(nearest) < value ? std::nextafter(nearest, INFINITY) : nearest;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }

namespace ddu::cuda {
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? a : b;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? b : a;
}
}  // namespace ddu::cuda
