#pragma once

// A tile: the sampling geometry of a run of output positions, worked out once and reused over channels, and the window of
// the zero-extended input that holds all its taps. Internal linkage: compiled once per instruction set.

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

template <class T, class Acc>
void widen_row(const void* source, std::int64_t index, int count, Acc* target) {
  const T* values = at<T>(source, index);
  for (int i = 0; i < count; ++i) target[i] = widen(values[i]);
}

inline void load_rates(const void* map, DType type, std::int64_t index, int count, float* rates) {
  if (type == DType::float16) return widen_row<float16>(map, index, count, rates);
  if (type == DType::bfloat16) return widen_row<bfloat16>(map, index, count, rates);
  return widen_row<float>(map, index, count, rates);
}
inline void load_rates(const void* map, DType, std::int64_t index, int count, double* rates) {
  widen_row<double>(map, index, count, rates);
}

template <class Acc>
struct Tile {
  static constexpr int kPositions = 256;
  static constexpr int kEntries = 4096;       // taps of both axes * positions
  static constexpr int kWindow = 64 * 1024 / sizeof(float) - 64;  // elements of a window

  /// The cells of one axis, tap by tap: offset[k * count + n] of tap k and position n, in window elements.
  struct Taps {
    std::int32_t* offset;
    Acc* fraction;
    std::int32_t first;   // pixel where the window starts
    std::int32_t extent;  // pixels that it spans
  };

  const Geometry& geometry;
  Sampler<Acc> sample_y, sample_x;
  int count;
  std::int64_t first_position;
  bool all_finite = true;  // no rate of the tile is NaN or infinite
  bool fits;               // its taps and window fit the buffers; if not, cells are worked out one by one
  Acc rate[kPositions];
  Taps y{offsets_, fractions_, 0, 0};
  Taps x{offsets_, fractions_, 0, 0};

  Tile(const Geometry& g, const void* map, DType map_type, const Block& block)
      : geometry(g),
        sample_y(g.h),
        sample_x(g.w),
        count(static_cast<int>(block.positions)),
        first_position(block.first_position) {
    load_rates(map, map_type, g.map_plane(block.image, block.group) + first_position, count, rate);
    for (int n = 0; n < count; ++n) all_finite = all_finite && is_finite(rate[n]);
    const std::int64_t rows = g.h.kernel_size * count;
    fits = rows + g.w.kernel_size * count <= kEntries;
    if (!fits) return;
    x = {offsets_ + rows, fractions_ + rows, 0, 0};
    std::int32_t base_y[kPositions], base_x[kPositions];
    for (int n = 0; n < count; ++n) {
      const Position p = position(n);
      base_y[n] = p.base_y;
      base_x[n] = p.base_x;
    }
    place(sample_y, g.h, base_y, y);
    place(sample_x, g.w, base_x, x);
    fits = std::int64_t{y.extent} * x.extent <= kWindow;
    if (fits) {
      for (std::int64_t i = 0; i < rows; ++i) y.offset[i] *= x.extent;
    }
  }

  struct Position {
    std::int32_t base_y, base_x;
  };
  Position position(int n) const {
    const std::int64_t flat = first_position + n;
    return {sample_y.base(static_cast<std::int32_t>(flat / geometry.w.out_size)),
            sample_x.base(static_cast<std::int32_t>(flat % geometry.w.out_size))};
  }

  /// Whether tap k never leaves its pixel, so that the second corner of its cell has weight 0.
  static bool still(const Sampler<Acc>& sampler, std::int64_t k) {
    return sampler.half == 0 && sampler.offset(static_cast<int>(k)) == 0;
  }

  /// Copies the window of one plane, zeros outside the image. Returns whether all of it is finite.
  template <class T>
  bool load(const T* plane, Acc* window) const {
    const std::int32_t height = sample_y.size, width = sample_x.size;
    const std::int32_t left = std::clamp(-x.first, 0, x.extent), right = std::clamp(width - x.first, left, x.extent);
    Acc poison = 0;
    for (std::int32_t r = 0; r < y.extent; ++r, window += x.extent) {
      const std::int32_t iy = y.first + r;
      if (iy < 0 || iy >= height) {
        std::fill_n(window, x.extent, Acc(0));
        continue;
      }
      const T* row = plane + std::int64_t{iy} * width + x.first;
      std::fill_n(window, left, Acc(0));
      for (std::int32_t i = left; i < right; ++i) {
        window[i] = widen(row[i]);
        poison += window[i] - window[i];  // NaN as soon as one is not finite
      }
      std::fill(window + right, window + x.extent, Acc(0));
    }
    return poison == 0;
  }

  /// Adds a window onto a plane, leaving out what lies outside the image.
  void add(const Acc* window, Acc* plane) const {
    const std::int32_t height = sample_y.size, width = sample_x.size;
    const std::int32_t left = std::clamp(-x.first, 0, x.extent), right = std::clamp(width - x.first, left, x.extent);
    for (std::int32_t r = 0; r < y.extent; ++r, window += x.extent) {
      const std::int32_t iy = y.first + r;
      if (iy < 0 || iy >= height) continue;
      Acc* row = plane + std::int64_t{iy} * width + x.first;
      for (std::int32_t i = left; i < right; ++i) row[i] += window[i];
    }
  }

 private:
  void place(const Sampler<Acc>& sampler, const Axis& axis, const std::int32_t* base, Taps& taps) const {
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
