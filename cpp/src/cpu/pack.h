#pragma once

// A pack: one pixel of several channels in one vector register. Channels lie far apart in memory but share the geometry of
// their taps, so the kernels turn blocks of them around: then a tap's corner is one vector load, whatever the map. Internal
// linkage: compiled once per instruction set.

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

// Swaps the squares of Step elements off the diagonal of each square of 2 * Step.
template <int Step, class P, int... I>
void exchange(P& a, P& b, std::integer_sequence<int, I...>) {
#if defined(DDU_VECTORS)
  constexpr int n = sizeof...(I);
  const P low = __builtin_shufflevector(a, b, (I & Step ? n + I - Step : I)...);
  b = __builtin_shufflevector(a, b, (I & Step ? n + I : I + Step)...);
  a = low;
#endif
}

/// From a pack per pixel to a pack per channel, and back.
template <int Step = 1, class P, int N>
void transpose(P (&block)[N]) {
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

/// Rows of values, one for each of N channels: how channels lie in memory.
template <class Acc, int N>
struct Stage {
  static constexpr int kSize = 256;
  alignas(64) Acc row[N][kSize];

  using P = Pack<Acc, N>;
  using Block = P[kBlock<N>];

  /// Pixels first .. first + kBlock, a pack for each.
  void get(int first, Block& block) const {
    if constexpr (N == 1) {
      std::memcpy(block, row[0] + first, sizeof block);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) std::memcpy(&block[c], row[c] + first, sizeof(P));
      transpose(block);
    }
  }
  /// The inverse of get. The block is used up.
  void put(int first, Block& block) {
    if constexpr (N == 1) {
      std::memcpy(row[0] + first, block, sizeof block);
    } else {
      transpose(block);
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) std::memcpy(row[c] + first, &block[c], sizeof(P));
    }
  }
};

/// Adds a block's packs, each summed over its lanes, to kBlock numbers. The block is used up.
template <class Acc, int N>
void add_lanes(typename Stage<Acc, N>::Block& block, Acc* sums) {
  if constexpr (N == 1) {
    for (int i = 0; i < kBlock<N>; ++i) sums[i] += block[i];
  } else {
    transpose(block);
    Pack<Acc, N> sum;
    std::memcpy(&sum, sums, sizeof sum);
    for (int c = 0; c < N; ++c) sum += block[c];
    std::memcpy(sums, &sum, sizeof sum);
  }
}

}  // namespace
}  // namespace ddu::cpu
