#pragma once

// Backward: both gradients from one reading of the columns' gradient.
//
// A block scatters its tile's gradients into a window of accumulators in shared memory, two channels at a time, and then adds
// the window onto the input's gradient. The accumulators are integers: shared memory adds integers natively, floats only by
// a compare-and-swap loop, and integer sums do not depend on their order. Their scale is chosen for each tile and channel from
// the largest gradient and from how many taps can meet in one pixel, so that no sum overflows; a tile whose gradients are not
// finite, or span too wide a range for one scale, is scattered in floating point instead.

#include "../core/dependent_launch.cuh"
#include "../core/tile_config.h"
#include "direct.cuh"
#include "window_load.cuh"

namespace ddu::cuda {

constexpr float kWidestRange = 4096;  // between the largest gradients of a tile's warps, for one integer scale

/// What a block knows of one pack's gradients: the integer scale of each channel, or that it must use floating point.
struct FixedPointScales {
  float up[kBackwardVec], down[kBackwardVec];
  bool exact;

  __device__ __forceinline__ FloatVec<kBackwardVec> scaled(FloatVec<kBackwardVec> grad) const {
#pragma unroll
    for (int j = 0; j < kBackwardVec; ++j) grad.value[j] *= up[j];
    return grad;
  }

  /// `largest` is this thread's largest |gradient| of each channel, as bits; `bound` is how many taps can meet in a pixel.
  template <int kThreads>
  __device__ static FixedPointScales of_block(const int (&largest)[kBackwardVec], float bound, int* slots) {
    constexpr int kWarps = kThreads / 32;
#pragma unroll
    for (int j = 0; j < kBackwardVec; ++j) {
      const int most = ~warp_min(~largest[j]);
      if (threadIdx.x % 32 == 0) slots[j * kWarps + threadIdx.x / 32] = most;
    }
    __syncthreads();
    FixedPointScales scales;
    scales.exact = true;
#pragma unroll
    for (int j = 0; j < kBackwardVec; ++j) {
      const int mine = slots[j * kWarps + threadIdx.x % kWarps];
      const int most = ~warp_min(~mine);
      const int least = warp_min(mine == 0 ? INT_MAX : mine);  // of the warps that have any gradient
      const float top = __int_as_float(most);
      // Not finite, or so small that its scale is not, or a range that would cost the small ones their precision.
      const bool usable = most == 0 || (most < 0x7f800000 && top > 1e-30f && top <= kWidestRange * __int_as_float(least));
      scales.exact = scales.exact && usable;
      // The next power of two: scaling then rounds nothing, and gradients that are whole numbers add up exactly.
      const int unit = (__float_as_int(bound * (1.f / (1 << 30)) * top) + 0x7fffff) & 0x7f800000;
      scales.down[j] = most == 0 ? 0.f : __int_as_float(unit);
      scales.up[j] = most == 0 ? 0.f : __int_as_float((254 << 23) - unit);
    }
    return scales;
  }
};

template <class T, int K, bool kInput, bool kMap, int kThreads>
struct BackwardTile {
  using Element = Vec<T, kBackwardVec>;
  using Values = FloatVec<kBackwardVec>;
  static constexpr std::size_t kElementBytes = (kMap ? sizeof(Element) : 0) + (kInput ? sizeof(int) * kBackwardVec : 0);

  const Params<float>& p;
  const Position<float>& position;
  const Window& window;
  const Element* pixels;
  int* sums;  // a window for each channel of the pack

  /// Adds scaled gradients onto a cell's corners. A tap that is still in one axis has weight on half of them only.
  __device__ __forceinline__ void scatter(int element, float fy, float fx, bool centered_y, bool centered_x,
                                          const Values& grad) const {
    const float gy = 1 - fy, gx = 1 - fx;
    const float weights[4] = {centered_y   ? gx
                              : centered_x ? gy
                                           : gy * gx,
                              centered_y ? fx : gy * fx, centered_x ? fy : fy * gx, fy * fx};
#pragma unroll
    for (int j = 0; j < kBackwardVec; ++j) {
      int* sum = sums + j * p.capacity + element;
      int* below = sum + window.pitch;
      const float g = grad.value[j];
      if (centered_y && centered_x) {
        atomicAdd(sum, __float2int_rn(g));
        continue;
      }
      atomicAdd(sum, __float2int_rn(weights[0] * g));
      if (!centered_x) atomicAdd(sum + 1, __float2int_rn(weights[1] * g));
      if (!centered_y) atomicAdd(below, __float2int_rn(weights[2] * g));
      if (!centered_y && !centered_x) atomicAdd(below + 1, __float2int_rn(weights[3] * g));
    }
  }

