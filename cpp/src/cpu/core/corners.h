#pragma once

// What lies side by side for each cell, its four corners a c b d, and vectors with one of the four for each position: how the
// one becomes the other in registers. Internal linkage: compiled once per instruction set.

#include <cstdint>
#include <cstring>
#include <utility>

#include "taps.h"
#include "vec.h"

namespace ddu::cpu {
namespace {

/// Of M positions.
template <class Acc>
struct Corners {
  static constexpr int M = kLanes<Acc>;
  using V = Vec<Acc, M>;
  using Four = Vec<Acc, 4>;
  using Lanes = std::make_integer_sequence<int, M>;

  V q[4];  // a c b d

  /// From the fours that lie at at(0) .. at(M - 1).
  template <class At>
  void load(At at) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) q[j] = fours(at, j, std::make_integer_sequence<int, M / 4>{});
    turn(Lanes{});
  }
  /// Adds them to the fours that lie there, one after the other: cells may be the same. They are used up.
  template <class At>
  void add_to(At at) {
    turn(Lanes{});
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      char* const target = at(i);
      Four sum, share;
      std::memcpy(&sum, target, sizeof sum);
      std::memcpy(&share, reinterpret_cast<const char*>(&q[i % 4]) + static_cast<std::size_t>(i / 4) * sizeof share,
                  sizeof share);
      sum += share;
      std::memcpy(target, &sum, sizeof sum);
    }
  }

  /// The sums of a row of M pixels, and what belongs to the pixels below them, from the numbers b d of the cell to the left of
  /// the first, then the fours of the cells, up to the a c of the last.
  static void fold(const Acc* from, V& sums, V& below) { fold(from, sums, below, Lanes{}); }

 private:
  /// From four vectors with fours of positions i, i + 4, .. to the corners, and back.
  template <int... I>
  void turn(std::integer_sequence<int, I...>) {
#if defined(DDU_VECTORS)
    // Of each four: the numbers of two vectors in turns, then their pairs in turns. Instructions for both are as old as SSE.
    const V low = __builtin_shufflevector(q[0], q[1], (I / 4 * 4 + I % 4 / 2 + I % 2 * M)...);
    const V high = __builtin_shufflevector(q[0], q[1], (I / 4 * 4 + I % 4 / 2 + 2 + I % 2 * M)...);
    const V low2 = __builtin_shufflevector(q[2], q[3], (I / 4 * 4 + I % 4 / 2 + I % 2 * M)...);
    const V high2 = __builtin_shufflevector(q[2], q[3], (I / 4 * 4 + I % 4 / 2 + 2 + I % 2 * M)...);
    q[0] = __builtin_shufflevector(low, low2, (I / 4 * 4 + I % 2 + I % 4 / 2 * M)...);
    q[1] = __builtin_shufflevector(low, low2, (I / 4 * 4 + I % 2 + 2 + I % 4 / 2 * M)...);
    q[2] = __builtin_shufflevector(high, high2, (I / 4 * 4 + I % 2 + I % 4 / 2 * M)...);
    q[3] = __builtin_shufflevector(high, high2, (I / 4 * 4 + I % 2 + 2 + I % 4 / 2 * M)...);
#endif
  }

  /// What is added to a pixel and to the one below it, of M / 2 pixels.
  template <int... I>
  static V pairs(const Acc* from, std::integer_sequence<int, I...>) {
#if defined(DDU_VECTORS)
    V low, high;
    std::memcpy(&low, from, sizeof low);
    std::memcpy(&high, from + M, sizeof high);
    return __builtin_shufflevector(low, high, (I / 4 * 4 + I % 2 + I % 4 / 2 * M)...) +
           __builtin_shufflevector(low, high, (I / 4 * 4 + I % 2 + 2 + I % 4 / 2 * M)...);
#else
    return *from;
#endif
  }

  template <int... I>
  static void fold(const Acc* from, V& sums, V& below, std::integer_sequence<int, I...>) {
#if defined(DDU_VECTORS)
    const V left = pairs(from, Lanes{}), right = pairs(from + 2 * M, Lanes{});
    // Now lane 4 * g + i is of pixel i * M / 4 + g.
    const V first = __builtin_shufflevector(left, right, (I / 4 * 4 + I % 2 * 2 + I % 4 / 2 * M)...);
    const V second = __builtin_shufflevector(left, right, (I / 4 * 4 + I % 2 * 2 + 1 + I % 4 / 2 * M)...);
    sums = __builtin_shufflevector(first, first, (I % (M / 4) * 4 + I / (M / 4))...);
    below = __builtin_shufflevector(second, second, (I % (M / 4) * 4 + I / (M / 4))...);
#endif
  }

  template <class At, int... I>
  static V fours(At at, int j, std::integer_sequence<int, I...>) {
    Four four[M / 4];
    (std::memcpy(&four[I], at(4 * I + j), sizeof four[I]), ...);
    return joined(four);
  }
  template <int N>
  static V joined(const Four (&four)[N]) {
#if defined(DDU_VECTORS)
    if constexpr (N == 1) {
      return four[0];
    } else if constexpr (N == 2) {
      return __builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 4, 5, 6, 7);
    } else {
      const auto low = __builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 4, 5, 6, 7);
      const auto high = __builtin_shufflevector(four[2], four[3], 0, 1, 2, 3, 4, 5, 6, 7);
      return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
#else
    return four[0];
#endif
  }
};

/// Where the cells of M positions are, in bytes of an array with two numbers for each: worked out in vectors, and taken from
/// registers two at a time. Each one alone, or by way of memory, takes longer than what is done with it.
template <class Acc>
struct CellOffsets {
  static constexpr int M = kLanes<Acc>;
  Vec<std::uint64_t, M / 2> two;

  CellOffsets(const Tap<Acc>& tap, int n) {
    Vec<std::uint32_t, M> row, column;
    std::memcpy(&row, tap.row + n, sizeof row);
    std::memcpy(&column, tap.column + n, sizeof column);
    const Vec<std::uint32_t, M> offset = (row + column) * static_cast<std::uint32_t>(2 * sizeof(Acc));
    std::memcpy(&two, &offset, sizeof offset);
  }
  std::size_t operator[](int i) const {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    const bool high = i % 2 == 0;
#else
    const bool high = i % 2 == 1;
#endif
    return high ? two[i / 2] >> 32 : two[i / 2] & 0xffffffffu;
  }
};

}  // namespace
}  // namespace ddu::cpu
