#pragma once

// The sampling geometry of a region of output positions: see tiling.h. Internal linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>

#include "../../half.h"
#include "../../sampling.h"
#include "scratch.h"

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

/// The rates of a region: what there is of a Tile before its cells are found.
template <class Acc>
class Rates {
 public:
  const Geometry& geometry;
  Sampler<Acc> sample_y, sample_x;
  Region region;
  int count;
  int padded;              // whole blocks
  bool all_finite = true;  // no rate of the region is NaN or infinite
  TileArrays<Acc> arrays;
  Acc* rate;  // 0 where it is not finite
  Acc* nan;   // NaN where the rate is not finite, else 0

  Rates(const Geometry& g, const void* map, DType map_type, std::int64_t map_offset, const Region& r, void* memory)
      : geometry(g),
        sample_y(g.h, g.padding_mode),
        sample_x(g.w, g.padding_mode),
        region(r),
        count(static_cast<int>(r.rows * r.columns)),
        padded(static_cast<int>(round_up<std::int64_t>(count, Tiling::kBlock))),
        arrays(memory, g, padded),
        rate(arrays.rate),
        nan(arrays.nan) {
    for_each_run(
        [&](int n, std::int64_t position, int length) { load_rates(map, map_type, map_offset + position, length, rate + n); });
    std::fill(rate + count, rate + padded, rate[0]);
    std::int32_t nonfinite = 0;  // a truth, in a type that compilers vectorise, unlike sums of floats
    for (int n = 0; n < padded; ++n) {
      nan[n] = nan_unless_finite(rate[n]);
      nonfinite |= nan[n] == 0 ? 0 : 1;
    }
    all_finite = nonfinite == 0;
    if (!all_finite) {
      for (int n = 0; n < padded; ++n) rate[n] = is_finite(rate[n]) ? rate[n] : Acc(0);
    }
  }

  /// Whether a corner of a tap may lie in these rows of the image. A cell moves one way with each of its position's row, its
  /// tap and its rate, so those at the ends of the three say how far the others go, to one pixel: loops over cells may round
  /// their product and sum once or twice.
  bool reaches(std::int64_t first_row, std::int64_t last_row) const {
    Acc least[Tiling::kBlock], most[Tiling::kBlock];
    std::copy_n(rate, Tiling::kBlock, least);
    std::copy_n(rate, Tiling::kBlock, most);
    for (int n = 0; n < padded; n += Tiling::kBlock) {
      for (int i = 0; i < Tiling::kBlock; ++i) least[i] = rate[n + i] < least[i] ? rate[n + i] : least[i];
      for (int i = 0; i < Tiling::kBlock; ++i) most[i] = rate[n + i] > most[i] ? rate[n + i] : most[i];
    }
    std::int32_t first = INT32_MAX, last = INT32_MIN;
    for (const std::int64_t row : {region.first_row, region.first_row + region.rows - 1}) {
      for (const std::int64_t tap : {std::int64_t{0}, geometry.h.kernel_size - 1}) {
        for (const Acc r : {*std::min_element(least, least + Tiling::kBlock), *std::max_element(most, most + Tiling::kBlock)}) {
          const Cell<Acc> cell =
              sample_y.cell(sample_y.base(static_cast<std::int32_t>(row)), sample_y.offset(static_cast<int>(tap)), r);
          first = std::min(first, cell.index - 1);
          last = std::max(last, cell.index + 2);
        }
      }
    }
    return sample_y.pixel(first) < last_row && sample_y.pixel(last) >= first_row;
  }

  /// Runs of positions that are contiguous in the output: body(first of the region, first of the output, length).
  template <class Body>
  void for_each_run(Body body) const {
    region.for_each_run(geometry.w.out_size, body);
  }
};

template <class Acc>
class Tile : public Rates<Acc> {
 public:
  /// The cells of one axis, tap by tap: offset[k * padded + n] of tap k and position n. Of both axes these add up to an
  /// element of the window. The positions beyond count have the cells of the first row and column, and are nobody's.
  struct Taps {
    std::int32_t* offset;
    Acc* fraction;
    bool* whole;          // of tap k: all its fractions are 0, so that the second pixel of its cells weighs nothing
    std::int32_t first;   // pixel where the window starts
    std::int32_t extent;  // pixels that it spans
  };

