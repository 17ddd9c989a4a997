#pragma once

// Forward: columns from a window of the input in shared memory.
//
//     forward_kernel, one block: a tile of positions, one a thread, and a run of channels of one group
//
//       largest rate of the tile -> window; too large for shared memory? marked, for channels_last/columns_forward.cuh
//       channels [0, N)    window 0 <- global memory
//       channels [N, 2N)   loads start ......  | columns of [0, N) from window 0
//                          window 1 <- loaded  |
//       channels [2N, 3N)  loads start ......  | columns of [N, 2N) from window 1
//       ...                                      N = TileConfig::vec; blocks of one step have one window
//
// What bounds it is the memory that writes: every tap is hidden behind the stores. So blocks ask L2 for the input in long runs,
// ahead of need, and stores are marked as not read again. Tried and not faster: benchmarks/NOTES.md, "Forward".

#include "../core/dependent_launch.cuh"
#include "../core/memory.cuh"
#include "../core/tile_config.h"
#include "window_load.cuh"
#include "without_window.cuh"

namespace ddu::cuda {

/// Elements behind each row of a window: so that threads of several rows write to other banks.
constexpr int kWindowPadding = 1;

/// The settings of forward_kernel<T, K, kSingleChannel>.
template <class T, int K, bool kSingleChannel>
__host__ __device__ constexpr TileConfig forward_config() {
  constexpr bool half = sizeof(T) == 2;
  constexpr std::size_t one = sizeof(T), two = 2 * sizeof(T);  // windows, each of so many bytes a channel
  // threads, tile width, blocks a multiprocessor, waves, channels: of a step, of a block at most; bytes and number of elements
  if (kSingleChannel) return {256, half ? 32 : 64, 4, 4, 1, 1, 1 * one, 4096};
  if (K == 3 && !half) return {256, 64, 3, 4, 4, 4, 4 * one, 1536};
  if (K == 3) return {256, 64, 2, 1, 8, 32, 8 * two, 1536};
  // Of other sizes all blocks of float32 are of one step: windows may be twice as large, and many taps pay for a block's start.
  if (K != 0) return {256, 32, 3, 4, 4, half ? 16 : 4, 4 * (half ? two : one), 4096};
  return {512, 32, 2, 4, 4, half ? 16 : 4, 4 * (half ? two : one), 4096};
}

/// The columns of one thread's position, N channels at a time.
template <class T, int K, int N>
struct ForwardTaps {
  using Element = Vec<T, N>;
  using Values = FloatVec<N>;

  const Params<float>& p;
  const Position<float>& position;
  const Window& window;
  char* out;              // this position in the first column of the step
  unsigned column_bytes;  // from one column to the next

