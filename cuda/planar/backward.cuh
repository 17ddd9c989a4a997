#pragma once

// Backward: both gradients from one reading of the columns' gradient.
//
//     backward_kernel, one block: a tile of positions, one a thread, and a run of channels of one group
//
//       largest rate of the tile -> window                  too large for shared memory? -> leave_tile, perhaps to wide tiles
//       how many taps can meet in one pixel -> the bound that keeps fixed-point sums from overflowing
//       for each step of two channels (of wide tiles one):
//         1 load      pixels in shared memory <- window of the input       (grad_map reads them; loaded one step ahead)
//         2 scale     largest |gradient| of the tile -> fixed-point unit   no unit? -> those channels go another way
//         3 taps      sums in shared memory += gradient * weight           (grad_input: atomics on integers)
//                     RateGradient in registers += gradient * derivative   (grad_map)
//                     the registers of each tap done take its gradient of the next step
//         4 flush     grad_input += sums, or, deterministic, window_sums = sums, of wide tiles ordered sums += sums; sums = 0
//       grad_map <- RateGradient
//
// The loop is bound by instructions and by the latency of its loads, which are under way from one step to the next. Whatever
// waits for them early costs 10 to 17 %: also a load elsewhere in the kernel that nothing waits for on some way, since the loop
// then waits for it and all others when it reuses the register (scatter_without_window). benchmarks/sass_waits.py shows where a
// kernel waits. Tried and measured: benchmarks/NOTES.md, "Backward".

#include "../core/dependent_launch.cuh"
#include "../core/tile_config.h"
#include "backward_sums.cuh"
#include "backward_taps.cuh"
#include "window_load.cuh"

namespace ddu::cuda {

/// The settings of backward_kernel<T, K, kInput, kMap, kForm>. Registers decide how many blocks share a multiprocessor: kernels
/// of 3x3 hold the gradients of a step there.
template <class T, int K, bool kInput, bool kMap, BackwardForm kForm>
__host__ __device__ constexpr TileConfig backward_config() {
  constexpr int vec = is_wide(kForm) ? 1 : kBackwardVec;
  constexpr std::size_t element_bytes = vec * ((kMap ? sizeof(T) : 0) + (kInput ? sizeof(int) : 0));
  constexpr int min_blocks = K != 3 ? 6 : kInput && kMap ? 4 : 5;
  // threads, tile width, blocks a multiprocessor, waves, channels: of a step, of a block at most; bytes and number of elements
  if (kForm == BackwardForm::wide) return {512, 32, 2, 1, vec, 64, element_bytes, 8192};
  if (kForm == BackwardForm::ordered) return {1024, 32, 1, 1, vec, 64, element_bytes, 16384};
  if (kForm == BackwardForm::store) return {256, 32, 2, 2, kBackwardVec, 32, element_bytes, 2048};
  return {128, 32, min_blocks, kInput && kMap ? 1 : 2, kBackwardVec, 64, element_bytes, 1536};
}

/// Gradients of one tap, in their own type until they are used: widening them at once would wait for them. (Not a Vec: its
/// alignment would tie registers together.)
template <class T, int kVec>
struct TapGradient {
  T value[kVec];

  __device__ __forceinline__ FloatVec<kVec> wide() const {
    FloatVec<kVec> grad;
#pragma unroll
    for (int j = 0; j < kVec; ++j) grad.value[j] = widen(value[j]);
    return grad;
  }
};

/// Reads one position's gradients from the columns.
template <class T, int K, int kVec>
struct ColumnReader {
  const Params<float>& p;
  std::int64_t index;     // of the position
  bool sampled;           // else all gradients are 0: they reach no pixel
  unsigned column_bytes;  // from one column to the next

