#pragma once

// Channels in packs: an element of a window holds the same pixel of several channels, so that one wide load serves them all.

#include "numeric.cuh"

namespace ddu::cuda {

template <class T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T value[kPack];
};

/// A pack in float32, with the arithmetic that interpolation needs.
template <int kPack>
struct Floats {
  float value[kPack];

  template <class T>
  __device__ __forceinline__ static Floats of(const Pack<T, kPack>& pack) {
    Floats f;
#pragma unroll
    for (int j = 0; j < kPack; ++j) f.value[j] = widen(pack.value[j]);
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

/// `valid` planes' values of one pixel; zero outside the image.
template <class T, int kPack>
__device__ __forceinline__ Pack<T, kPack> load_pack(const T* planes, int pixel, unsigned plane_bytes, int valid) {
  Pack<T, kPack> pack;
#pragma unroll
  for (int j = 0; j < kPack; ++j) pack.value[j] = T(0.f);
  if (pixel < 0) return pack;
  const char* source = reinterpret_cast<const char*>(planes + pixel);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    if (j < valid) pack.value[j] = __ldg(reinterpret_cast<const T*>(source + std::uint64_t(plane_bytes) * unsigned(j)));
  }
  return pack;
}

/// A thread's elements of a window on their way from global to shared memory, in registers.
template <class T, int kPack, int kShare, int kThreads>
struct Fetch {
  using Element = Pack<T, kPack>;
  Element ahead[kShare];

  /// Starts loading `valid` planes from `planes` on.
  template <class Share>
  __device__ __forceinline__ void load(const Share& share, const T* planes, unsigned plane_bytes, int valid) {
#pragma unroll
    for (int n = 0; n < kShare; ++n) ahead[n] = load_pack<T, kPack>(planes, share.pixel[n], plane_bytes, valid);
  }
  /// Fills the window. Returns whether all of this thread's elements are finite.
  template <class Layout, class Window, class Share>
  __device__ __forceinline__ bool store(const Layout& p, const Window& window, const Share& share, const T* planes,
                                        unsigned plane_bytes, int valid, Element* target) const {
    float poison = 0;
    const auto put = [&](int element, const Element& value) {
      target[element] = value;
#pragma unroll
      for (int j = 0; j < kPack; ++j) poison = __fmaf_rn(0.f, widen(value.value[j]), poison);
    };
#pragma unroll
    for (int n = 0; n < kShare; ++n) {
      const int element = int(threadIdx.x) + n * kThreads;
      if (element < window.elements()) put(element, ahead[n]);
    }
    share.for_each_further(
        p, window, [&](int element, int pixel) { put(element, load_pack<T, kPack>(planes, pixel, plane_bytes, valid)); });
    return poison == 0;
  }
};

/// Writes past the caches' memory of what will be read again: columns are many times the input, and must not push it out.
template <class T>
__device__ __forceinline__ void stream_out(void* address, T value) {
#if __CUDA_ARCH__ >= 800
#if __CUDA_ARCH__ == 900
  // What createpolicy.fractional.L2::evict_first gives for the fraction 1.0; as a constant it costs no register.
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
