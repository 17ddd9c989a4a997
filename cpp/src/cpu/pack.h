#pragma once

// A pack: the same pixel of several channels in one vector register. Neighbouring channels lie far apart in memory but share
// their taps' geometry, so the kernels turn blocks of them around: then a tap's corner is one vector load, whatever the map.
// Internal linkage: compiled once per instruction set.

#include <cstdint>
#include <cstring>
#include <utility>

#include "../half.h"

namespace ddu::cpu {
namespace {

// Bytes of a vector register. Without the compiler's vector types there is one lane, and packs are plain numbers.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DDU_VECTORS
#endif
#endif
#if !defined(DDU_VECTORS)
template <class Acc>
constexpr int kLanes = 1;
#elif defined(__AVX512F__)
template <class Acc>
constexpr int kLanes = 64 / sizeof(Acc);
#elif defined(__AVX2__)
template <class Acc>
constexpr int kLanes = 32 / sizeof(Acc);
#else
template <class Acc>
constexpr int kLanes = 16 / sizeof(Acc);
#endif

template <class Acc, int N>
struct pack_of {
#if defined(DDU_VECTORS)
  typedef Acc type __attribute__((vector_size(N * sizeof(Acc))));
#endif
};
template <class Acc>
struct pack_of<Acc, 1> {
  using type = Acc;
};
template <class Acc, int N>
using Pack = typename pack_of<Acc, N>::type;

/// Positions that are turned around together: a square of lanes, or a run long enough to vectorise where there is one lane.
template <int N>
constexpr int kBlock = N == 1 ? 64 : N;

template <class P, class T>
P load(const T* values) {
  constexpr int n = sizeof(P) / sizeof(accumulator_t<T>);
  accumulator_t<T> wide[n];
  widen(values, wide, n);
  P pack;
  std::memcpy(&pack, wide, sizeof pack);
  return pack;
}

template <class P, class T>
void store(const P& pack, T* values) {
  constexpr int n = sizeof(P) / sizeof(accumulator_t<T>);
  accumulator_t<T> wide[n];
  std::memcpy(wide, &pack, sizeof pack);
  narrow(wide, values, n);
}

#if defined(DDU_VECTORS)
// Swaps the off-diagonal squares of 2*Step by 2*Step elements.
template <int Step, class P, int... I>
void exchange(P& a, P& b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  const P low = __builtin_shufflevector(a, b, (I & Step ? n + I - Step : I)...);
  b = __builtin_shufflevector(a, b, (I & Step ? n + I : I + Step)...);
  a = low;
}
#endif

template <int Step = 1, class P, int N>
void transpose(P (&rows)[N]) {
  if constexpr (Step < N && sizeof(P) > sizeof(double)) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (!(i & Step)) exchange<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, N>{});
    }
    transpose<2 * Step>(rows);
  }
}

/// Channels `0 .. used` of consecutive elements, one pack per element; lanes beyond are zero.
template <int N, class T>
void load_block(const T* values, std::int64_t channel_stride, int used, int count,
                Pack<accumulator_t<T>, N> (&block)[kBlock<N>]) {
  using Acc = accumulator_t<T>;
  using P = Pack<Acc, N>;
  if constexpr (N == 1) {
    widen(values, block, count);
  } else if (count == N) {
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) block[c] = c < used ? load<P>(values + c * channel_stride) : P{};
    transpose(block);
  } else {
    for (int i = 0; i < count; ++i) {
      block[i] = P{};
      for (int c = 0; c < used; ++c) block[i][c] = widen(values[c * channel_stride + i]);
    }
  }
}

/// The inverse of load_block.
template <int N, class T>
void store_block(Pack<accumulator_t<T>, N> (&block)[kBlock<N>], T* values, std::int64_t channel_stride, int used, int count) {
  if constexpr (N == 1) {
    narrow(block, values, count);
  } else if (count == N) {
    transpose(block);
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) {
      if (c < used) store(block[c], values + c * channel_stride);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < used; ++c) values[c * channel_stride + i] = narrow<T>(block[i][c]);
    }
  }
}

/// Cuts a run into blocks: body(start, done, count), of which the first `done` were part of the block before. A rest is made
/// a whole block by going back.
template <int N, class Body>
void for_each_block(int length, Body body) {
  int start = 0;
  for (; start + kBlock<N> <= length; start += kBlock<N>) body(start, 0, kBlock<N>);
  if (start == length) return;
  if (length < kBlock<N> || N == 1) return body(start, 0, length - start);
  body(length - kBlock<N>, start - (length - kBlock<N>), kBlock<N>);
}

}  // namespace
}  // namespace ddu::cpu
