#pragma once

// A tile: the sampling geometry of a region of output positions, worked out once and reused over channels, and the window
// of the zero-extended input that holds all its taps. Internal linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>

#include "../half.h"
#include "../sampling.h"
#include "kernels.h"
#include "pack.h"

namespace ddu::cpu {
namespace {

template <class T>
const T* at(const void* base, std::int64_t index) {
  return static_cast<const T*>(base) + index;
}
template <class T>
T* at(void* base, std::int64_t index) {
  return static_cast<T*>(base) + index;
}

inline void load_rates(const void* map, DType type, std::int64_t index, int count, float* rates) {
  if (type == DType::float16) return widen(at<float16>(map, index), rates, count);
  if (type == DType::bfloat16) return widen(at<bfloat16>(map, index), rates, count);
  return widen(at<float>(map, index), rates, count);
}
inline void load_rates(const void* map, DType, std::int64_t index, int count, double* rates) {
  widen(at<double>(map, index), rates, count);
}

/// Pixels that a window may have: two of them, one for values and one for gradients, fit the cache beside each other.
template <class P>
constexpr int kWindow = 80 * 1024 / sizeof(P);

template <class Acc>
struct Tile {
  static constexpr int kPositions = Tiling::kPositions;
  static constexpr int kEntries = Tiling::kEntries;

  /// The cells of one axis, tap by tap: offset[k * count + n] of tap k and position n, in pixels of the window.
  struct Taps {
    std::int32_t* offset;
    Acc* fraction;
    std::int32_t first;   // pixel where the window starts
    std::int32_t extent;  // pixels that it spans
  };

  const Geometry& geometry;
  Sampler<Acc> sample_y, sample_x;
  Region region;
  int count;
  bool all_finite = true;  // no rate of the tile is NaN or infinite
  bool fits;               // the taps fit the buffers
  Acc rate[kPositions];    // 0 where it is not finite
  Acc poison[kPositions];  // NaN where the rate is not finite, else 0
  Taps y{offsets_, fractions_, 0, 0};
  Taps x{offsets_, fractions_, 0, 0};

  Tile(const Geometry& g, const void* map, DType map_type, std::int64_t map_plane, const Region& r)
      : geometry(g), sample_y(g.h), sample_x(g.w), region(r), count(static_cast<int>(r.rows * r.columns)) {
    for_each_run(
        [&](int n, std::int64_t position, int length) { load_rates(map, map_type, map_plane + position, length, rate + n); });
    for (int n = 0; n < count; ++n) {
      poison[n] = rate[n] - rate[n];
      all_finite = all_finite && is_finite(rate[n]);
    }
    if (!all_finite) {
      for (int n = 0; n < count; ++n) rate[n] = is_finite(rate[n]) ? rate[n] : Acc(0);
    }
    const std::int64_t rows = g.h.kernel_size * count;
    fits = rows + g.w.kernel_size * count <= kEntries;
    if (!fits) return;
    x = {offsets_ + rows, fractions_ + rows, 0, 0};
    place(sample_y, g.h, true, y);
    place(sample_x, g.w, false, x);
    for (std::int64_t i = 0; i < rows; ++i) y.offset[i] *= x.extent;
  }

  /// Whether the window holds in a buffer of `pixels`.
  bool window_fits(std::int64_t pixels) const { return fits && std::int64_t{y.extent} * x.extent <= pixels; }

  struct Position {
    std::int32_t y, x;
  };
  Position position(int n) const {
    return {static_cast<std::int32_t>(region.first_row + n / region.columns),
            static_cast<std::int32_t>(region.first_column + n % region.columns)};
  }

  /// Runs of positions that are contiguous in the output: body(first of the tile, first of the output, length).
  template <class Body>
  void for_each_run(Body body) const {
    const std::int64_t width = geometry.w.out_size;
    const bool whole = region.columns == width;
    const int runs = whole ? 1 : static_cast<int>(region.rows), length = count / runs;
    for (int r = 0; r < runs; ++r) body(r * length, (region.first_row + r) * width + region.first_column, length);
  }

