#pragma once

// A window from global to shared memory, four pixels of a row at a time.
//
//   global: planes of channels              registers (WindowLoad)             shared: vectors of channels
//   channel 0   a0 a1 a2 a3   16 bytes  ->  a0 a1 a2 a3                        element i  [ai bi ci di]  16 bytes
//   channel 1   b0 b1 b2 b3             ->  b0 b1 b2 b3     transposed   ->
//   channel 2   c0 c1 c2 c3             ->  c0 c1 c2 c3
//   channel 3   d0 d1 d2 d3             ->  d0 d1 d2 d3
//
// The loads of the next vector of channels are in flight while the block computes with this one. Where the image's rows do not
// start on multiples of four pixels, they are loaded pixel by pixel. Asynchronous copies of 4 bytes a pixel were tried: four
// times the writes to shared memory, and what is copied cannot be tested for being finite on its way.

#include "../core/vec.cuh"
#include "window.cuh"

namespace ddu::cuda {

/// Where four pixels lie, side by side in one row of the window.
struct WindowVec4 {
  int element;      // of the window, the first
  int pixel;        // of a plane, the first
  unsigned inside;  // bit i: pixel i lies in the image
  bool used;        // whether the window has them

  /// The `item`th of a window.
  __device__ WindowVec4(const Params<float>& p, const Window& window, int item) {
    int row, column;
    if (paired(window)) {
      const int pair = small_quotient(item / 2, window.rows);
      row = item / 2 - pair * window.rows;
      column = 8 * pair + 4 * (item % 2);
    } else {
      row = small_quotient(item, window.columns / 4);
      column = 4 * item - row * window.columns;
    }
    const int iy = window.first_y + row, ix = window.first_x + column;
    used = column < window.columns && row < window.rows;
    element = row * window.pitch + column;
    pixel = iy * p.width + ix;
    inside = 0;
    if (!used || unsigned(iy) >= unsigned(p.height)) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) inside |= unsigned(ix + i) < unsigned(p.width) ? 1u << i : 0;
  }
  /// How many items there are.
  __device__ static int count(const Window& window) {
    return paired(window) ? (window.columns + 7) / 8 * 2 * window.rows : window.columns / 4 * window.rows;
  }

 private:
  // Where rows are padded, threads side by side take two items of each of several rows: what they write meets no bank twice.
  __device__ static bool paired(const Window& window) { return window.pitch != window.columns; }
};

/// Calls body(vec4) for this thread's items of a window beyond its first.
template <int kThreads, class Body>
__device__ __forceinline__ void for_each_further_vec4(const Params<float>& p, const Window& window, Body body) {
#pragma unroll 1
  for (int item = int(threadIdx.x) + kThreads; item < WindowVec4::count(window); item += kThreads) {
    body(WindowVec4(p, window, item));
  }
}

/// Whether values are finite: their sum, each times zero, which is NaN as soon as one is not.
struct FiniteCheck {
  float sum = 0;

  template <class T>
  __device__ __forceinline__ void take(const Vec<T, 4>& values) {
    if constexpr (sizeof(T) == 2 && kHalfArithmetic) {
      using Two = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
      const VecBits<Vec<T, 4>> whole(values);
      const unsigned zero = 0;
      const Two low = reinterpret_cast<const Two&>(whole.bits.x), high = reinterpret_cast<const Two&>(whole.bits.y);
      const Two two = __hfma2(low, reinterpret_cast<const Two&>(zero), __hmul2(high, reinterpret_cast<const Two&>(zero)));
      sum += widen(two.x) + widen(two.y);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum = __fmaf_rn(0.f, widen(values.value[i]), sum);
    }
  }
  __device__ __forceinline__ bool finite() const { return sum == 0; }
};

/// Four pixels of N planes on their way from global to shared memory, in registers.
template <class T, int N>
struct WindowLoad {
  using Row = Vec<T, 4>;
  // Half types stay whole words until they are stored: a compiler takes vectors apart as soon as it can, and so waits for them.
  using Held = std::conditional_t<sizeof(T) == 2, BitsOf<sizeof(Row)>, Row>;
  Held held[N];

  /// Starts loading `valid` planes from `planes` on; zeros outside the image.
  __device__ __forceinline__ void load(const Params<float>& p, const WindowVec4& vec4, const T* planes, unsigned plane_bytes,
                                       int valid) {
#pragma unroll
    for (int j = 0; j < N; ++j) held[j] = hold(Row{T(0.f), T(0.f), T(0.f), T(0.f)});
    if (vec4.inside == 0) return;
    const char* source = reinterpret_cast<const char*>(planes + vec4.pixel);
    if (p.vec4) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (j < valid) held[j] = hold(VecBits<Row>::load(source + std::uint64_t(plane_bytes) * unsigned(j)));
      }
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const T* from = reinterpret_cast<const T*>(source + std::uint64_t(plane_bytes) * unsigned(j));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (j < valid && (vec4.inside >> i & 1)) set(held[j], i, __ldg(from + i));
        }
      }
    }
  }
  /// Writes the elements, once what was loaded is there.
  __device__ __forceinline__ void store(const WindowVec4& vec4, Vec<T, N>* window, FiniteCheck& check) const {
    if (!vec4.used) return;
    Row rows[N];
#pragma unroll
    for (int j = 0; j < N; ++j) rows[j] = row(held[j]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Vec<T, N> element;
#pragma unroll
      for (int j = 0; j < N; ++j) element.value[j] = rows[j].value[i];
      VecBits<Vec<T, N>>::write(window[vec4.element + i], element);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) check.take(rows[j]);
  }

 private:
  __device__ __forceinline__ static Held hold(const VecBits<Row>& whole) {
    if constexpr (sizeof(T) == 2) {
      return whole.bits;
    } else {
      return whole.vec;
    }
  }
  __device__ __forceinline__ static void set(Held& held, int i, T value) {
    if constexpr (sizeof(T) == 2) {
      VecBits<Row> whole(held);
      whole.vec.value[i] = value;
      held = whole.bits;
    } else {
      held.value[i] = value;
    }
  }
  __device__ __forceinline__ static Row row(Held held) {
    if constexpr (sizeof(T) == 2) {
      asm volatile("" : "+r"(held.x), "+r"(held.y));  // no earlier than here
      return VecBits<Row>(held).vec;
    } else {
      return held;
    }
  }
};

/// Fills a window with `valid` planes, of which `loaded` has brought this thread's first item. Returns whether what this
/// thread wrote is finite.
template <int kThreads, class T, int N>
__device__ __forceinline__ bool fill_window(const Params<float>& p, const Window& window, const WindowVec4& vec4,
                                            const WindowLoad<T, N>& loaded, const T* planes, unsigned plane_bytes, int valid,
                                            Vec<T, N>* target) {
  FiniteCheck check;
  loaded.store(vec4, target, check);
  for_each_further_vec4<kThreads>(p, window, [&](const WindowVec4& further) {
    WindowLoad<T, N> now;
    now.load(p, further, planes, plane_bytes, valid);
    now.store(further, target, check);
  });
  return check.finite();
}

}  // namespace ddu::cuda
