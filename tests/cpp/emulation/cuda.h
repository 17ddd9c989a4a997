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
  __builtin_memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

/// TF32's rounding: to nearest in 10 bits of mantissa, ties away from zero.
inline std::uint32_t to_tf32(float value) {
  const auto word = bits<std::uint32_t>(value);
  return (word & 0x7fffffffu) > 0x7f800000u    ? 0x7fffffffu
         : (word & 0x7f800000u) == 0x7f800000u ? word
                                               : (word + 0x1000u) & ~0x1fffu;
}

/// Element `index` of words of a matrix: two of a half type each, or one float of which TF32 keeps the upper 19 bits.
template <class T>
double element_of(const std::uint32_t* words, int index) {
  if constexpr (sizeof(T) == 4) {
    return double(bits<float>(words[index] & ~0x1fffu));
  } else {
    return double(float(bits<T>(static_cast<unsigned short>(words[index / 2] >> (index % 2 * 16)))));
  }
}

/// What the lanes of a warp bring to a product of matrices: rows of A and columns of B, in words, and D.
struct MatrixProduct {
  std::uint32_t rows[16][8], columns[8][8];
  double sums[16][8];
  bool done;
};
inline MatrixProduct matrix_products[32];  // of each warp

/// mma.sync, of the fragments that cuda/core/mma.cuh draws: a warp meets, and one of its lanes multiplies.
template <class T>
void mma(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  constexpr int kDepth = 32 / int(sizeof(T));
  MatrixProduct& product = matrix_products[thread_index.x / 32];
  const int g = int(thread_index.x % 32) / 4, q = int(thread_index.x % 4);
  const auto sum = [&](int i) -> double& { return product.sums[g + i / 2 * 8][q * 2 + i % 2]; };
  product.done = false;
  for (int i = 0; i < 4; ++i) product.rows[g + i % 2 * 8][q + i / 2 * 4] = a[i];
  for (int i = 0; i < 2; ++i) product.columns[g][q + i * 4] = b[i];
  for (int i = 0; i < 4; ++i) sum(i) = double(d[i]);
  warp_exchange(0);
  if (!product.done) {
    double columns[8][kDepth];
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < kDepth; ++k) columns[n][k] = element_of<T>(product.columns[n], k);
    for (int m = 0; m < 16; ++m)
      for (int k = 0; k < kDepth; ++k) {
        const double element = element_of<T>(product.rows[m], k);
        for (int n = 0; n < 8; ++n) product.sums[m][n] += element * columns[n][k];
      }
    product.done = true;
  }
  for (int i = 0; i < 4; ++i) d[i] = float(sum(i));
  warp_exchange(0);  // nobody brings anything new before all have their sums
}

/// ldmatrix.x4.trans: all lanes tell which row they name, and read what they get.
inline void load_turned(std::uint32_t (&r)[4], const void* row) {
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  std::uint32_t low[32], high[32];
  std::copy_n(warp_exchange(std::uint32_t(address)), 32, low);
  std::copy_n(warp_exchange(std::uint32_t(std::uint64_t{address} >> 32)), 32, high);
  const int g = int(thread_index.x % 32) / 4, q = int(thread_index.x % 4);
  const auto element = [&](int m, int i) {
    return std::uint32_t{reinterpret_cast<const unsigned short*>(std::uint64_t{high[m * 8 + i]} << 32 | low[m * 8 + i])[g]};
  };
  for (int m = 0; m < 4; ++m) r[m] = element(m, 2 * q) | element(m, 2 * q + 1) << 16;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace emulation

#define DDU_CUDA_EMULATION
#define __launch_bounds__(...)
#define __noinline__
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
inline unsigned __ballot_sync(unsigned, bool value) {
  const std::uint32_t* all = emulation::warp_exchange(value);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= all[lane] != 0 ? 1u << lane : 0;
  return ballot;
}
inline unsigned __shfl_sync(unsigned, unsigned value, int lane) { return emulation::warp_exchange(value)[lane]; }
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
template <class T>
T atomicExch(T* address, T value) {
  const T before = *address;
  *address = value;
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
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline float __saturatef(float value) { return value > 1 ? 1.f : value > 0 ? value : 0.f; }
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
