#pragma once

// One channel at a time, with vectors over positions: for calls with so few channels that a Vec of them would be mostly idle.
// Neighbouring positions then lie side by side in a vector, but their cells anywhere in the window. So corners are kept such
// that those of a cell are one load, wherever it lies, and are turned around in registers:
//
//   pairs   of values: each pixel beside the one below it, so that the pixels a b / c d of a cell are the numbers a c b d
//   quads   of sums: four numbers a c b d for each cell, so that a tap adds to one place which overlaps with no other cell's.
//           In the end they are folded: a pixel is the a of its own cell, the b of the one to the left, and so on
//
// Where all rates of a tile are the same, cells are neighbours as positions are, and neither is needed. Internal linkage:
// compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "nontemporal.h"
#include "taps.h"
#include "window.h"

namespace ddu::cpu {
namespace {

/// Lanes of a channel that is taken so.
struct Alone {
  static constexpr int value = 1;
  constexpr operator int() const { return value; }
};

template <class Acc>
constexpr bool kHasChannelWindow = kLanes<Acc> >= 4;

/// A tap's gradients at the positions of a tile: either where they lie in memory, or one after the other, up to whole blocks.
template <class Acc>
struct GradRows {
  const Acc* first;
  std::int64_t pitch;  // from a row of the tile to the next; 0 where they lie one after the other
  std::int64_t next;   // to the next tap's gradients, which will be read soon; 0 if there are none

  /// body(first position, length, gradients) for runs of positions.
  template <class Body>
  void for_each_run(const Tile<Acc>& tile, Body body) const {
    if (pitch == 0) return body(0, tile.padded, first);
    const int columns = static_cast<int>(tile.region.columns);
    for (int row = 0, n = 0; n < tile.count; ++row, n += columns) body(n, columns, first + row * pitch);
  }
  /// Of a row of the tile, whose first position is n.
  const Acc* row(int n, int columns) const { return pitch == 0 ? first + n : first + n / columns * pitch; }
};

/// A window of one channel's pixels, sums for them, or both, as above: what Window is to a Vec of channels.
template <class Acc>
class ChannelWindow {
 public:
  static constexpr int M = kLanes<Acc>;
  using V = Vec<Acc, M>;
  using Corners = V[4];  // a c b d

  static bool fits(const Tile<Acc>& tile) {
    // A pixel takes as much as a Vec of four; a row of sums is carried to the next in a Stage.
    return tile.fits && 4 * size(tile) <= static_cast<std::int64_t>(kWindowBytes / sizeof(Acc)) &&
           tile.x.extent + M <= M * Tiling::kPositions;
  }

  /// `window` and `quads` have window_bytes() for a Vec, and `transfer` a Stage. Without sums, `quads` may be null.
  ChannelWindow(const Tile<Acc>& tile, void* window, void* quads, void* transfer)
      : tile_(tile),
        transfer_(transfer),
        pixel_(static_cast<Acc*>(window)),
        pair_(pixel_ + size(tile)),
        sum_(pair_ + 2 * size(tile)),
        quad_(static_cast<Acc*>(quads)) {
    uniform_ = has_one_rate();
    for (int k = 0; uniform_ && k < tile.geometry.w.kernel_size; ++k) uniform_ = is_run(k);
  }

  /// Copies the channel. Returns whether all of it is finite.
  template <class T>
  bool load(const Image<const T>& input) {
    const bool finite = Window<Acc, 1>(pixel_, transfer_).load(tile_, input, 1);
    if (uniform_) return finite;
    const std::int64_t count = tile_.extent() - tile_.x.extent;
    const Acc* __restrict up = pixel_, * __restrict down = pixel_ + tile_.x.extent;
    Acc* __restrict pair = pair_;
    for (std::int64_t i = 0; i < count; ++i) {
      pair[2 * i] = up[i];
      pair[2 * i + 1] = down[i];
    }
    return finite;
  }

  void clear() {
    std::fill_n(sum_, size(tile_), Acc(0));
    if (!uniform_) std::fill_n(quad_, 4 * (tile_.extent() + M), Acc(0));
  }

