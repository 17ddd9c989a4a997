#pragma once

// Taps worked out one by one, straight from the image: for tiles whose window does not fit, which are those that reach very
// far. Internal linkage: compiled once per instruction set.

#include <cstdint>

#include "image.h"
#include "tile.h"

namespace ddu::cpu {
namespace {

/// The cell of one tap and its corners a b / c d.
template <class T, class Acc>
struct ScalarCell {
  Pixels<Acc> y, x;
  Acc a, b, c, d;

  ScalarCell(const Tile<Acc>& tile, int n, int ky, int kx, const Image<const T>& input) {
    const Region& r = tile.region;
    y = tile.sample_y.pixels(tile.sample_y.base(static_cast<std::int32_t>(r.first_row + n / r.columns)),
                             tile.sample_y.offset(ky), tile.rate[n]);
    x = tile.sample_x.pixels(tile.sample_x.base(static_cast<std::int32_t>(r.first_column + n % r.columns)),
                             tile.sample_x.offset(kx), tile.rate[n]);
    const auto corner = [&](int down, int right) {
      return has(down, right) ? widen(*input.at(0, (std::int64_t{y.index} + down) * tile.sample_x.size + x.index + right))
                              : Acc(0);
    };
    a = corner(0, 0);
    b = corner(0, 1);
    c = corner(1, 0);
    d = corner(1, 1);
  }

  bool has(int down, int right) const { return (down ? y.second : y.first) && (right ? x.second : x.first); }

  Acc value() const {
    // A pixel's own value keeps the sign of a zero, as a copy does. Not beside what is not finite: see with_all_corners().
    const bool copies =
        y.fraction == 0 && x.fraction == 0 && nan_unless_finite(b) + nan_unless_finite(c) + nan_unless_finite(d) == 0;
    return copies ? a : interpolate(a, b, c, d, y.fraction, x.fraction);
  }
};

template <class T, class Acc>
void sample_scalar(const Tile<Acc>& tile, int ky, int kx, const Image<const T>& input, Acc* values) {
  for (int n = 0; n < tile.count; ++n) values[n] = ScalarCell<T, Acc>(tile, n, ky, kx, input).value();
}

template <class T, class Acc>
void add_derivatives_scalar(const Tile<Acc>& tile, int ky, int kx, const Image<const T>& input, const Acc* grad, Acc* sums) {
  for (int n = 0; n < tile.count; ++n) {
    const ScalarCell<T, Acc> cell(tile, n, ky, kx, input);
    sums[n] += grad[n] * slope(cell.a, cell.b, cell.c, cell.d, cell.y.fraction, cell.x.fraction, cell.y.offset, cell.x.offset);
  }
}

template <class T, class Acc>
void scatter_scalar(const Tile<Acc>& tile, int ky, int kx, const Image<const T>& input, const Acc* grad,
                    const Sums<Acc>& sums) {
  for (int n = 0; n < tile.count; ++n) {
    const ScalarCell<T, Acc> cell(tile, n, ky, kx, input);
    const auto add = [&](int down, int right) {
      const std::int32_t iy = cell.y.index + down, ix = cell.x.index + right;
      if (!cell.has(down, right) || !sums.has(iy)) return;
      *sums.at(0, iy, ix) += corner_weight(down, right, cell.y.fraction, cell.x.fraction) * grad[n];
    };
    add(0, 0);
    add(0, 1);
    add(1, 0);
    add(1, 1);
  }
}

}  // namespace
}  // namespace ddu::cpu
