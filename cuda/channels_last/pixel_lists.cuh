#pragma once

// Additions to pixels that several taps of a block share, made one before they go to L2:
//
//   batch of taps --each corner of a position's tap--> entry: what the position's query and gradient are multiplied by
//                                                        |
//   window     +------------------+                      v
//              |  o   o-e-e   o   |   a list of entries for each pixel that the batch reaches, and each unit of its lanes
//              |  o-e  o   o-e-e-e|   (heads.cuh)
//              +------------------+
//   each list --the lanes of its unit: entry x the position's values, added up in registers--> one addition in L2
//
// Lists are linked through shared memory: an entry costs one exchange there, and needs neither a count nor an order. A batch
// whose window has more lists than there is room for, as wide rates make it, has none: it adds to L2 tap by tap.

#include <cfloat>
#include <climits>

#include "heads.cuh"
#include "scatter.cuh"

namespace ddu::cuda {

/// Between which rates, rows and columns the positions of a warp or of a block lie.
struct Reach {
  float low, high;  // of the rates that are finite
  int top, bottom, left, right;

  __device__ static Reach none() { return {FLT_MAX, -FLT_MAX, INT_MAX, INT_MIN, INT_MAX, INT_MIN}; }
  __device__ void include(const Reach& other) {
    low = min(low, other.low);
    high = max(high, other.high);
    top = min(top, other.top);
    bottom = max(bottom, other.bottom);
    left = min(left, other.left);
    right = max(right, other.right);
  }
  /// Of a warp, the same in all lanes.
  template <class Work>
  __device__ static Reach of_warp(const RowParams<float>& p, const Work& work, const float* rates) {
    Reach reach = none();
    const int count = work.any ? int(min(p.positions - work.first_position, std::int64_t{work.run})) : 0;
    __syncwarp();  // the rates are there
#pragma unroll 1
    for (int i = int(threadIdx.x) % 32; i < count; i += 32) {
      int y, x;
      work.place(p, i, y, x);
      const bool finite = is_finite(rates[i]);
      reach.include({finite ? rates[i] : FLT_MAX, finite ? rates[i] : -FLT_MAX, y, y, x, x});
    }
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
      reach.include({__shfl_xor_sync(~0u, reach.low, step), __shfl_xor_sync(~0u, reach.high, step),
                     __shfl_xor_sync(~0u, reach.top, step), __shfl_xor_sync(~0u, reach.bottom, step),
                     __shfl_xor_sync(~0u, reach.left, step), __shfl_xor_sync(~0u, reach.right, step)});
    }
    return reach;
  }
};

/// Pixels of the image that a batch of taps reaches, row by row.
struct PixelWindow {
  int first_y, first_x, rows, columns;

  PixelWindow() = default;
  __device__ PixelWindow(const RowParams<float>& p, const Reach& reach, int first_tap, int last_tap) {
    auto first_column = unsigned(first_tap), last_column = unsigned(last_tap);
    const int first_row = int(p.by_kernel_w.take(first_column)), last_row = int(p.by_kernel_w.take(last_column));
    const bool one_row = first_row == last_row;
    span(p.y, reach, reach.top, reach.bottom, first_row, last_row, first_y, rows);
    span(p.x, reach, reach.left, reach.right, one_row ? int(first_column) : 0, one_row ? int(last_column) : p.kernel_w - 1,
         first_x, columns);
  }
  __device__ int pixels() const { return rows * columns; }
  __device__ int index(int y, int x) const { return (y - first_y) * columns + x - first_x; }

 private:
  // A cell grows with its position, and that with offset x rate, whose extremes are products of the extremes of both.
  __device__ static void span(const Sampler<float>& axis, const Reach& reach, int from, int to, int first_tap, int last_tap,
                              int& first, int& count) {
    int least = INT_MAX, most = INT_MIN;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float offset = axis.offset(i & 1 ? last_tap : first_tap), rate = i & 2 ? reach.high : reach.low;
      least = min(least, axis.cell(axis.base(from), offset, rate).index);
      most = max(most, axis.cell(axis.base(to), offset, rate).index + 1);
    }
    first = min(max(least, 0), axis.size - 1);
    count = min(max(most, 0), axis.size - 1) - first + 1;
  }
};

/// The lists of a block, in its shared memory. kN: channels of a lane, and floats of a position's values.
template <int kN>
struct PixelLists {
  using Values = Vec<float, kN>;
  struct alignas(16) Entry {
    float of_key, of_value;  // what query and gradient are multiplied by
    int values;              // where those of the position start
    int before;              // the entry that came before this one, or kNone
  };
  // With so many entries of at most 16 bytes, two blocks of a multiprocessor of 228 KB have room beside all else they keep.
  static constexpr int kLists = 2048, kMostEntries = 3584, kNone = -1;
  static constexpr int kReaches = kLists * int(sizeof(int)), kPixels = kReaches + kRowWarps * int(sizeof(Reach));

  char* shared;
  Entry* entries;  // [tap of the batch, position, unit, corner]
  PixelWindow window;
  bool any = false;  // whether this batch has lists