  bool fits;  // the taps fit the arrays, and their pixels a window
  Taps y, x;

  using Rates<Acc>::padded;
  using Rates<Acc>::sample_y;
  using Rates<Acc>::sample_x;

  Tile(const Geometry& g, const void* map, DType map_type, std::int64_t map_offset, const Region& r, void* memory)
      : Tile(Rates<Acc>(g, map, map_type, map_offset, r, memory)) {}

  explicit Tile(const Rates<Acc>& rates) : Rates<Acc>(rates) {
    const Geometry& g = this->geometry;
    const Region& r = this->region;
    const TileArrays<Acc>& arrays = this->arrays;
    const std::int64_t rows = g.h.kernel_size * padded;
    fits = rows + g.w.kernel_size * padded <= Tiling::kEntries;
    if (!fits) return;
    y = {arrays.offset, arrays.fraction, arrays.whole, 0, 0};
    x = {arrays.offset + rows, arrays.fraction + rows, arrays.whole + g.h.kernel_size, 0, 0};
    std::fill(arrays.base_y, arrays.base_y + padded, sample_y.base(static_cast<std::int32_t>(r.first_row)));
    std::fill(arrays.base_x, arrays.base_x + padded, sample_x.base(static_cast<std::int32_t>(r.first_column)));
    for (int row = 0, n = 0; row < r.rows; ++row) {
      for (int column = 0; column < r.columns; ++column, ++n) {
        arrays.base_y[n] += row * sample_y.stride;
        arrays.base_x[n] += column * sample_x.stride;
      }
    }
    find_cells(sample_y, g.h.kernel_size, arrays.base_y, y);
    find_cells(sample_x, g.w.kernel_size, arrays.base_x, x);
    // Rates that differ widely spread a tile over more pixels than 32 bits count: no window holds those.
    fits = extent() <= static_cast<std::int64_t>(kWindowBytes / sizeof(Acc));
    if (!fits) return;
    for (std::int64_t i = 0; i < rows; ++i) y.offset[i] = (y.offset[i] - y.first) * x.extent - x.first;
  }

  /// Pixels of the window.
  std::int64_t extent() const { return std::int64_t{y.extent} * x.extent; }

 private:
  void find_cells(const Sampler<Acc> sampler, std::int64_t kernel_size, const std::int32_t* __restrict base, Taps& taps) const {
    const int positions = padded;  // copies, which stores through pointers cannot change
    const Acc* __restrict rates = this->rate;
    std::int32_t least = INT32_MAX, most = INT32_MIN;
    for (int k = 0; k < kernel_size; ++k) {
      const Acc offset = sampler.offset(k);
      std::int32_t* __restrict index = taps.offset + k * positions;
      Acc* __restrict fraction = taps.fraction + k * positions;
      std::int32_t between = 0;  // whether a tap lies between pixels
      if (offset == 0) {         // sampler.centered(k): no rate moves it
        const std::int32_t size = sampler.size;
        for (int n = 0; n < positions; ++n) index[n] = std::min(std::max(base[n], -2), size);
        for (int n = 0; n < positions; ++n) {
          least = std::min(least, index[n]);
          most = std::max(most, index[n]);
        }
        std::fill_n(fraction, positions, Acc(0));
      } else {
        for (int n = 0; n < positions; ++n) {
          const Cell<Acc> cell = sampler.cell(base[n], offset, rates[n]);
          index[n] = cell.index;
          fraction[n] = cell.fraction;
          least = std::min(least, cell.index);
          most = std::max(most, cell.index);
          between |= cell.fraction != 0 ? 1 : 0;
        }
      }
      // Asked once for the tap: with the question in the loop above, GCC leaves the loop for zeros a scalar one.
      if (sampler.border && between) {
        between = 0;
        for (int n = 0; n < positions; ++n) {
          fraction[n] = sampler.has_one_pixel(index[n]) ? Acc(0) : fraction[n];
          between |= fraction[n] != 0 ? 1 : 0;
        }
      }
      taps.whole[k] = between == 0;
    }
    taps.first = least;
    taps.extent = most - least + 2;
  }
};

}  // namespace
}  // namespace ddu::cpu