  /// Whether tap k never leaves its pixel, so that the second corner of its cell has weight 0.
  static bool still(const Sampler<Acc>& sampler, std::int64_t k) {
    return sampler.half == 0 && sampler.offset(static_cast<int>(k)) == 0;
  }

  /// Copies the window of `used` planes, zeros outside the image. Returns whether all of it is finite.
  template <int N, class T>
  bool load(const T* planes, int used, Pack<Acc, N>* window) const {
    using P = Pack<Acc, N>;
    P poison{};
    for (std::int32_t r = 0; r < y.extent; ++r, window += x.extent) {
      const Columns columns = inside(r);
      std::fill_n(window, columns.left, P{});
      for_each_block<N>(columns.right - columns.left, [&](int start, int, int length) {
        P block[kBlock<N>];
        load_block<N>(planes + columns.pixel + start, geometry.pixels(), used, length, block);
        for (int i = 0; i < length; ++i) {
          window[columns.left + start + i] = block[i];
          poison += block[i] - block[i];  // NaN as soon as one is not finite
        }
      });
      std::fill(window + columns.right, window + x.extent, P{});
    }
    Acc lanes[N];
    std::memcpy(lanes, &poison, sizeof poison);
    return std::all_of(lanes, lanes + N, [](Acc lane) { return lane == 0; });
  }

  /// Adds a window onto `used` planes, leaving out what lies outside the image.
  template <int N>
  void add(const Pack<Acc, N>* window, int used, Acc* planes) const {
    using P = Pack<Acc, N>;
    for (std::int32_t r = 0; r < y.extent; ++r, window += x.extent) {
      const Columns columns = inside(r);
      for_each_block<N>(columns.right - columns.left, [&](int start, int done, int length) {
        P sums[kBlock<N>];
        Acc* row = planes + columns.pixel + start;
        load_block<N>(row, geometry.pixels(), used, length, sums);
        for (int i = done; i < length; ++i) sums[i] += window[columns.left + start + i];
        store_block<N>(sums, row, geometry.pixels(), used, length);
      });
    }
  }

 private:
  /// The part [left, right) of a window's row that lies inside the image, and the pixel where it starts.
  struct Columns {
    std::int32_t left, right;
    std::int64_t pixel;
  };
  Columns inside(std::int32_t row) const {
    const std::int32_t height = sample_y.size, width = sample_x.size, iy = y.first + row;
    if (iy < 0 || iy >= height) return {0, 0, 0};
    const std::int32_t left = std::clamp(-x.first, 0, x.extent), right = std::clamp(width - x.first, left, x.extent);
    return {left, right, std::int64_t{iy} * width + x.first + left};
  }

  void place(const Sampler<Acc>& sampler, const Axis& axis, bool vertical, Taps& taps) const {
    std::int32_t base[kPositions];
    for (int n = 0; n < count; ++n) base[n] = sampler.base(vertical ? position(n).y : position(n).x);
    std::int32_t least = INT32_MAX, most = INT32_MIN;
    for (std::int64_t k = 0; k < axis.kernel_size; ++k) {
      const Acc offset = sampler.offset(static_cast<int>(k));
      std::int32_t* index = taps.offset + k * count;
      Acc* fraction = taps.fraction + k * count;
      for (int n = 0; n < count; ++n) {
        const Cell<Acc> cell = sampler.cell(base[n], offset, rate[n]);
        index[n] = cell.index;
        fraction[n] = cell.fraction;
        least = std::min(least, cell.index);
        most = std::max(most, cell.index);
      }
    }
    taps.first = least;
    taps.extent = most - least + 2;
    for (std::int64_t i = 0; i < axis.kernel_size * count; ++i) taps.offset[i] -= least;
  }

  std::int32_t offsets_[kEntries];
  Acc fractions_[kEntries];
};

}  // namespace
}  // namespace ddu::cpu