  /// The values of a tap at all positions: see sample() of taps.h.
  void sample(const Tap<Acc>& tap, Acc* __restrict values) const {
    if (uniform_) {
      return for_each_row([&](int n, int length) {
        const Acc* __restrict a = pixel_ + tap.cell(n), * __restrict c = a + tap.pitch;
        const Acc fy = tap.fy[n], fx = tap.fx[n];
        Acc* __restrict row = values + n;
        if (tap.whole_y && tap.whole_x) {
          std::memcpy(row, a, static_cast<std::size_t>(length) * sizeof(Acc));
        } else if (tap.whole_y || tap.whole_x) {
          const Acc* __restrict next = tap.whole_y ? a + 1 : c;
          for (int i = 0; i < length; ++i) row[i] = interpolate(a[i], next[i], tap.whole_y ? fx : fy);
        } else {
          for (int i = 0; i < length; ++i) row[i] = interpolate(a[i], a[i + 1], c[i], c[i + 1], fy, fx);
        }
      });
    }
    for (int n = 0; n < tile_.padded; n += M) {
      Corners q;
      gather(tap, n, q);
      const V fy = load(tap.fy + n), fx = load(tap.fx + n);
      if (tap.whole_y && tap.whole_x) {
        store(q[0], values + n);
      } else if (tap.whole_y || tap.whole_x) {
        store(tap.whole_y ? interpolate(q[0], q[2], fx) : interpolate(q[0], q[1], fy), values + n);
      } else {
        store(interpolate(q[0], q[2], q[1], q[3], fy, fx), values + n);
      }
    }
  }

  /// Adds gradients onto the corners of their cells. A corner that weighs nothing gets none: a gradient may be infinite.
  void scatter(const Tap<Acc>& tap, const GradRows<Acc>& grads) {
    if (uniform_) {
      return for_each_row([&](int n, int length) {
        const Weights<Acc> weights(tap.fy[n], tap.fx[n]);
        const auto add = [&](int corner, Acc weight) {
          Acc* __restrict target = sum_ + tap.cell(n) + corner;
          const Acc* __restrict grad = grads.row(n, length);
          for (int i = 0; i < length; ++i) target[i] += weight * grad[i];
        };
        add(0, weights.a());
        if (!tap.whole_x) add(1, weights.b());
        if (!tap.whole_y) add(tap.pitch, weights.c());
        if (!tap.whole_y && !tap.whole_x) add(tap.pitch + 1, weights.d());
      });
    }
    if (tap.centered_y && tap.centered_x && tap.column[tile_.region.columns - 1] - tap.column[0] == tile_.region.columns - 1) {
      return for_each_row([&](int n, int length) {  // cells are neighbours, for no rate moves them
        Acc* __restrict target = sum_ + tap.cell(n);
        const Acc* __restrict grad = grads.row(n, length);
        for (int i = 0; i < length; ++i) target[i] += grad[i];
      });
    }
    const Tap<Acc> copy = tap;  // which stores through pointers cannot change
    char* const quads = reinterpret_cast<char*>(quad_);
    const std::int64_t next = grads.next;
    grads.for_each_run(tile_, [&](int first, int length, const Acc* grad) {
      for (int i = 0; i < length; i += M) {
        scatter(copy, first + i, load(grad + i), quads);
        prefetch(grad + i + next, sizeof(V));
      }
    });
  }