  /// Adds gradient times slope, in units of taps from the middle, so that the base dilation is a factor of the whole sum.
  __device__ __forceinline__ void slopes(int element, float fy, float fx, bool centered_y, bool centered_x, float step_y,
                                         float step_x, const Values& grad, float& sum_y, float& sum_x) const {
    const Element* cell = pixels + element;
    const Element* below = cell + window.pitch;
    if (centered_y && centered_x) return;
    const Values a = Values::of(cell[0]);
    if (centered_y) return add(grad, step_x, Values::of(cell[1]) - a, sum_x);
    if (centered_x) return add(grad, step_y, Values::of(below[0]) - a, sum_y);
    const Values b = Values::of(cell[1]), c = Values::of(below[0]), d = Values::of(below[1]);
    add(grad, step_y, slope_y(a, b, c, d, fx), sum_y);
    add(grad, step_x, slope_x(a, b, c, d, fy), sum_x);
  }

  __device__ __forceinline__ static void add(const Values& grad, float step, const Values& slope, float& sum) {
#pragma unroll
    for (int j = 0; j < kBackwardVec; ++j) sum = __fmaf_rn(step * grad.value[j], slope.value[j], sum);
  }

  /// One tap, `step` taps away from the middle. Unless all pixels are `finite`, every corner counts in the slopes.
  __device__ __forceinline__ void tap(int element, float fy, float fx, float step_y, float step_x, bool finite,
                                      const Values& grad, const FixedPointScales& scales, float& sum_y, float& sum_x) const {
    const bool centered_y = step_y == 0, centered_x = step_x == 0;
    if (kInput) scatter(element, fy, fx, centered_y, centered_x, scales.scaled(grad));
    if (kMap) slopes(element, fy, fx, finite && centered_y, finite && centered_x, step_y, step_x, grad, sum_y, sum_x);
  }

  /// Calls body(tap, element, fy, fx, step_y, step_x) for all taps, with cells worked out one by one.
  template <class Body>
  __device__ __forceinline__ void for_each_tap(Body body) const {
    int tap = 0;
#pragma unroll 1
    for (int ky = 0; ky < p.kernel_h; ++ky) {
      const Cell<float> y = p.y.cell(position.base_y, p.y.offset(ky), position.rate);
#pragma unroll 1
      for (int kx = 0; kx < p.kernel_w; ++kx, ++tap) {
        const Cell<float> x = p.x.cell(position.base_x, p.x.offset(kx), position.rate);
        const int element = (y.index - window.first_y) * window.pitch + x.index - window.first_x;
        body(tap, element, y.fraction, x.fraction, float(ky) - p.y.middle, float(kx) - p.x.middle);
      }
    }
  }

  template <class Load>
  __device__ __forceinline__ void rolled(Load load, bool finite, const FixedPointScales& scales, float& sum_y,
                                         float& sum_x) const {
    if (!position.sampled()) return;
    for_each_tap([&](int i, int element, float fy, float fx, float step_y, float step_x) {
      tap(element, fy, fx, step_y, step_x, finite, load(i), scales, sum_y, sum_x);
    });
  }

  /// How many taps can put weight on one pixel: those of its own cell and of the three beside it. Leaves the sums zero.
  __device__ __forceinline__ float most_taps_in_a_pixel(const TapCells<K>& cells, int* slots) const {
    for (int i = threadIdx.x; i < kBackwardVec * p.capacity; i += kThreads) sums[i] = 0;
    __syncthreads();
    if (position.sampled()) {
      if constexpr (K != 0) {
#pragma unroll
        for (int i = 0; i < K * K; ++i) atomicAdd(sums + cells.row[i / K] + cells.column[i % K], 1);
      } else {
        for_each_tap([&](int, int element, float, float, float, float) { atomicAdd(sums + element, 1); });
      }
    }
    __syncthreads();
    int most = 0;
    for (int i = threadIdx.x; i < window.elements(); i += kThreads) {
      const int r = small_quotient(i, window.pitch), c = i - r * window.pitch;
      const int iy = window.first_y + r, ix = window.first_x + c;
      // Taps far outside all pile up in cells that hold no pixel; their sums may overflow, nobody reads them.
      if (iy >= -1 && iy < p.height && ix >= -1 && ix < p.width) most = max(most, sums[i]);
      sums[i] = 0;
    }
    return 4.f * float(block_max<kThreads>(most, slots));
  }