  __device__ __forceinline__ void store(int tap, int taps, int valid, const Values& v) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j < valid) store_non_temporal(out + std::uint64_t(column_bytes) * unsigned(j * taps + tap), narrow<T>(v.value[j]));
    }
  }

  /// Whether all taps lie on pixels, of this position and of all others of the warp: those must store together, since memory
  /// writes whole lines.
  __device__ __forceinline__ bool on_pixels() const {
    constexpr int kUnroll = K ? K : 1;
    bool on = true;
#pragma unroll kUnroll
    for (int ky = 0; ky < (K ? K : p.kernel_h); ++ky) {
      on = on && p.y.cell(position.base_y, p.y.offset(ky), position.rate).fraction == 0;
    }
#pragma unroll kUnroll
    for (int kx = 0; kx < (K ? K : p.kernel_w); ++kx) {
      on = on && p.x.cell(position.base_x, p.x.offset(kx), position.rate).fraction == 0;
    }
    return !__any_sync(~0u, position.active && !on);
  }

  /// Value of a cell. A tap that is centered in one axis, or on a pixel there, needs only half of its corners: the others weigh
  /// nothing. On a pixel in both it is a copy: a sum with products of zero would make +0 of a -0.
  __device__ __forceinline__ Values sample(const Element* cell, float fy, float fx, bool centered_y, bool centered_x) const {
    const Element* below = cell + window.pitch;
    const Values a = Values::of(cell[0]);
    if (centered_y && centered_x) return a;
    if (centered_y) return interpolate(a, Values::of(cell[1]), fx);
    if (centered_x) return interpolate(a, Values::of(below[0]), fy);
    return interpolate(a, Values::of(cell[1]), Values::of(below[0]), Values::of(below[1]), fy, fx);
  }

  /// All taps, with cells from registers: of both axes for a small kernel, else of the columns, row by row.
  template <bool kOnPixels>
  __device__ __forceinline__ void store_unrolled(const Element* pixels, const TapCells<K>& cells, int valid) const {
    if constexpr (K <= 3) {
#pragma unroll
      for (int ky = 0; ky < K; ++ky) store_row<kOnPixels>(pixels + cells.row[ky], cells, ky, cells.fy[ky], valid);
    } else {
#pragma unroll 1
      for (int ky = 0; ky < K; ++ky) {
        const Cell<float> y = p.y.cell(position.base_y, p.y.offset(ky), position.rate);
        store_row<kOnPixels>(pixels + (y.index - window.first_y) * window.pitch, cells, ky, y.fraction, valid);
      }
    }
  }
  template <bool kOnPixels>
  __device__ __forceinline__ void store_row(const Element* row, const TapCells<K>& cells, int ky, float fy, int valid) const {
#pragma unroll
    for (int kx = 0; kx < K; ++kx) {
      const bool centered_y = kOnPixels || 2 * ky == K - 1, centered_x = kOnPixels || 2 * kx == K - 1;
      store(ky * K + kx, K * K, valid, sample(row + cells.column[kx], fy, cells.fx[kx], centered_y, centered_x));
    }
  }

  /// All taps, with cells worked out one by one. Unless all values are `finite`, every corner counts: one that weighs nothing
  /// may still be NaN; and so do rates that are not finite.
  __device__ __forceinline__ void store_rolled(const Element* pixels, bool finite, bool on_pixels, int valid) const {
    const float nan = nan_unless_finite(position.rate);  // or 0, which is subtracted: added, it would make +0 of a -0
    int tap = 0;
#pragma unroll 1
    for (int ky = 0; ky < p.kernel_h; ++ky) {
      const float offset_y = p.y.offset(ky);
      const Cell<float> y = p.y.cell(position.base_y, offset_y, position.rate);
#pragma unroll 1
      for (int kx = 0; kx < p.kernel_w; ++kx, ++tap) {
        const float offset_x = p.x.offset(kx);
        const Cell<float> x = p.x.cell(position.base_x, offset_x, position.rate);
        const int element = (y.index - window.first_y) * window.pitch + x.index - window.first_x;
        const bool centered_y = finite && (on_pixels || offset_y == 0), centered_x = finite && (on_pixels || offset_x == 0);
        Values v = sample(pixels + (position.sampled() ? element : 0), y.fraction, x.fraction, centered_y, centered_x);
#pragma unroll
        for (int j = 0; j < N; ++j) v.value[j] -= nan;
        store(tap, p.taps(), valid, v);
      }
    }
  }
};

/// Asks L2 for the run of the input that a block some way ahead will read: blocks go through the input in order. The first
/// ones take several runs each, while the device has nothing to write yet, and are ahead from then on.
template <class T>
__device__ __forceinline__ void prefetch_ahead(const Params<float>& p, const T* input, std::int64_t input_bytes) {
  const std::int64_t block = blockIdx.x, burst = p.prefetch_burst;
  const std::int64_t first = min(burst * block, block + p.prefetch_distance),
                     last = min(burst * (block + 1), block + 1 + p.prefetch_distance);
  const std::int64_t from = first * p.prefetch_bytes, to = min(last * p.prefetch_bytes, input_bytes);
  prefetch(reinterpret_cast<const char*>(input) + from, to - from);
}

/// Whether blocks without a window turn shares of the input: those of half types have other vectors.
template <class T>
constexpr bool kTurnsShares = sizeof(T) == 4;

/// What a block without a window does: it turns its share of the input to rows. Two blocks of neighbouring vectors of channels
/// turn both of them, of half of the tile's pixels each, so that they write whole sectors of memory.
template <class T>
__device__ __forceinline__ void turn_share(const Params<float>& p, const WorkTile& work, const T* input,
                                           const SharedCopy<T>& copy) {
  constexpr int N = 16 / int(sizeof(T));  // channels of a block
  if (!copy.rows) return;
  const int log = (work.channel_block | 1) < int(p.by_channel_blocks.divisor) ? 1 : 0;  // vectors, as a power of two
  const int first_vector = work.channel_block >> log << log, across = 5 - log;          // pixels of a warp, likewise
  const std::int64_t begin = std::int64_t{work.tile_y * p.tile_columns + work.tile_x} * copy.share +
                             (work.channel_block - first_vector) * (copy.share >> log);
  const std::int64_t pixels = p.pixels();
  const T* planes = input + (std::int64_t{work.image} * p.channels + work.group * p.group_channels) * pixels;
  T* rows = copy.rows + work.image * copy.layout.image + work.group * copy.layout.group;
  float zero = 0;  // or NaN, once anything is not finite
  for (int i = int(threadIdx.x); i < copy.share; i += int(blockDim.x)) {
    const std::int64_t pixel = begin + ((i >> 5) << across) + (i & ((1 << across) - 1));
    const int c = (first_vector + (i >> across & log)) * N;
    if (pixel >= pixels) continue;
    Vec<T, N> element;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      element.value[j] = c + j < p.group_channels ? __ldg(planes + (c + j) * pixels + pixel) : T(0.f);
      zero = __fmaf_rn(0.f, widen(element.value[j]), zero);
    }
    VecBits<Vec<T, N>>::write(*reinterpret_cast<Vec<T, N>*>(rows + pixel * copy.layout.pixel + c), element);
  }
  const bool found = __syncthreads_or(zero != 0);
  if (threadIdx.x == 0) copy.strange[blockIdx.x] = found;
}

