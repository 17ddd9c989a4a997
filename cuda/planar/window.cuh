#pragma once

// A window: the part of the zero-extended input that holds every tap of a tile. It lies in shared memory with a zero wherever
// there is no pixel, so that no tap needs a bounds test.
//
//       first_x
//          |<------ columns ------>|<- padding ->
//   first_y+-----------------------+..       rows, columns   from the largest |rate| of the tile
//          |    0   0   0   0   0  |         first_x, columns   multiples of four pixels, so that four can move at once
//          | 0 +----------------   |         pitch   columns + padding: from one row to the next
//     rows | 0 | image   o   o   o |
//          | 0 |         o   X   o |         X  a position of the tile, o  its taps
//          | 0 |         o   o   o |
//          +-----------------------+
//
// A tile whose window has more than Params::capacity elements has none: it is marked, and left to wide tiles, where a backward
// has them, or to the channels-last kernels.
// Cells lie in [-2, size] whatever the rate is (Cell), so that no window is larger than the image with two rows and columns of
// zeros around it: where that one fits, nothing is ever left, and the host launches nothing for it.

#include <algorithm>
#include <cfloat>
#include <climits>

#include "../core/position.cuh"
#include "../core/reduce.cuh"

namespace ddu::cuda {

/// Columns of a window are less: small_quotient divides by them.
constexpr int kMostColumns = 512;

/// Elements of the largest window that any rates make, where `padding` follow each row; INT_MAX where it has too many columns.
inline std::int64_t largest_window(const Geometry& g, int padding) {
  const std::int64_t rows = g.h.size + 4, columns = (g.w.size + 2 + 4 + 3) / 4 * 4;  // from a multiple of four on, at least -4
  return columns < kMostColumns ? rows * (columns + padding) : INT_MAX;
}

struct Window {
  int first_y, first_x, rows, columns;
  int pitch;    // elements from one row to the next
  float reach;  // the largest |rate|

  /// The window of a tile, from the rates of its positions. kPadding elements follow each row.
  template <int kThreads, int kPadding, class Acc>
  __device__ static Window of_tile(const Params<Acc>& p, const WorkTile& work, const Position<Acc>& position, int* slots) {
    return of_reach<kPadding>(p, work, reach_of_tile<kThreads>(position, slots));
  }
  /// The largest |rate| of a tile.
  template <int kThreads, class Acc>
  __device__ static Acc reach_of_tile(const Position<Acc>& position, int* slots) {
    // Floats that are not negative have the order of their bits.
    const int bits = position.sampled() ? __float_as_int(not_less_than(position.rate < 0 ? -position.rate : position.rate)) : 0;
    return __int_as_float(block_max<kThreads>(bits, slots));
  }
  template <int kPadding, class Acc>
  __device__ static Window of_reach(const Params<Acc>& p, const WorkTile& work, Acc reach) {
    const int oy = work.tile_y * p.tile_height, ox = work.tile_x * p.tile_width;
    Window window;
    span(p.y, p.kernel_h, oy, min(oy + p.tile_height, p.out_height) - 1, reach, window.first_y, window.rows);
    span(p.x, p.kernel_w, ox, min(ox + p.tile_width, p.out_width) - 1, reach, window.first_x, window.columns);
    window.columns = (window.columns + (window.first_x & 3) + 3) & ~3;
    window.first_x &= ~3;
    window.pitch = window.columns + kPadding;
    window.reach = float(reach);
    return window;
  }
  __device__ bool fits(int capacity) const { return std::int64_t{rows} * pitch <= capacity && columns < kMostColumns; }
  __device__ int elements() const { return rows * pitch; }

  /// Whether such rates would fit anywhere in a large image. At its edges windows are smaller; but a few tiles with windows,
  /// among many without, keep the device waiting: they take as long as all would.
  __device__ bool fits_anywhere(const Params<float>& p, int capacity) const {
    return inner_extent(p.y, p.tile_height, p.kernel_h) * (inner_extent(p.x, p.tile_width, p.kernel_w) + 3) <= float(capacity);
  }

  /// Whether the window stays within the pixels of its tile and of the tiles around it.
  __device__ bool near_tile(const Params<float>& p, const WorkTile& work) const {
    return near_tile(p.y, first_y, rows, work.tile_y, p.tile_height) &&
           near_tile(p.x, first_x, columns, work.tile_x, p.tile_width);
  }

  /// Pixels along an axis that `positions` reach with such rates, but for what is rounded to whole pixels.
  DDU_HD static float inner_extent(const Sampler<float>& axis, int positions, int kernel, float reach) {
    return float((positions - 1) * axis.stride + 2) + 2 * reach * axis.offset(kernel - 1);
  }
  __device__ float inner_extent(const Sampler<float>& axis, int positions, int kernel) const {
    return inner_extent(axis, positions, kernel, reach);
  }

 private:
  __device__ static bool near_tile(const Sampler<float>& axis, int first, int extent, int tile, int positions) {
    const int from = axis.base(tile * positions), pixels = positions * axis.stride;
    return first >= from - pixels && first + extent <= from + 2 * pixels;
  }

  __device__ static float not_less_than(float rate) { return rate; }
  __device__ static float not_less_than(double rate) { return rate < FLT_MAX ? __double2float_ru(rate) : FLT_MAX; }

  // Offsets are symmetric and cells grow with the position: the extremes are the outer taps of a tile's corners.
  template <class Acc>
  __device__ static void span(const Sampler<Acc>& axis, int kernel, int from, int to, Acc reach, int& first, int& extent) {
    first = axis.cell(axis.base(from), axis.offset(0), reach).index;
    extent = axis.cell(axis.base(to), axis.offset(kernel - 1), reach).index - first + 2;
  }
};

/// The largest |rate| of a tile that may have a window in the middle of the image, before any is rounded to whole pixels. A
/// tile at its edge may have one beyond that; but a few tiles with windows, among many without, keep the device waiting.
inline float most_reach(const Params<float>& p) {
  const auto extent = [](const Sampler<float>& axis, int positions, int kernel, float reach) {
    return std::min(Window::inner_extent(axis, positions, kernel, reach) - 1, float(axis.size + 4));
  };
  float fits = 0, too_much = 1 << 20;
  for (int halvings = 0; halvings < 40; ++halvings) {
    const float reach = (fits + too_much) / 2;
    const bool fit =
        extent(p.y, p.tile_height, p.kernel_h, reach) * extent(p.x, p.tile_width, p.kernel_w, reach) <= float(p.capacity);
    (fit ? fits : too_much) = reach;
  }
  return too_much;
}

/// Where the taps of one thread's position lie in the window. For a kernel size K known at compile time they are worked
/// out once and kept in registers; K = 0 works them out tap by tap.
template <int K>
struct TapCells {
  static constexpr int kCount = K ? K : 1;
  int row[kCount], column[kCount];  // of the window, rows already times its pitch
  float fy[kCount], fx[kCount];

  __device__ TapCells(const Params<float>& p, const Position<float>& position, const Window& window) {
    const bool sampled = position.sampled();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Cell<float> y = p.y.cell(position.base_y, p.y.offset(k), position.rate);
      const Cell<float> x = p.x.cell(position.base_x, p.x.offset(k), position.rate);
      row[k] = sampled ? (y.index - window.first_y) * window.pitch : 0;
      column[k] = sampled ? x.index - window.first_x : 0;
      fy[k] = y.fraction;
      fx[k] = x.fraction;
    }
  }
};

}  // namespace ddu::cuda
