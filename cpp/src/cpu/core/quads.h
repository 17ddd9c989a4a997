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

#include "corners.h"
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
        quad_(quads ? static_cast<Acc*>(quads) + 4 : nullptr) {
    uniform_ = has_one_rate();
    for (int k = 0; uniform_ && k < tile.geometry.w.kernel_size; ++k) uniform_ = is_run(k);
  }

  /// Copies the channel. Returns whether all of it is finite.
  template <class T>
  bool load(const Image<const T>& input) {
    Window<Acc, 1> window(pixel_, transfer_);
    if (uniform_) return window.load(tile_, input, 1);
    const std::int64_t pitch = tile_.x.extent;
    std::int32_t nonfinite = 0;  // a truth, in a type that compilers vectorise
    window.load_plane(tile_, input, [&](std::int64_t first, std::int64_t end) {
      const Acc* __restrict up = pixel_ - pitch, * __restrict down = pixel_;
      Acc* __restrict pair = pair_ - 2 * pitch;
      for (std::int64_t i = first; i < end; ++i) nonfinite |= nan_unless_finite(down[i]) == 0 ? 0 : 1;
      for (std::int64_t i = std::max(first, pitch); i < end; ++i) {
        pair[2 * i] = up[i];
        pair[2 * i + 1] = down[i];
      }
    });
    return nonfinite == 0;
  }

  void clear() {
    std::fill_n(sum_, size(tile_), Acc(0));
    if (!uniform_) std::fill_n(quad_ - 4, 4 * (tile_.extent() + M), Acc(0));
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
      Corners<Acc> corners;
      gather(tap, n, corners);
      const V(&q)[4] = corners.q;
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
    // No rate moves the tap, so its cells are neighbours as positions are: unless a stride lies between them, or some were cut
    // where the image is far away.
    const auto columns = static_cast<std::int32_t>(tile_.region.columns);
    if (tap.centered_y && tap.centered_x && tile_.sample_x.stride == 1 &&
        tap.column[columns - 1] - tap.column[0] == columns - 1) {
      return for_each_row([&](int n, int length) {
        Acc* __restrict target = sum_ + tap.cell(n);
        const Acc* __restrict grad = grads.row(n, length);
        for (int i = 0; i < length; ++i) target[i] += grad[i];
      });
    }
    for_each_cell<true, false>(tap, tap, grads, nullptr);
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
    for_each_cell<false, true>(tap, tap, grads, sums);
  }

  /// Both of these. `from` is the same tap for reading values.
  void scatter_and_add_derivatives(const Tap<Acc>& to, const Tap<Acc>& from, const GradRows<Acc>& grads, Acc* __restrict sums) {
    if (!uniform_ && !(from.centered_y && from.centered_x)) return for_each_cell<true, true>(to, from, grads, sums);
    scatter(to, grads);
    add_derivatives(from, grads, sums);
  }

  /// Adds the sums to the image's.
  void add_to(const Sums<Acc>& sums) {
    if (!uniform_) fold();
    Window<Acc, 1>(sum_, transfer_).add_to(sums, tile_, 1);
  }

 private:
  /// Scatters, adds derivatives, or both: what takes a cell to where it lies is then done once.
  template <bool kScatter, bool kDerive>
  void for_each_cell(const Tap<Acc> to, const Tap<Acc> from, const GradRows<Acc> grads, Acc* __restrict sums) const {
    // Parameters and what is read here are copies, which stores through pointers cannot change.
    char* const quads = reinterpret_cast<char*>(quad_);
    const char* const pairs = reinterpret_cast<const char*>(pair_);
    const bool one_axis = from.centered_y || from.centered_x;
    const Acc offset = from.centered_y ? from.offset_x : from.offset_y;
    grads.for_each_run(tile_, [&](int first, int length, const Acc* gradients) {
      for (int i = 0; i < length; i += M) {
        const int n = first + i;
        const CellOffsets<Acc> cells(to, n);
        const V grad = load(gradients + i), fy = load(to.fy + n), fx = load(to.fx + n);
        if constexpr (kDerive) {
          Corners<Acc> corners;
          corners.load([&](int j) { return pairs + cells[j]; });
          const V(&q)[4] = corners.q;
          const V change = one_axis ? ((from.centered_y ? q[2] : q[1]) - q[0]) * offset
                                    : from.offset_y * slope_y(q[0], q[2], q[1], q[3], fx) +
                                          from.offset_x * slope_x(q[0], q[2], q[1], q[3], fy);
          store(load(sums + n) + grad * change, sums + n);
        }
        if constexpr (kScatter) {
          const Weights<V> weights(fy, fx);
          Corners<Acc> shares{{weights.a() * grad, to.whole_y ? V{} : weights.c() * grad, to.whole_x ? V{} : weights.b() * grad,
                               to.whole_y || to.whole_x ? V{} : weights.d() * grad}};
          shares.add_to([&](int j) { return quads + 2 * cells[j]; });
        }
        prefetch(gradients + i + grads.next, sizeof(V));
      }
    });
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

  /// The corners of the cells of M positions.
  void gather(const Tap<Acc>& tap, int n, Corners<Acc>& corners) const {
    const char* const pairs = reinterpret_cast<const char*>(pair_);
    const CellOffsets<Acc> cells(tap, n);
    corners.load([&](int i) { return pairs + cells[i]; });
  }

  /// Adds quads to the sums of pixels. A row's last vector runs on into the next row, whose part of it is nobody's. The last
  /// cell of a row is no tap's, so that what lies to the left of a row is 0.
  void fold() {
    const int pitch = tile_.x.extent;
    Acc* const carried = static_cast<Acc*>(transfer_);  // to the next row
    std::fill_n(carried, pitch + M, Acc(0));
    for (int r = 0; r < tile_.y.extent; ++r) {
      const Acc* const quads = quad_ + 4 * std::int64_t{r} * pitch;
      Acc* const row = sum_ + std::int64_t{r} * pitch;
      for (int x = 0; x < pitch; x += M) {
        V sums, below;
        Corners<Acc>::fold(quads + 4 * x - 2, sums, below);
        sums += load(carried + x);
        store(below, carried + x);
        if (x + M <= pitch) {
          store(load(row + x) + sums, row + x);
        } else {
          Acc last[M];
          store(sums, last);
          for (int i = 0; i < pitch - x; ++i) row[x + i] += last[i];
        }
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