  /// Calls body(channel of the pack, quad, its sums) for this thread's quads, and leaves the sums zero.
  template <class Body>
  __device__ __forceinline__ void flush(const WindowVec4& first, const FixedPointScales& scales, Body body) const {
    const auto each = [&](const WindowVec4& quad) {
      if (!quad.used) return;
#pragma unroll
      for (int j = 0; j < kBackwardVec; ++j) {
        int4& sum = *reinterpret_cast<int4*>(sums + j * p.capacity + quad.element);
        const float down = scales.down[j];
        body(j, quad, make_float4(sum.x * down, sum.y * down, sum.z * down, sum.w * down));
        sum = make_int4(0, 0, 0, 0);
      }
    };
    each(first);
    for_each_further_vec4<kThreads>(p, window, each);
  }
};

/// Adds a quad's sums onto a plane.
__device__ __forceinline__ void add_quad(const Params<float>& p, const WindowVec4& quad, float* plane, const float4& sum) {
  if (quad.inside == 0 || (sum.x == 0 && sum.y == 0 && sum.z == 0 && sum.w == 0)) return;
  float* target = plane + quad.pixel;
#if __CUDA_ARCH__ >= 900
  if (p.vec4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w)
                 : "memory");
    return;
  }
#endif
  const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if ((quad.inside >> i & 1) && sums[i] != 0) atomicAdd(target + i, sums[i]);
  }
}

/// The settings of backward_kernel<T, K, kInput, kMap, kDeterministic>. Registers decide how many blocks share a
/// multiprocessor: kernels of 3x3 hold the gradients of a step there.
template <class T, int K, bool kInput, bool kMap, bool kDeterministic>
__host__ __device__ constexpr TileConfig backward_config() {
  constexpr std::size_t element_bytes = kBackwardVec * ((kMap ? sizeof(T) : 0) + (kInput ? sizeof(int) : 0));
  constexpr int min_blocks = K != 3 ? 6 : kInput && kMap ? 4 : 5;
  if (kDeterministic) return {256, 32, 2, 2, kBackwardVec, 32, element_bytes, 2048};
  return {128, 32, min_blocks, kInput && kMap ? 1 : 2, kBackwardVec, 64, element_bytes, 1536};
}

template <class T, int K, bool kInput, bool kMap, bool kDeterministic>
__global__ void __launch_bounds__(backward_config<T, K, kInput, kMap, kDeterministic>().threads,
                                  backward_config<T, K, kInput, kMap, kDeterministic>().min_blocks)
    backward_kernel(const Params<float> p, const BackwardPointers<T> tensors) {
  constexpr int kThreads = backward_config<T, K, kInput, kMap, kDeterministic>().threads;
  using Tile = BackwardTile<T, K, kInput, kMap, kThreads>;
  using Grads = FloatVec<kBackwardVec>;
  constexpr int kVec = kBackwardVec;
  constexpr int kTaps = K * K;
  extern __shared__ char shared[];
  static __shared__ int slots[32];
  static __shared__ int largest_slots[kVec * 32];
  auto* pixels = reinterpret_cast<typename Tile::Element*>(shared);
  int* sums = reinterpret_cast<int*>(shared + (kMap ? p.capacity * sizeof(typename Tile::Element) : 0));

  if constexpr (kInput && sizeof(T) == 2) let_next_start();  // which rounds; any other's is not ours to start
  const WorkTile work = WorkTile::of_block(p);
  const Position<float> position(p, work, tensors.map);
  if (kInput && tensors.block_clears) {  // before the barriers of what follows
    float* target = tensors.grad_input + work.plane(p) * p.pixels();
    for (int i = threadIdx.x; i < work.channels * int(p.pixels()); i += kThreads) target[i] = 0;
  }
  const Window window = Window::of_tile<kThreads, 0>(p, work, position, slots);
  const T* columns = tensors.grad_output + work.plane(p) * p.taps() * p.positions();
  const T* planes = tensors.input + work.plane(p) * p.pixels();
  float* grad_input = tensors.grad_input + work.plane(p) * p.pixels();
  const bool ordered = kInput && tensors.window_sums != nullptr;
  const int tile_index = work.tile_y * p.tile_columns + work.tile_x;
  const int first_channel = work.channel - work.group * p.group_channels;
  const auto leave_over = [&](int channel, int channels) {
    for (int pack = channel / kVec + int(threadIdx.x); pack * kVec < channel + channels; pack += kThreads) {
      unsigned char* marks = tensors.fallback + fallback_index(p, work.image, work.group, pack);
      marks[0] = marks[1 + tile_index] = 1;
    }
  };
  const bool fits = window.fits(p.capacity) && (!ordered || window.near_tile(p, work));
  const auto note_place = [&](int rows) {  // on either way by itself: once for both, it slowed float32 by a tenth
    if (work.channel_block != 0 || threadIdx.x != 0) return;
    tensors.window_rects[rect_index(p, work)] = {window.first_y, window.first_x, rows, window.columns};
  };
  if (!fits) {
    wait_for_previous();
    if (ordered) {
      note_place(0);
      leave_over(first_channel, work.channels);
    } else if (kInput) {
      scatter_direct(p, position, columns, work.channels, AddTo<float>{grad_input});
    }
    if (kMap)
      add_map(p, work, position, slopes_direct(p, position, columns, planes, work.channels), tensors.grad_map,
              tensors.map_stride);
    return;
  }
  if (ordered) note_place(window.rows);
  float* stored = tensors.window_sums + (work.plane(p) * p.by_tiles.divisor + tile_index) * p.capacity;
  const WindowVec4 quad(p, window, int(threadIdx.x));
  const TapCells<K> cells(p, position, window);
  const Tile tile{p, position, window, pixels, sums};
  const bool sampled = position.sampled();
  const unsigned plane_bytes = unsigned(p.pixels()) * unsigned(sizeof(T));
  const unsigned column_bytes = unsigned(p.positions()) * unsigned(sizeof(T));
  // Gradients stay in their own type until they are used: widening them at once would wait for them. (Not a Pack: its
  // alignment would tie registers together.)
  struct Held {
    T value[kVec];
  };
  const auto wide = [](const Held& held) {
    Grads g;
#pragma unroll
    for (int j = 0; j < kVec; ++j) g.value[j] = widen(held.value[j]);
    return g;
  };
  const auto load = [&](const T* base, int tap, int valid) {
    Held g;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int column = j * (K ? kTaps : p.taps()) + tap;
      const char* source =
          reinterpret_cast<const char*>(base + position.index) + std::uint64_t(column_bytes) * unsigned(column);
      g.value[j] = sampled && j < valid ? __ldcs(reinterpret_cast<const T*>(source)) : T(0.f);
    }
    return g;
  };

  Held grad[K ? kTaps : 1];
  WindowLoad<T, kVec> fetch;
  if (kMap) fetch.load(p, quad, planes, plane_bytes, work.channels);