  /// Of the channels whose columns start at `columns`, `valid` of which there are. Unless they are read `again`, L2 need not
  /// keep them.
  template <bool kAgain = false>
  __device__ __forceinline__ TapGradient<T, kVec> load(const T* columns, int tap, int valid) const {
    TapGradient<T, kVec> grad;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int column = j * (K ? K * K : p.taps()) + tap;
      const char* source = reinterpret_cast<const char*>(columns + index) + std::uint64_t(column_bytes) * unsigned(column);
      if constexpr (kAgain) {
        grad.value[j] = sampled && j < valid ? __ldg(reinterpret_cast<const T*>(source)) : T(0.f);
      } else {
        grad.value[j] = sampled && j < valid ? __ldcs(reinterpret_cast<const T*>(source)) : T(0.f);
      }
    }
    return grad;
  }
  /// Of all taps of a kernel that holds them in registers.
  template <int kHeld>
  __device__ __forceinline__ void load_all(TapGradient<T, kVec> (&grad)[kHeld], const T* columns, int valid) const {
#pragma unroll
    for (int i = 0; i < K * K; ++i) grad[i] = load(columns, i, valid);
  }
};

/// A thread's largest |gradient| of each channel, as bits.
template <int kVec>
struct LargestGradient {
  int bits[kVec] = {};

  __device__ __forceinline__ void take(const FloatVec<kVec>& grad) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) bits[j] = max(bits[j], __float_as_int(fabsf(grad.value[j])));
  }
};

/// Zeros in the planes that a block adds to.
template <int kThreads>
__device__ __forceinline__ void clear_planes(const Params<float>& p, const WorkTile& work, float* grad_input) {
  float* target = grad_input + work.plane(p) * p.pixels();
  for (int i = threadIdx.x; i < work.channels * int(p.pixels()); i += kThreads) target[i] = 0;
}

/// Notes for add_windows_kernel where a tile's window lies; with no `rows`, that it stores none.
template <class T>
__device__ __forceinline__ void note_rect(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                          const Window& window, int rows) {
  if (work.channel_block != 0 || threadIdx.x != 0) return;
  tensors.window_rects[tile_index(p, work)] = {window.first_y, window.first_x, rows, window.columns};
}

/// Where a tile stores the sums of its first channel.
template <class T>
__device__ __forceinline__ float* stored_window(const Params<float>& p, const BackwardPointers<T>& tensors,
                                                const WorkTile& work) {
  const int tile = work.tile_y * p.tile_columns + work.tile_x;
  return tensors.window_sums + (work.plane(p) * p.by_tiles.divisor + tile) * p.capacity;
}

/// Whether wide tiles take a tile of such rates. Windows start at multiples of four pixels, and cells at whole ones.
__device__ __forceinline__ bool wide_tiles_take(const Params<float>& p, const WideTiles& wide, const Window& window) {
  const float rows = window.inner_extent(p.y, wide.tile_height, p.kernel_h) + 2,
              columns = window.inner_extent(p.x, p.tile_width, p.kernel_w) + 8;
  return wide.capacity == WideTiles::kAll || (rows * columns <= float(wide.capacity) && columns < float(kMostColumns));
}

/// Whether a tile is left to other kernels, which its mark tells them. kStore: its window would be stored.
template <bool kStore, class T>
__device__ __forceinline__ bool leaves_tile(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                            const Window& window) {
  if (!tensors.marks) return false;
  const bool leaves =
      !window.fits(p.capacity) || !window.fits_anywhere(p, p.capacity) || (kStore && !window.near_tile(p, work));
  if (work.channel_block == 0 && threadIdx.x == 0) {
    const TileMark mark = !leaves ? kDone : wide_tiles_take(p, tensors.wide, window) ? kLeftToWideTiles : kLeftToRows;
    mark_tile(p, work, mark, tensors.marks);
  }
  return leaves;
}

/// A tile whose window does not fit, or reaches too far to be stored, is left to other kernels.
template <bool kMap, bool kStore, class T>
__device__ __forceinline__ void leave_tile(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                           const Position<float>& position, const Window& window) {
  if (kStore) note_rect(p, tensors, work, window, 0);
  if (kMap && tensors.map_stride != 0) add_map(p, work, position, 0.f, tensors.grad_map, tensors.map_stride);
}