template <class T, int K, bool kSingleChannel>
__global__ void __launch_bounds__(forward_config<T, K, kSingleChannel>().threads,
                                  forward_config<T, K, kSingleChannel>().min_blocks)
    forward_kernel(const Params<float> p, const ForwardPointers<T> tensors, std::int64_t input_bytes) {
  constexpr TileConfig kConfig = forward_config<T, K, kSingleChannel>();
  constexpr int kThreads = kConfig.threads, N = kConfig.vec;
  constexpr bool kOneStep = kConfig.max_channels == kConfig.vec;
  using Taps = ForwardTaps<T, K, N>;
  extern __shared__ char shared[];
  static __shared__ int slots[32];
  auto* windows = reinterpret_cast<typename Taps::Element*>(shared);

  if (p.prefetch_bytes != 0 && threadIdx.x == 0) prefetch_ahead(p, tensors.input, input_bytes);
  if (blockIdx.x == 0) wait_for_previous();  // for the stream's order alone: nobody reads what a kernel before may still write
  const WorkTile work = WorkTile::of_block(p);
  if (tensors.marks && work.channel_block != 0) let_next_start();  // the others mark their tile first
  const Position<float> position(p, work, tensors.map);
  const float reach = Window::reach_of_tile<kThreads>(position, slots);
  const T* planes = tensors.input + work.plane(p) * p.pixels();
  Window window;
  bool fits = kSingleChannel || !tensors.marks || reach <= tensors.most_reach;
  if (fits) {
    window = Window::of_reach<kWindowPadding>(p, work, reach);
    fits = window.fits(p.capacity);
  }
  if (tensors.marks && work.channel_block == 0 && threadIdx.x == 0) {
    mark_tile(p, work, fits ? kDone : kLeftToRows, tensors.marks);
  }
  char* out = reinterpret_cast<char*>(tensors.output + work.plane(p) * p.taps() * p.positions() + position.index);
  const unsigned column_bytes = unsigned(p.positions()) * unsigned(sizeof(T));
  if (!fits) {
    if constexpr (kSingleChannel) {
      store_without_window<K>(p, position, planes, out, column_bytes);
    } else if constexpr (kTurnsShares<T>) {
      static_assert(kOneStep && N * sizeof(T) == 16, "a block turns one vector of channels");
      turn_share(p, work, tensors.input, tensors.copy);
    }
    return;
  }

  const unsigned plane_bytes = unsigned(p.pixels()) * unsigned(sizeof(T));
  const WindowVec4 vec4(p, window, int(threadIdx.x));
  WindowLoad<T, N> load;
  load.load(p, vec4, planes, plane_bytes, work.channels);
  const TapCells<K> cells(p, position, window);
  const bool finite_rate = is_finite(position.rate);
  const auto fill = [&](typename Taps::Element* target, int valid) {
    return fill_window<kThreads>(p, window, vec4, load, planes, plane_bytes, valid, target) && finite_rate;
  };

  Taps taps{p, position, window, out, column_bytes};
  const bool on_pixels = taps.on_pixels();
  bool finite = fill(windows, work.channels);
  int buffer = 0;  // the window that is read: at 0, or at capacity
  for (int left = work.channels;; left -= N) {
    const bool last = kOneStep || left <= N;
    const bool all_finite = !__syncthreads_or(!finite);
    planes += N * p.pixels();
    if (!last) load.load(p, vec4, planes, plane_bytes, left - N);
    if (position.active) {
      if (K != 0 && all_finite && on_pixels) {
        taps.template store_unrolled<true>(windows + buffer, cells, left);
      } else if (K != 0 && all_finite) {
        taps.template store_unrolled<false>(windows + buffer, cells, left);
      } else {
        taps.store_rolled(windows + buffer, all_finite, on_pixels, left);
      }
    }
    if (last) return;
    buffer = p.capacity - buffer;
    finite = fill(windows + buffer, left - N);
    taps.out += std::uint64_t(taps.column_bytes) * unsigned(N * p.taps());
  }
}

}  // namespace ddu::cuda
