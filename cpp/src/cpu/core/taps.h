#pragma once

// The taps of a tile in windows of Vecs: what they read, what they give back, and how they change with the rate. Internal
// linkage: compiled once per instruction set.

#include <cstdint>

#include "tile.h"

namespace ddu::cpu {
namespace {

/// One tap of a tile: where its cells are in the window, and their fractions.
template <class Acc>
struct Tap {
  const std::int32_t* row;
  const std::int32_t* column;
  const Acc* fy;
  const Acc* fx;
  Acc offset_y, offset_x;
  std::int32_t pitch;  // from a pixel of the window to the one below
  // Whether taps stay in their row or column, whatever the rates are; and whether they are at whole rows or columns now. Either
  // way they need half of the corners.
  bool centered_y, centered_x, whole_y, whole_x;

  Tap(const Tile<Acc>& tile, int ky, int kx)
      : row(tile.y.offset + ky * tile.padded),
        column(tile.x.offset + kx * tile.padded),
        fy(tile.y.fraction + ky * tile.padded),
        fx(tile.x.fraction + kx * tile.padded),
        offset_y(tile.sample_y.offset(ky)),
        offset_x(tile.sample_x.offset(kx)),
        pitch(tile.x.extent),
        centered_y(tile.sample_y.centered(ky)),
        centered_x(tile.sample_x.centered(kx)),
        whole_y(tile.y.whole[ky]),
        whole_x(tile.x.whole[kx]) {}

  /// For a window with values that are not finite: a corner that weighs nothing makes NaN of them. See all_corners_serve().
  Tap& with_all_corners() {
    centered_y = centered_x = whole_y = whole_x = false;
    return *this;
  }
  std::int32_t cell(int n) const { return row[n] + column[n]; }
};

/// body(index, ky, kx) for all taps, in the order of the output.
template <class Body>
void for_each_tap(const Geometry& g, Body body) {
  std::int64_t index = 0;
  for (int ky = 0; ky < g.h.kernel_size; ++ky) {
    for (int kx = 0; kx < g.w.kernel_size; ++kx, ++index) body(index, ky, kx);
  }
}

/// The values of a tap at a block of positions. At whole positions these are the pixels' own, with the sign of a zero.
template <class V, int M, class Acc>
void sample(const Tap<Acc>& tap, int n, const V* window, V (&values)[M]) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.whole_y && tap.whole_x) {
    for (int i = 0; i < M; ++i) values[i] = window[tap.cell(n + i)];
  } else if (tap.whole_y || tap.whole_x) {
    const Acc* fraction = tap.whole_y ? fx : fy;
    const std::int32_t next = tap.whole_y ? 1 : tap.pitch;
    for (int i = 0; i < M; ++i) {
      const V* cell = window + tap.cell(n + i);
      values[i] = interpolate(cell[0], cell[next], fraction[i]);
    }
  } else {
    for (int i = 0; i < M; ++i) {
      const V* cell = window + tap.cell(n + i);
      values[i] = interpolate(cell[0], cell[1], cell[tap.pitch], cell[tap.pitch + 1], fy[i], fx[i]);
    }
  }
}

/// Adds the gradients of a block of positions onto the corners of their cells: the transpose of sample.
template <class V, int M, class Acc>
void scatter(const Tap<Acc>& tap, int n, const V (&grad)[M], V* window) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.whole_y && tap.whole_x) {
    for (int i = 0; i < M; ++i) window[tap.cell(n + i)] += grad[i];
  } else if (tap.whole_y || tap.whole_x) {
    const Acc* fraction = tap.whole_y ? fx : fy;
    const std::int32_t next = tap.whole_y ? 1 : tap.pitch;
    for (int i = 0; i < M; ++i) {
      V* cell = window + tap.cell(n + i);
      const AxisWeights<Acc> weights(fraction[i]);
      cell[0] += weights.first * grad[i];
      cell[next] += weights.second * grad[i];
    }
  } else {
    for (int i = 0; i < M; ++i) {
      V* cell = window + tap.cell(n + i);
      const Weights<Acc> weights(fy[i], fx[i]);
      cell[0] += weights.a() * grad[i];
      cell[1] += weights.b() * grad[i];
      cell[tap.pitch] += weights.c() * grad[i];
      cell[tap.pitch + 1] += weights.d() * grad[i];
    }
  }
}

/// sums += grad * d(value)/d(rate) at a block of positions.
template <class V, int M, class Acc>
void add_derivatives(const Tap<Acc>& tap, int n, const V (&grad)[M], const V* window, V* sums) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.centered_y && tap.centered_x) return;  // the tap does not move
  if (tap.centered_y || tap.centered_x) {
    const Acc offset = tap.centered_y ? tap.offset_x : tap.offset_y;
    const std::int32_t next = tap.centered_y ? 1 : tap.pitch;
    for (int i = 0; i < M; ++i) {
      const V* cell = window + tap.cell(n + i);
      sums[i] += grad[i] * ((cell[next] - cell[0]) * offset);
    }
  } else {
    for (int i = 0; i < M; ++i) {
      const V* cell = window + tap.cell(n + i);
      sums[i] +=
          grad[i] * slope(cell[0], cell[1], cell[tap.pitch], cell[tap.pitch + 1], fy[i], fx[i], tap.offset_y, tap.offset_x);
    }
  }
}

}  // namespace
}  // namespace ddu::cpu