/// Whether a tile is ours; notes its window, or leaves it to others.
template <bool kMap, bool kStore, class T>
__device__ __forceinline__ bool takes_tile(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                           const Position<float>& position, const Window& window) {
  if (leaves_tile<kStore>(p, tensors, work, window)) {
    wait_for_previous();
    leave_tile<kMap, kStore>(p, tensors, work, position, window);
    return false;
  }
  if (kStore) note_rect(p, tensors, work, window, window.rows);
  return true;
}

/// Phase 2: the fixed-point units of a step's gradients.
template <int kThreads, class T, int K, int kVec, int kHeld>
__device__ __forceinline__ FixedPointScales<kVec> choose_scales(const ColumnReader<T, K, kVec>& reader,
                                                                const TapGradient<T, kVec> (&grad)[kHeld], const T* columns,
                                                                int left, float max_taps, int* slots) {
  LargestGradient<kVec> largest;
  if constexpr (K == 0) {
    for (int i = 0; i < reader.p.taps(); ++i) largest.take(reader.template load<true>(columns, i, left).wide());
  } else {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) largest.take(grad[i].wide());
  }
  return FixedPointScales<kVec>::template of_block<kThreads>(largest.bits, max_taps, slots);
}

/// Leaves out of a wide tile what is not left to it. Whether anything is; the same in all threads of a block.
template <class T>
__device__ __forceinline__ bool take_left(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                          Position<float>& position) {
  const int part_rows = (p.out_height + tensors.wide.part_height - 1) / tensors.wide.part_height;
  unsigned column = threadIdx.x;
  const int row = work.tile_y * p.tile_height + int(p.by_tile_width.take(column));
  if (position.active) {
    const std::int64_t plane = std::int64_t{work.image} * p.groups + work.group;
    const volatile unsigned char* marks = tensors.marks + plane * part_rows * p.tile_columns;  // past L1: they may change
    position.active = marks[row / tensors.wide.part_height * p.tile_columns + work.tile_x] == kLeftToWideTiles;
  }
  return __syncthreads_or(position.active);
}

/// The same while the first kernel may still run, as TileMarks::nothing_left: who finds marks waits, and looks again.
template <class T>
__device__ __forceinline__ bool wait_for_left(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                              Position<float>& position) {
  let_next_start();
  const bool perhaps = take_left(p, tensors, work, position);
  if (perhaps || blockIdx.x == 0) wait_for_previous();
  return perhaps && take_left(p, tensors, work, position);
}

/// Lets a next kernel start that is ours: one that reads marks, which are written first, or one that rounds. Any other waits
/// for the end.
template <bool kInput, class T>
__device__ __forceinline__ void start_next(const BackwardPointers<T>& tensors, const WorkTile& work) {
  if (tensors.marks ? work.channel_block != 0 : kInput && sizeof(T) == 2) let_next_start();
}

