#pragma once

// A Vec: one pixel of several channels in one vector register. Channels lie far apart in memory but share the geometry of
// their taps, so the kernels turn blocks of them around: then a tap's corner is one vector load, whatever the map. Internal
// linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../../half.h"
#include "../../sampling.h"
#include "tiling.h"

namespace ddu::cpu {
namespace {

// Bytes of a vector register. Without the compiler's vector types there is one lane, and Vecs are plain numbers.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DDU_VECTORS
#endif
#endif
#if !defined(DDU_VECTORS)
constexpr std::size_t kVectorBytes = 1;
#elif defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif
template <class Acc>
constexpr int kLanes = kVectorBytes > sizeof(Acc) ? kVectorBytes / sizeof(Acc) : 1;

template <class Acc, int N>
struct vec_of {
#if defined(DDU_VECTORS)
  typedef Acc type __attribute__((vector_size(N * sizeof(Acc))));
#endif
};
template <class Acc>
struct vec_of<Acc, 1> {
  using type = Acc;
};
template <class Acc, int N>
using Vec = typename vec_of<Acc, N>::type;

// Swaps the squares of Step elements off the diagonal of each square of 2 * Step.
template <int Step, class V, int... I>
void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
#if defined(DDU_VECTORS)
  constexpr int n = sizeof...(I);
  const V low = __builtin_shufflevector(a, b, (I & Step ? n + I - Step : I)...);
  b = __builtin_shufflevector(a, b, (I & Step ? n + I : I + Step)...);
  a = low;
#endif
}

/// From a Vec per pixel to a Vec per channel, and back.
template <int Step = 1, class V, int N>
void transpose(V (&block)[N]) {
  if constexpr (Step < N) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (!(i & Step)) exchange<Step>(block[i], block[i + Step], std::make_integer_sequence<int, N>{});
    }
    transpose<2 * Step>(block);
  }
}

/// Pixels that are turned around together: a square, or enough to vectorise over where there is one lane.
template <int N>
constexpr int kBlock = N == 1 ? 16 : N;

// Of code that does not depend on the type of a tensor's elements: one copy serves all types that are summed alike. A compiler
// would put one into each of its callers, which then take minutes to compile. Worth it for a tile at a time, not for less. Such
// functions take small structs by value: no store through a pointer can change those, so loops keep them in registers.
#if defined(__GNUC__)
#define DDU_ONE_COPY __attribute__((noinline))
#elif defined(_MSC_VER)
#define DDU_ONE_COPY __declspec(noinline)
#else
#define DDU_ONE_COPY
#endif

/// Rows of values, one for each of N channels: how channels lie in memory.
template <class Acc, int N>
struct Stage {
  static constexpr int kSize = N <= Tiling::kFew ? Tiling::kFewPositions : Tiling::kPositions;
  alignas(64) Acc row[N][kSize];

  static Stage& in(void* memory) { return *static_cast<Stage*>(memory); }

  using V = Vec<Acc, N>;
  using Block = V[kBlock<N>];

  /// Pixels first .. first + kBlock, a Vec for each.
  void load(int first, Block& block) const {
    if constexpr (N == 1) {
      std::memcpy(block, row[0] + first, sizeof block);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) std::memcpy(&block[c], row[c] + first, sizeof(V));
      transpose(block);
    }
  }
  /// The inverse of load. The block is used up.
  void store(int first, Block& block) {
    if constexpr (N == 1) {
      std::memcpy(row[0] + first, block, sizeof block);
    } else {
      transpose(block);
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) std::memcpy(row[c] + first, &block[c], sizeof(V));
    }
  }

  /// Whole blocks of pixels 0 .. count, a Vec for each. Returns 0 in each lane whose values are all finite, else NaN.
  DDU_ONE_COPY V load_all(int count, V* vecs) const {
    V nan{};
    for (int n = 0; n < count; n += kBlock<N>) {
      Block block;
      load(n, block);
      for (int i = 0; i < kBlock<N>; ++i) {
        vecs[n + i] = block[i];
        nan += nan_unless_finite(block[i]);
      }
    }
    return nan;
  }
  /// The inverse, of whole blocks too.
  DDU_ONE_COPY void store_all(int count, const V* vecs) {
    for (int n = 0; n < count; n += kBlock<N>) {
      Block block;
      std::copy_n(vecs + n, kBlock<N>, block);
      store(n, block);
    }
  }
};

/// Sums the lanes of each of a block's Vecs: lane i of the first is in the end the sum of Vec i. Half the exchanges of a
/// transpose, since what is exchanged is added at once.
template <int Step = 1, class V, int N>
void sum_lanes(V (&block)[N]) {
  if constexpr (Step < N) {
#pragma GCC unroll 16
    for (int i = 0; i < N; i += 2 * Step) {
      exchange<Step>(block[i], block[i + Step], std::make_integer_sequence<int, N>{});
      block[i] += block[i + Step];
    }
    sum_lanes<2 * Step>(block);
  }
}

/// Adds a block's Vecs, each summed over its lanes, to kBlock numbers. The block is used up.
template <class Acc, int N>
void add_lanes(typename Stage<Acc, N>::Block& block, Acc* sums) {
  if constexpr (N == 1) {
    for (int i = 0; i < kBlock<N>; ++i) sums[i] += block[i];
  } else {
    sum_lanes(block);
    Vec<Acc, N> sum;
    std::memcpy(&sum, sums, sizeof sum);
    sum += block[0];
    std::memcpy(sums, &sum, sizeof sum);
  }
}

}  // namespace
}  // namespace ddu::cpu
