#pragma once

// A tile: the sampling geometry of a region of output positions, worked out once and reused over channels. Internal linkage:
// compiled once per instruction set.

#include <algorithm>
#include <cstdint>

#include "../half.h"
#include "../sampling.h"
#include "kernels.h"

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

template <class Acc>
struct Tile {
  static constexpr int kPositions = Tiling::kPositions;
  static constexpr int kEntries = Tiling::kEntries;

  /// The cells of one axis, tap by tap: offset[k * padded + n] of tap k and position n, in pixels of the window.
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
  int padded;              // whole blocks: the positions beyond count are like the first,
                           // and nobody's
  bool all_finite = true;  // no rate of the tile is NaN or infinite
  bool fits;               // the taps fit the buffers
  Acc rate[kPositions];    // 0 where it is not finite
  Acc poison[kPositions];  // NaN where the rate is not finite, else 0
  Taps y{offsets_, fractions_, 0, 0};
  Taps x{offsets_, fractions_, 0, 0};

  Tile(const Geometry& g, const void* map, DType map_type, std::int64_t map_plane, const Region& r)
      : geometry(g),
        sample_y(g.h),
        sample_x(g.w),
        region(r),
        count(static_cast<int>(r.rows * r.columns)),
        padded((count + 15) / 16 * 16) {
    for_each_run(
        [&](int n, std::int64_t position, int length) { load_rates(map, map_type, map_plane + position, length, rate + n); });
    std::fill(rate + count, rate + padded, Acc(0));
    Acc poisoned = 0;
    for (int n = 0; n < padded; ++n) {
      poison[n] = nan_unless_finite(rate[n]);
      poisoned += poison[n];
    }
    all_finite = poisoned == 0;
    if (!all_finite) {
      for (int n = 0; n < padded; ++n) rate[n] = is_finite(rate[n]) ? rate[n] : Acc(0);
    }
    const std::int64_t rows = g.h.kernel_size * padded;
    fits = rows + g.w.kernel_size * padded <= kEntries;
    if (!fits) return;
    x = {offsets_ + rows, fractions_ + rows, 0, 0};
    std::int32_t base_y[kPositions], base_x[kPositions];
    std::fill(base_y, base_y + padded, sample_y.base(static_cast<std::int32_t>(r.first_row)));
    std::fill(base_x, base_x + padded, sample_x.base(static_cast<std::int32_t>(r.first_column)));
    for (int row = 0, n = 0; row < r.rows; ++row) {
      for (int column = 0; column < r.columns; ++column, ++n) {
        base_y[n] += row * sample_y.stride;
        base_x[n] += column * sample_x.stride;
      }
    }
    place(sample_y, g.h.kernel_size, base_y, y);
    place(sample_x, g.w.kernel_size, base_x, x);
    for (std::int64_t i = 0; i < rows; ++i) y.offset[i] *= x.extent;
  }

  /// Whether a corner of a tap may lie in these rows of the image.
  bool reaches(std::int64_t first_row, std::int64_t last_row) const {
    return !fits || (y.first < last_row && y.first + y.extent > first_row);
  }

  /// Runs of positions that are contiguous in the output: body(first of the tile, first of the output, length).
  template <class Body>
  void for_each_run(Body body) const {
    const std::int64_t width = geometry.w.out_size;
    const bool whole = region.columns == width;
    const int runs = whole ? 1 : static_cast<int>(region.rows), length = count / runs;
    for (int r = 0; r < runs; ++r) body(r * length, (region.first_row + r) * width + region.first_column, length);
  }

 private:
  void place(const Sampler<Acc> sampler, std::int64_t kernel_size, const std::int32_t* base, Taps& taps) const {
    const int positions = padded;  // copies, which stores through pointers cannot change
    std::int32_t least = INT32_MAX, most = INT32_MIN;
    for (int k = 0; k < kernel_size; ++k) {
      const Acc offset = sampler.offset(k);
      std::int32_t* index = taps.offset + k * positions;
      Acc* fraction = taps.fraction + k * positions;
      for (int n = 0; n < positions; ++n) {
        const Cell<Acc> cell = sampler.cell(base[n], offset, rate[n]);
        index[n] = cell.index;
        fraction[n] = cell.fraction;
        least = std::min(least, cell.index);
        most = std::max(most, cell.index);
      }
    }
    taps.first = least;
    taps.extent = most - least + 2;
    const std::int64_t entries = kernel_size * positions;
    for (std::int64_t i = 0; i < entries; ++i) taps.offset[i] -= least;
  }

  std::int32_t offsets_[kEntries];
  Acc fractions_[kEntries];
};

}  // namespace
}  // namespace ddu::cpu