template <class T, int K, bool kInput, bool kMap, BackwardForm kForm>
__global__ void __launch_bounds__(backward_config<T, K, kInput, kMap, kForm>().threads,
                                  backward_config<T, K, kInput, kMap, kForm>().min_blocks)
    backward_kernel(const Params<float> p, const BackwardPointers<T> tensors) {
  constexpr TileConfig kConfig = backward_config<T, K, kInput, kMap, kForm>();
  constexpr int kThreads = kConfig.threads, kVec = kConfig.vec, kTaps = K * K;
  constexpr bool kWide = is_wide(kForm);
  const bool with_map = kMap && (!kWide || tensors.grad_map);  // wide tiles then work out what nobody reads
  constexpr bool kStore = kForm == BackwardForm::store;        // windows of sums, which add_windows_kernel adds up
  using Taps = BackwardTaps<T, K, kInput, kMap, kThreads, kVec>;
  extern __shared__ char shared[];
  static __shared__ int slots[32], largest_slots[kVec * 32];
  auto* pixels = reinterpret_cast<typename Taps::Element*>(shared);
  int* sums = reinterpret_cast<int*>(shared + (kMap ? p.capacity * sizeof(typename Taps::Element) : 0));

  const WorkTile work = WorkTile::of_block(p);
  const bool of_left = kWide && tensors.wide.part_height != 0;  // what another kernel left, which does all but that
  if (!of_left) start_next<kInput>(tensors, work);
  Position<float> position(p, work, tensors.map);
  if (of_left && !wait_for_left(p, tensors, work, position)) return;
  if constexpr (kForm == BackwardForm::ordered) note_exponents<kThreads>(p, tensors, work);
  if (kInput && !of_left && tensors.block_clears) clear_planes<kThreads>(p, work, tensors.grad_input);  // before the barriers
  const Window window = Window::of_tile<kThreads, 0>(p, work, position, slots);
  const T* columns = tensors.grad_output + work.plane(p) * p.taps() * p.positions();
  const T* planes = tensors.input + work.plane(p) * p.pixels();
  float* target = tensors.grad_input + work.plane(p) * p.pixels();
  if (!of_left && !takes_tile<kMap, kStore>(p, tensors, work, position, window)) return;
  if constexpr (kStore) target = stored_window(p, tensors, work);
  const WindowVec4 vec4(p, window, int(threadIdx.x));
  const TapCells<K> cells(p, position, window);
  const Taps taps{p, position, window, pixels, sums};
  const unsigned plane_bytes = unsigned(p.pixels()) * unsigned(sizeof(T));
  const ColumnReader<T, K, kVec> reader{p, position.index, position.sampled(), unsigned(p.positions()) * unsigned(sizeof(T))};
  WindowLoad<T, kVec> load;
  if (with_map) load.load(p, vec4, planes, plane_bytes, work.channels);
  TapGradient<T, kVec> grad[K ? kTaps : 1];
  reader.load_all(grad, columns, work.channels);
  const float max_taps = kInput ? taps.max_taps_in_a_pixel(cells, slots) : 0;
  RateGradient rate_grad;
  if (!of_left) wait_for_previous();  // up to here nothing is written that it clears
  for (int left = work.channels; left > 0; left -= kVec) {
    bool finite = true;  // 1 load. Unless all pixels are finite, corners without weight count: 0 * NaN is NaN
    if (with_map) finite = !__syncthreads_or(!fill_window<kThreads>(p, window, vec4, load, planes, plane_bytes, left, pixels));
    FixedPointScales<kVec> scales{};  // 2 scale
    if (kInput) {
      scales = choose_scales<kThreads>(reader, grad, columns, left, max_taps, largest_slots);
      if (!has_units<kForm>(p, work, left, scales)) {
        scatter_otherwise<kForm, kThreads>(p, tensors, work, position, columns, target, work.channels - left, min(left, kVec));
        scales = FixedPointScales<kVec>{};  // the fixed-point sums stay zero
      }
    }
    const T* next = columns + kVec * p.taps() * p.positions();
    planes += kVec * p.pixels();
    if (with_map && left > kVec) load.load(p, vec4, planes, plane_bytes, left - kVec);
    if (K != 0 && finite) {  // 3 taps
      if (reader.sampled) {
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
          taps.add(Taps::unrolled(cells, i), grad[i].wide(), scales, true, rate_grad);
          grad[i] = reader.load(next, i, left - kVec);  // in the registers of the tap that is done
        }
      }
    } else {
      const auto add = [&](int i, const Tap& tap) {
        taps.add(tap, reader.load(columns, i, left).wide(), scales, finite, rate_grad);
      };
      if (reader.sampled) taps.for_each_tap(add);
      reader.load_all(grad, next, left - kVec);
    }
    __syncthreads();
    if (kInput) {  // 4 flush
      const std::int64_t target_stride = kStore ? std::int64_t{p.by_tiles.divisor} * p.capacity : p.pixels();
      flush_sums<kForm, kThreads>(p, tensors, work, window, vec4, sums, scales, target, target_stride, left);
      target += kVec * target_stride;
    }
    columns = next;
  }
  if (with_map) add_map(p, work, position, rate_grad.of_rate(p), tensors.grad_map, tensors.map_stride);
}

}  // namespace ddu::cuda