  /// sums += grad * d(value)/d(rate) at all positions: see add_derivatives() of taps.h.
  void add_derivatives(const Tap<Acc>& tap, const GradRows<Acc>& grads, Acc* __restrict sums) const {
    if (tap.centered_y && tap.centered_x) return;  // the tap does not move
    const bool one_axis = tap.centered_y || tap.centered_x;
    const Acc offset = tap.centered_y ? tap.offset_x : tap.offset_y;
    if (uniform_) {
      return for_each_row([&](int n, int length) {
        const Acc* __restrict a = pixel_ + tap.cell(n), * __restrict c = a + tap.pitch, * __restrict grad = grads.row(n, length);
        const Acc fy = tap.fy[n], fx = tap.fx[n];
        Acc* __restrict sum = sums + n;
        if (one_axis) {
          const Acc* __restrict next = tap.centered_y ? a + 1 : c;
          for (int i = 0; i < length; ++i) sum[i] += grad[i] * ((next[i] - a[i]) * offset);
        } else {
          for (int i = 0; i < length; ++i)
            sum[i] += grad[i] * slope(a[i], a[i + 1], c[i], c[i + 1], fy, fx, tap.offset_y, tap.offset_x);
        }
      });
    }
    const Tap<Acc> copy = tap;  // which stores through pointers cannot change
    const std::int64_t next = grads.next;
    grads.for_each_run(tile_, [&](int first, int length, const Acc* grad) {
      for (int i = 0; i < length; i += M) {
        const int n = first + i;
        Corners q;
        gather(copy, n, q);
        const V fy = load(copy.fy + n), fx = load(copy.fx + n);
        const V change = one_axis ? ((copy.centered_y ? q[2] : q[1]) - q[0]) * offset
                                  : copy.offset_y * slope_y(q[0], q[2], q[1], q[3], fx) +
                                        copy.offset_x * slope_x(q[0], q[2], q[1], q[3], fy);
        store(load(sums + n) + load(grad + i) * change, sums + n);
        prefetch(grad + i + next, sizeof(V));
      }
    });
  }

  /// Adds the sums to the image's.
  void add_to(const Sums<Acc>& sums) {
    if (!uniform_) fold();
    Window<Acc, 1>(sum_, transfer_).add_to(sums, tile_, 1);
  }

 private:
  /// Where the cells of M positions are: worked out in vectors, else each takes longer than what is done with it.
  struct Places {
    alignas(64) std::uint32_t byte[M];

    Places(const Tap<Acc>& tap, int n, std::uint32_t cell_bytes) {
      Vec<std::uint32_t, M> row, column;
      std::memcpy(&row, tap.row + n, sizeof row);
      std::memcpy(&column, tap.column + n, sizeof column);
      const Vec<std::uint32_t, M> place = (row + column) * cell_bytes;
      std::memcpy(byte, &place, sizeof place);
    }
  };

  /// Of M positions, onto quads.
  static void scatter(const Tap<Acc>& tap, int n, const V& grad, char* quads) {
    const Weights<V> weights(load(tap.fy + n), load(tap.fx + n));
    Corners q = {weights.a() * grad, tap.whole_y ? V{} : weights.c() * grad, tap.whole_x ? V{} : weights.b() * grad,
                 tap.whole_y || tap.whole_x ? V{} : weights.d() * grad};
    turn(q);
    const Places place(tap, n, 4 * sizeof(Acc));
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      char* const target = quads + place.byte[i];
      Vec<Acc, 4> sum, share;
      std::memcpy(&sum, target, sizeof sum);
      std::memcpy(&share, reinterpret_cast<const char*>(&q[i % 4]) + static_cast<std::size_t>(i / 4) * sizeof share,
                  sizeof share);
      sum += share;
      std::memcpy(target, &sum, sizeof sum);
    }
  }

  /// Numbers of a window of one channel; blocks are written past the end.
  static std::int64_t size(const Tile<Acc>& tile) { return tile.extent() + Tiling::kBlock; }

  bool has_one_rate() const {
    std::int32_t differ = 0;  // a truth, in a type that compilers vectorise
    for (int n = 0; n < tile_.count; ++n) differ |= tile_.rate[n] != tile_.rate[0] ? 1 : 0;
    return differ == 0;
  }
  /// Whether a tap's columns follow one another along a row of the tile, where all rates are the same: not with a stride, nor
  /// far outside the image, where cells stay in one place.
  bool is_run(int k) const {
    const std::int32_t* column = tile_.x.offset + k * tile_.padded;
    const Acc* fraction = tile_.x.fraction + k * tile_.padded;
    std::int32_t differ = 0;
    for (int i = 0; i < static_cast<int>(tile_.region.columns); ++i) {
      differ |= column[i] - column[0] - i;
      differ |= fraction[i] != fraction[0] ? 1 : 0;
    }
    return differ == 0;
  }

