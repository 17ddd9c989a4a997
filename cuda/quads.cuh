#pragma once

// A window from global to shared memory, four pixels of a row at a time: one wide load for each channel of a pack, and the
// packs put together in registers. Where the image's rows do not start on multiples of four pixels, pixel by pixel.

#include "pack.cuh"
#include "tile.cuh"

namespace ddu::cuda {

/// Where one of a window's quads lies.
struct Quad {
  int element;      // of the window, its first
  int pixel;        // of a plane, its first
  unsigned inside;  // bit i: pixel i lies in the image
  bool used;

  __device__ Quad(const Layout<float>& p, const Window& window, int item) {
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
  __device__ static int count(const Window& window) {
    return paired(window) ? (window.columns + 7) / 8 * 2 * window.rows : window.columns / 4 * window.rows;
  }

 private:
  // Where rows are padded, threads side by side take two quads of each of several rows: what they write meets no bank twice.
  __device__ static bool paired(const Window& window) { return window.pitch != window.columns; }
};

/// Calls body(quad) for the quads of a window that are this thread's beyond the first.
template <int kThreads, class Body>
__device__ __forceinline__ void for_each_further(const Layout<float>& p, const Window& window, Body body) {
#pragma unroll 1
  for (int item = int(threadIdx.x) + kThreads; item < Quad::count(window); item += kThreads) body(Quad(p, window, item));
}

/// Zero for as long as all that it took is finite, then NaN.
struct Poison {
  float sum = 0;

  template <class T>
  __device__ __forceinline__ void take(const Pack<T, 4>& pack) {
    if constexpr (sizeof(T) == 2 && kHalfArithmetic) {
      using Two = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
      const Whole<Pack<T, 4>> whole(pack);
      const unsigned zero = 0;
      const Two low = reinterpret_cast<const Two&>(whole.bits.x), high = reinterpret_cast<const Two&>(whole.bits.y);
      const Two two = __hfma2(low, reinterpret_cast<const Two&>(zero), __hmul2(high, reinterpret_cast<const Two&>(zero)));
      sum += widen(two.x) + widen(two.y);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum = __fmaf_rn(0.f, widen(pack.value[i]), sum);
    }
  }
};

/// A quad of several planes on its way, in registers.
template <class T, int kPack>
struct QuadFetch {
  using Row = Pack<T, 4>;
  // Half types stay whole words until they are stored: a compiler takes packs apart as soon as it can, and so waits for them.
  using Held = std::conditional_t<sizeof(T) == 2, Word<sizeof(Row)>, Row>;
  Held ahead[kPack];

  /// Starts loading `valid` planes from `planes` on; zeros outside the image.
  __device__ __forceinline__ void load(const Layout<float>& p, const Quad& quad, const T* planes, unsigned plane_bytes,
                                       int valid) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) ahead[j] = held(Row{T(0.f), T(0.f), T(0.f), T(0.f)});
    if (quad.inside == 0) return;
    const char* source = reinterpret_cast<const char*>(planes + quad.pixel);
    if (p.quads) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        if (j < valid) ahead[j] = held(Whole<Row>::load(source + std::uint64_t(plane_bytes) * unsigned(j)));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const T* from = reinterpret_cast<const T*>(source + std::uint64_t(plane_bytes) * unsigned(j));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (j < valid && (quad.inside >> i & 1)) set(ahead[j], i, __ldg(from + i));
        }
      }
    }
  }
  /// Writes the packs.
  __device__ __forceinline__ void store(const Quad& quad, Pack<T, kPack>* window, Poison& poison) const {
    if (!quad.used) return;
    Row rows[kPack];
#pragma unroll
    for (int j = 0; j < kPack; ++j) rows[j] = row(ahead[j]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Pack<T, kPack> pack;
#pragma unroll
      for (int j = 0; j < kPack; ++j) pack.value[j] = rows[j].value[i];
      Whole<Pack<T, kPack>>::write(window[quad.element + i], pack);
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) poison.take(rows[j]);
  }

 private:
  __device__ __forceinline__ static Held held(const Whole<Row>& whole) {
    if constexpr (sizeof(T) == 2) {
      return whole.bits;
    } else {
      return whole.pack;
    }
  }
  __device__ __forceinline__ static void set(Held& held, int i, T value) {
    if constexpr (sizeof(T) == 2) {
      Whole<Row> whole(held);
      whole.pack.value[i] = value;
      held = whole.bits;
    } else {
      held.value[i] = value;
    }
  }
  __device__ __forceinline__ static Row row(Held held) {
    if constexpr (sizeof(T) == 2) {
      asm volatile("" : "+r"(held.x), "+r"(held.y));  // no earlier than here
      return Whole<Row>(held).pack;
    } else {
      return held;
    }
  }
};

/// Fills a window with `valid` planes, of which `fetch` has brought this thread's first quad. Returns whether what this
/// thread wrote is finite.
template <int kThreads, class T, int kPack>
__device__ __forceinline__ bool fill(const Layout<float>& p, const Window& window, const Quad& quad,
                                     const QuadFetch<T, kPack>& fetch, const T* planes, unsigned plane_bytes, int valid,
                                     Pack<T, kPack>* target) {
  Poison poison;
  fetch.store(quad, target, poison);
  for_each_further<kThreads>(p, window, [&](const Quad& further) {
    QuadFetch<T, kPack> now;
    now.load(p, further, planes, plane_bytes, valid);
    now.store(further, target, poison);
  });
  return poison.sum == 0;
}

}  // namespace ddu::cuda