#pragma unroll
  for (int i = 0; i < kTaps; ++i) grad[i] = load(columns, i, work.channels);

  const float bound = kInput ? tile.most_taps_in_a_pixel(cells, slots) : 0;
  float sum_y = 0, sum_x = 0;
  wait_for_previous();  // up to here nothing is written that it clears
  for (int left = work.channels; left > 0; left -= kVec) {
    bool finite = true;
    if (kMap) finite = !__syncthreads_or(!fill_window<kThreads>(p, window, quad, fetch, planes, plane_bytes, left, pixels));
    FixedPointScales scales{};
    if (kInput) {
      int largest[kVec] = {};
      const auto note = [&](const Grads& g) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) largest[j] = max(largest[j], __float_as_int(fabsf(g.value[j])));
      };
#pragma unroll
      for (int i = 0; i < kTaps; ++i) note(wide(grad[i]));
      if constexpr (K == 0) {
        for (int tap = 0; tap < p.taps(); ++tap) note(wide(load(columns, tap, left)));
      }
      scales = FixedPointScales::of_block<kThreads>(largest, bound, largest_slots);
      if (!scales.exact) {
        if (ordered) {
          leave_over(first_channel + work.channels - left, min(left, kVec));
        } else {
          scatter_direct(p, position, columns, min(left, kVec), AddTo<float>{grad_input});
        }
        scales = FixedPointScales{};  // the integer sums stay zero
      }
    }
    const T* next = columns + kVec * p.taps() * p.positions();
    planes += kVec * p.pixels();
    if (kMap && left > kVec) fetch.load(p, quad, planes, plane_bytes, left - kVec);
    if (K != 0 && finite) {
      if (sampled) {
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
          const int ky = i / (K ? K : 1), kx = i % (K ? K : 1);
          tile.tap(cells.row[ky] + cells.column[kx], cells.fy[ky], cells.fx[kx], ky - 0.5f * (K - 1), kx - 0.5f * (K - 1), true,
                   wide(grad[i]), scales, sum_y, sum_x);
          grad[i] = load(next, i, left - kVec);  // takes the registers of the tap that is done
        }
      }
    } else {
      tile.rolled([&](int tap) { return wide(load(columns, tap, left)); }, finite, scales, sum_y, sum_x);
#pragma unroll
      for (int i = 0; i < kTaps; ++i) grad[i] = load(next, i, left - kVec);
    }
    __syncthreads();
    if (kInput && ordered) {
      const std::int64_t plane = std::int64_t{p.by_tiles.divisor} * p.capacity;
      tile.flush(quad, scales, [&](int j, const WindowVec4& q, const float4& sum) {
        if (j < left) *reinterpret_cast<float4*>(stored + j * plane + q.element) = sum;
      });
      stored += kVec * plane;
    } else if (kInput) {
      tile.flush(quad, scales, [&](int j, const WindowVec4& q, const float4& sum) {
        if (j < left) add_quad(p, q, grad_input + j * p.pixels(), sum);
      });
      grad_input += kVec * p.pixels();
    }
    columns = next;
  }
  if (kMap) add_map(p, work, position, p.y.dilation * sum_y + p.x.dilation * sum_x, tensors.grad_map, tensors.map_stride);
}

}  // namespace ddu::cuda