  /// [pixel of the window, unit]: the entry that came last.
  __device__ int* last() const { return reinterpret_cast<int*>(shared); }
  /// Of each warp.
  __device__ Reach* reaches() const { return reinterpret_cast<Reach*>(shared + kReaches); }
  /// Of each warp's table: the window's pixel at which a tap starts.
  __device__ int* pixels(int run) const {
    return reinterpret_cast<int*>(shared + kPixels) + int(threadIdx.x) / 32 * TapTable<float, true>::entries(run);
  }
  __host__ __device__ static int bytes_before_entries(int run) {
    return kPixels + kRowWarps * TapTable<float, true>::entries(run) * int(sizeof(int));
  }
  static int entries_of_tap(const HeadParams<float>& p) { return 4 * kRowWarps * p.run << (p.log_lanes - p.log_unit_lanes); }
  static int bytes(const HeadParams<float>& p) {
    return bytes_before_entries(p.run) + batch(p) * entries_of_tap(p) * int(sizeof(Entry));
  }
  /// Taps of a batch: as there is room for, in whole rows of the kernel if one fits. 0 where there is room for none.
  static int batch(const HeadParams<float>& p) {
    const int most = std::min(kMostEntries / entries_of_tap(p), p.taps);
    return most >= p.kernel_w ? most / p.kernel_w * p.kernel_w : most;
  }

  __device__ PixelLists(char* shared, int run)
      : shared(shared), entries(reinterpret_cast<Entry*>(shared + bytes_before_entries(run))) {}

  /// Empties them, and tells where the positions lie. For a whole block.
  template <class Work>
  __device__ void start(const RowParams<float>& p, const Work& work, const float* rates) const {
    const Reach mine = Reach::of_warp(p, work, rates);
    if (threadIdx.x % 32 == 0) reaches()[threadIdx.x / 32] = mine;
    for (int i = int(threadIdx.x); i < kLists; i += kRowThreads) last()[i] = kNone;
    __syncthreads();
  }
  /// Begins a batch of taps.
  __device__ void begin(const HeadParams<float>& p, int first_tap, int last_tap) {
    Reach reach = Reach::none();
#pragma unroll 1
    for (int warp = 0; warp < kRowWarps; ++warp) reach.include(reaches()[warp]);
    window = PixelWindow(p, reach, first_tap, last_tap);
    any = window.rows <= kLists && window.columns <= kLists && (window.pixels() << log_units(p)) <= kLists;
  }
  /// Takes note of where a tap of the warp's table starts.
  __device__ __forceinline__ void note(int run, int table_entry, int y, int x) const {
    if (any) pixels(run)[table_entry] = window.index(y, x);
  }
  /// Adds corner `corner` of a tap, the `index`th of the batch's taps, positions and units, to its list. Its Entry without
  /// `before` is `entry`.
  __device__ __forceinline__ void add(const HeadParams<float>& p, int index, int corner, int first_pixel, int unit,
                                      Entry entry) const {
    const int pixel = first_pixel + (corner & 1) + (corner >> 1) * window.columns, at = index * 4 + corner;
    entry.before = atomicExch(last() + ((pixel << log_units(p)) + unit), at);
    VecBits<Vec<int, 4>>::write(reinterpret_cast<Vec<int, 4>&>(entries[at]), reinterpret_cast<const Vec<int, 4>&>(entry));
  }
  /// Adds the lists' sums to those of the images, unless null, and empties them. `queries` and `grads` are the positions'
  /// values, of all vectors of a position. For a whole block.
  template <class Work>
  __device__ void add_up(const HeadParams<float>& p, const Work& work, const Values* queries, const Values* grads, float* keys,
                         float* values) const {
    __syncthreads();
    const int unit = work.vector >> p.log_unit_lanes, count = window.pixels();
    const bool leads = (work.vector & ((1 << p.log_unit_lanes) - 1)) == 0;
    const std::int64_t first = work.pixels(p);
#pragma unroll 1
    for (int start = 0; start < count; start += kRowThreads >> p.log_lanes) {
      const int pixel = start + (int(threadIdx.x) >> p.log_lanes);
      int* list = last() + ((pixel << log_units(p)) + unit);
      int next = pixel < count ? *list : kNone;
      __syncwarp();
      if (next == kNone) continue;
      if (leads) *list = kNone;
      float key[kN] = {}, value[kN] = {};
#pragma unroll 1
      do {
        const auto bits = VecBits<Vec<int, 4>>::read(reinterpret_cast<const Vec<int, 4>&>(entries[next]));
        const Entry entry{__int_as_float(bits.value[0]), __int_as_float(bits.value[1]), bits.value[2], bits.value[3]};
        const Values query = VecBits<Values>::read(queries[entry.values + work.vector]),
                     grad = VecBits<Values>::read(grads[entry.values + work.vector]);
        next = entry.before;
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          key[c] += entry.of_key * query.value[c];
          value[c] += entry.of_value * grad.value[c];
        }
      } while (next != kNone);
      if (work.channels <= 0) continue;
      const int y = small_quotient(pixel, window.columns), x = pixel - y * window.columns;
      const std::int64_t to = first + (std::int64_t{window.first_y + y} * p.width + window.first_x + x) * p.rows.pixel;
      if (keys) add_channels<true>(keys + to, key, kN);
      if (values) add_channels<true>(values + to, value, kN);
    }
    __syncthreads();
  }

 private:
  __device__ __forceinline__ static int log_units(const HeadParams<float>& p) { return p.log_lanes - p.log_unit_lanes; }
};

}  // namespace ddu::cuda