  static V load(const Acc* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(const V& value, Acc* to) { std::memcpy(to, &value, sizeof value); }

  /// body(first position, length) for the rows of the tile.
  template <class Body>
  void for_each_row(Body body) const {
    const int length = static_cast<int>(tile_.region.columns);
    for (int n = 0; n < tile_.count; n += length) body(n, length);
  }

  /// From four numbers a position to a vector for each of the four, and back: where `turned`, position i lies in vector i % 4,
  /// i / 4 fours from its start.
  static void turn(Corners& q) {
    constexpr auto lanes = std::make_integer_sequence<int, M>{};
    exchange<1>(q[0], q[1], lanes);
    exchange<1>(q[2], q[3], lanes);
    exchange<2>(q[0], q[2], lanes);
    exchange<2>(q[1], q[3], lanes);
  }
  /// Turns the fours that lie at at(0) .. at(M - 1).
  template <class At>
  static void turn_from(At at, Corners& q) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) q[j] = fours(at, j, std::make_integer_sequence<int, M / 4>{});
    turn(q);
  }
  template <class At, int... I>
  static V fours(At at, int j, std::integer_sequence<int, I...>) {
    Vec<Acc, 4> part[M / 4];
    (std::memcpy(&part[I], at(4 * I + j), sizeof part[I]), ...);
    return joined(part);
  }
  template <int N>
  static V joined(const Vec<Acc, 4> (&part)[N]) {
#if defined(DDU_VECTORS)
    if constexpr (N == 1) {
      return part[0];
    } else if constexpr (N == 2) {
      return __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 4, 5, 6, 7);
    } else {
      const auto low = __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 4, 5, 6, 7);
      const auto high = __builtin_shufflevector(part[2], part[3], 0, 1, 2, 3, 4, 5, 6, 7);
      return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
#else
    return part[0];
#endif
  }
  /// The corners of the cells of M positions.
  void gather(const Tap<Acc>& tap, int n, Corners& q) const {
    const char* const pairs = reinterpret_cast<const char*>(pair_);
    const Places place(tap, n, 2 * sizeof(Acc));
    turn_from([&](int i) { return pairs + place.byte[i]; }, q);
  }

  /// v one lane further, and the last of the vector before it.
  template <int... I>
  static V further(V before, V v, std::integer_sequence<int, I...>) {
#if defined(DDU_VECTORS)
    return __builtin_shufflevector(before, v, (M - 1 + I)...);
#else
    return before + v;
#endif
  }

  /// Adds quads to the sums of pixels. A row's last vector runs on into the next row, whose part of it is nobody's.
  void fold() {
    constexpr auto lanes = std::make_integer_sequence<int, M>{};
    const int pitch = tile_.x.extent;
    Acc* const carried = static_cast<Acc*>(transfer_);  // to the next row
    std::fill_n(carried, pitch + M, Acc(0));
    for (int r = 0; r < tile_.y.extent; ++r) {
      V b{}, d{};
      for (int x = 0; x < pitch; x += M) {
        const Acc* const quads = quad_ + 4 * (std::int64_t{r} * pitch + x);
        Corners q;
        turn_from([&](int i) { return quads + 4 * i; }, q);
        const V total = load(carried + x) + (q[0] + further(b, q[2], lanes));
        Acc* const sums = sum_ + std::int64_t{r} * pitch + x;
        if (x + M <= pitch) {
          store(load(sums) + total, sums);
        } else {
          Acc part[M];
          store(total, part);
          for (int i = 0; i < pitch - x; ++i) sums[i] += part[i];
        }
        store(q[1] + further(d, q[3], lanes), carried + x);
        b = q[2];
        d = q[3];
      }
    }
  }

  const Tile<Acc>& tile_;
  void* const transfer_;
  Acc *const pixel_, *const pair_, *const sum_, *const quad_;
  bool uniform_;  // cells of neighbours in a row of the tile are neighbours, and have the same fractions
};

}  // namespace
}  // namespace ddu::cpu
