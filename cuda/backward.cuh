#pragma once

// Backward: both gradients from one reading of the columns' gradient.
//
// A block scatters its tile's gradients into a window of accumulators in shared memory, two channels at a time, and then adds
// the window onto the input's gradient. The accumulators are integers: shared memory adds integers natively, floats only by
// a compare-and-swap loop, and integer sums do not depend on their order. Their scale is chosen for each tile and channel from
// the largest gradient and from how many taps can meet in one pixel, so that no sum overflows; a tile whose gradients are not
// finite, or span too wide a range for one scale, is scattered in floating point instead.

#include "direct.cuh"
#include "quads.cuh"

namespace ddu::cuda {

constexpr float kWidestRange = 4096;  // between the largest gradients of a tile's warps, for one integer scale

/// What a block knows of one pack's gradients: the integer scale of each channel, or that it must use floating point.
struct Scales {
  float up[kBackwardPack], down[kBackwardPack];
  bool exact;

  __device__ __forceinline__ Floats<kBackwardPack> scaled(Floats<kBackwardPack> grad) const {
#pragma unroll
    for (int j = 0; j < kBackwardPack; ++j) grad.value[j] *= up[j];
    return grad;
  }

  /// `largest` is this thread's largest |gradient| of each channel, as bits; `bound` is how many taps can meet in a pixel.
  template <int kThreads>
  __device__ static Scales of_block(const int (&largest)[kBackwardPack], float bound, int* slots) {
    constexpr int kWarps = kThreads / 32;
#pragma unroll
    for (int j = 0; j < kBackwardPack; ++j) {
      const int most = ~warp_min(~largest[j]);
      if (threadIdx.x % 32 == 0) slots[j * kWarps + threadIdx.x / 32] = most;
    }
    __syncthreads();
    Scales scales;
    scales.exact = true;
#pragma unroll
    for (int j = 0; j < kBackwardPack; ++j) {
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
  using Element = Pack<T, kBackwardPack>;
  using Values = Floats<kBackwardPack>;
  static constexpr std::size_t kElementBytes = (kMap ? sizeof(Element) : 0) + (kInput ? sizeof(int) * kBackwardPack : 0);

  const Layout<float>& p;
  const Position<float>& at;
  const Window& window;
  const Element* pixels;
  int* sums;  // a window for each channel of the pack

  /// Adds scaled gradients onto a cell's corners. A tap that is still in one axis has weight on half of them only.
  __device__ __forceinline__ void scatter(int element, float fy, float fx, bool still_y, bool still_x,
                                          const Values& grad) const {
    const float gy = 1 - fy, gx = 1 - fx;
    const float weights[4] = {still_y ? gx : still_x ? gy : gy * gx, still_y ? fx : gy * fx, still_x ? fy : fy * gx, fy * fx};
#pragma unroll
    for (int j = 0; j < kBackwardPack; ++j) {
      int* sum = sums + j * p.capacity + element;
      int* below = sum + window.pitch;
      const float g = grad.value[j];
      if (still_y && still_x) {
        atomicAdd(sum, __float2int_rn(g));
        continue;
      }
      atomicAdd(sum, __float2int_rn(weights[0] * g));
      if (!still_x) atomicAdd(sum + 1, __float2int_rn(weights[1] * g));
      if (!still_y) atomicAdd(below, __float2int_rn(weights[2] * g));
      if (!still_y && !still_x) atomicAdd(below + 1, __float2int_rn(weights[3] * g));
    }
  }

  /// Adds gradient times slope, in units of taps from the middle, so that the base dilation is a factor of the whole sum.
  __device__ __forceinline__ void slopes(int element, float fy, float fx, bool still_y, bool still_x, float step_y,
                                         float step_x, const Values& grad, float& sum_y, float& sum_x) const {
    const Element* cell = pixels + element;
    const Element* below = cell + window.pitch;
    if (still_y && still_x) return;
    const Values a = Values::of(cell[0]);
    if (still_y) return add(grad, step_x, Values::of(cell[1]) - a, sum_x);
    if (still_x) return add(grad, step_y, Values::of(below[0]) - a, sum_y);
    const Values b = Values::of(cell[1]), c = Values::of(below[0]), d = Values::of(below[1]);
    add(grad, step_y, slope_y(a, b, c, d, fx), sum_y);
    add(grad, step_x, slope_x(a, b, c, d, fy), sum_x);
  }

  __device__ __forceinline__ static void add(const Values& grad, float step, const Values& slope, float& sum) {
#pragma unroll
    for (int j = 0; j < kBackwardPack; ++j) sum = __fmaf_rn(step * grad.value[j], slope.value[j], sum);
  }

  /// One tap, `step` taps away from the middle. Unless all pixels are `finite`, every corner counts in the slopes.
  __device__ __forceinline__ void tap(int element, float fy, float fx, float step_y, float step_x, bool finite,
                                      const Values& grad, const Scales& scales, float& sum_y, float& sum_x) const {
    const bool still_y = step_y == 0, still_x = step_x == 0;
    if (kInput) scatter(element, fy, fx, still_y, still_x, scales.scaled(grad));
    if (kMap) slopes(element, fy, fx, finite && still_y, finite && still_x, step_y, step_x, grad, sum_y, sum_x);
  }

  /// Calls body(tap, element, fy, fx, step_y, step_x) for all taps, with cells worked out one by one.
  template <class Body>
  __device__ __forceinline__ void for_each_tap(Body body) const {
    int tap = 0;
#pragma unroll 1
    for (int ky = 0; ky < p.kernel_h; ++ky) {
      const Cell<float> y = p.y.cell(at.base_y, p.y.offset(ky), at.rate);
#pragma unroll 1
      for (int kx = 0; kx < p.kernel_w; ++kx, ++tap) {
        const Cell<float> x = p.x.cell(at.base_x, p.x.offset(kx), at.rate);
        const int element = (y.index - window.first_y) * window.pitch + x.index - window.first_x;
        body(tap, element, y.fraction, x.fraction, float(ky) - p.y.middle, float(kx) - p.x.middle);
      }
    }
  }

  template <class Load>
  __device__ __forceinline__ void rolled(Load load, bool finite, const Scales& scales, float& sum_y, float& sum_x) const {
    if (!at.sampled()) return;
    for_each_tap([&](int i, int element, float fy, float fx, float step_y, float step_x) {
      tap(element, fy, fx, step_y, step_x, finite, load(i), scales, sum_y, sum_x);
    });
  }

  /// How many taps can put weight on one pixel: those of its own cell and of the three beside it. Leaves the sums zero.
  __device__ __forceinline__ float most_taps_in_a_pixel(const Cells<K>& cells, int* slots) const {
    for (int i = threadIdx.x; i < kBackwardPack * p.capacity; i += kThreads) sums[i] = 0;
    __syncthreads();
    if (at.sampled()) {
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
  __device__ __forceinline__ void flush(const Quad& first, const Scales& scales, Body body) const {
    const auto each = [&](const Quad& quad) {
      if (!quad.used) return;
#pragma unroll
      for (int j = 0; j < kBackwardPack; ++j) {
        int4& sum = *reinterpret_cast<int4*>(sums + j * p.capacity + quad.element);
        const float down = scales.down[j];
        body(j, quad, make_float4(sum.x * down, sum.y * down, sum.z * down, sum.w * down));
        sum = make_int4(0, 0, 0, 0);
      }
    };
    each(first);
    for_each_further<kThreads>(p, window, each);
  }
};

/// Adds a quad's sums onto a plane.
__device__ __forceinline__ void add_quad(const Layout<float>& p, const Quad& quad, float* plane, const float4& sum) {
  if (quad.inside == 0 || (sum.x == 0 && sum.y == 0 && sum.z == 0 && sum.w == 0)) return;
  float* target = plane + quad.pixel;
#if __CUDA_ARCH__ >= 900
  if (p.quads) {
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

template <class T, int K, bool kInput, bool kMap, int kThreads, int kMinBlocks>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    backward_kernel(const Layout<float> p, const BackwardPointers<T> tensors) {
  using Tile = BackwardTile<T, K, kInput, kMap, kThreads>;
  using Grads = Floats<kBackwardPack>;
  constexpr int kPack = kBackwardPack;
  constexpr int kTaps = K * K;
  extern __shared__ char shared[];
  static __shared__ int slots[32];
  static __shared__ int largest_slots[kPack * 32];
  auto* pixels = reinterpret_cast<typename Tile::Element*>(shared);
  int* sums = reinterpret_cast<int*>(shared + (kMap ? p.capacity * sizeof(typename Tile::Element) : 0));

  if constexpr (kInput && sizeof(T) == 2) let_next_start();  // which rounds; any other's is not ours to start
  const Job job = Job::of_block(p);
  const Position<float> at(p, job, tensors.map);
  if (kInput && tensors.clears) {  // before the barriers of what follows
    float* target = tensors.grad_input + job.plane(p) * p.pixels();
    for (int i = threadIdx.x; i < job.channels * int(p.pixels()); i += kThreads) target[i] = 0;
  }
  const Window window = Window::of_tile<kThreads, 0>(p, job, at, slots);
  const T* columns = tensors.grad_output + job.plane(p) * p.taps() * p.positions();
  const T* planes = tensors.input + job.plane(p) * p.pixels();
  float* grad_input = tensors.grad_input + job.plane(p) * p.pixels();
  const bool ordered = kInput && tensors.windows != nullptr;
  const int tile_index = job.tile_y * p.tile_columns + job.tile_x;
  const int first_channel = job.channel - job.group * p.group_channels;
  const auto leave_over = [&](int channel, int channels) {
    for (int pack = channel / kPack + int(threadIdx.x); pack * kPack < channel + channels; pack += kThreads) {
      unsigned char* marks = tensors.left_over + left_over_index(p, job.image, job.group, pack);
      marks[0] = marks[1 + tile_index] = 1;
    }
  };
  const bool fits = window.fits(p.capacity) && (!ordered || window.near_tile(p, job));
  const auto note_place = [&](int rows) {  // on either way by itself: once for both, it slowed float32 by a tenth
    if (job.part != 0 || threadIdx.x != 0) return;
    tensors.places[place_index(p, job)] = {window.first_y, window.first_x, rows, window.columns};
  };
  if (!fits) {
    wait_for_previous();
    if (ordered) {
      note_place(0);
      leave_over(first_channel, job.channels);
    } else if (kInput) {
      scatter_direct(p, at, columns, job.channels, AddTo<float>{grad_input});
    }
    if (kMap) add_map(p, job, at, slopes_direct(p, at, columns, planes, job.channels), tensors.grad_map, tensors.map_part);
    return;
  }
  if (ordered) note_place(window.rows);
  float* stored = tensors.windows + (job.plane(p) * p.by_tiles.divisor + tile_index) * p.capacity;
  const Quad quad(p, window, int(threadIdx.x));
  const Cells<K> cells(p, at, window);
  const Tile tile{p, at, window, pixels, sums};
  const bool sampled = at.sampled();
  const unsigned plane_bytes = unsigned(p.pixels()) * unsigned(sizeof(T));
  const unsigned column_bytes = unsigned(p.positions()) * unsigned(sizeof(T));
  // Gradients stay in their own type until they are used: widening them at once would wait for them. (Not a Pack: its
  // alignment would tie registers together.)
  struct Held {
    T value[kPack];
  };
  const auto wide = [](const Held& held) {
    Grads g;
#pragma unroll
    for (int j = 0; j < kPack; ++j) g.value[j] = widen(held.value[j]);
    return g;
  };
  const auto load = [&](const T* base, int tap, int valid) {
    Held g;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const int column = j * (K ? kTaps : p.taps()) + tap;
      const char* source = reinterpret_cast<const char*>(base + at.index) + std::uint64_t(column_bytes) * unsigned(column);
      g.value[j] = sampled && j < valid ? __ldcs(reinterpret_cast<const T*>(source)) : T(0.f);
    }
    return g;
  };

  Held grad[K ? kTaps : 1];
  QuadFetch<T, kPack> fetch;
  if (kMap) fetch.load(p, quad, planes, plane_bytes, job.channels);
#pragma unroll
  for (int i = 0; i < kTaps; ++i) grad[i] = load(columns, i, job.channels);

  const float bound = kInput ? tile.most_taps_in_a_pixel(cells, slots) : 0;
  float sum_y = 0, sum_x = 0;
  wait_for_previous();  // up to here nothing is written that it clears
  for (int left = job.channels; left > 0; left -= kPack) {
    bool finite = true;
    if (kMap) finite = !__syncthreads_or(!fill<kThreads>(p, window, quad, fetch, planes, plane_bytes, left, pixels));
    Scales scales{};
    if (kInput) {
      int largest[kPack] = {};
      const auto note = [&](const Grads& g) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) largest[j] = max(largest[j], __float_as_int(fabsf(g.value[j])));
      };
#pragma unroll
      for (int i = 0; i < kTaps; ++i) note(wide(grad[i]));
      if constexpr (K == 0) {
        for (int tap = 0; tap < p.taps(); ++tap) note(wide(load(columns, tap, left)));
      }
      scales = Scales::of_block<kThreads>(largest, bound, largest_slots);
      if (!scales.exact) {
        if (ordered) {
          leave_over(first_channel + job.channels - left, min(left, kPack));
        } else {
          scatter_direct(p, at, columns, min(left, kPack), AddTo<float>{grad_input});
        }
        scales = Scales{};  // the integer sums stay zero
      }
    }
    const T* next = columns + kPack * p.taps() * p.positions();
    planes += kPack * p.pixels();
    if (kMap && left > kPack) fetch.load(p, quad, planes, plane_bytes, left - kPack);
    if (K != 0 && finite) {
      if (sampled) {
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
          const int ky = i / (K ? K : 1), kx = i % (K ? K : 1);
          tile.tap(cells.row[ky] + cells.column[kx], cells.fy[ky], cells.fx[kx], ky - 0.5f * (K - 1), kx - 0.5f * (K - 1), true,
                   wide(grad[i]), scales, sum_y, sum_x);
          grad[i] = load(next, i, left - kPack);  // takes the registers of the tap that is done
        }
      }
    } else {
      tile.rolled([&](int tap) { return wide(load(columns, tap, left)); }, finite, scales, sum_y, sum_x);
#pragma unroll
      for (int i = 0; i < kTaps; ++i) grad[i] = load(next, i, left - kPack);
    }
    __syncthreads();
    if (kInput && ordered) {
      const std::int64_t plane = std::int64_t{p.by_tiles.divisor} * p.capacity;
      tile.flush(quad, scales, [&](int j, const Quad& q, const float4& sum) {
        if (j < left) *reinterpret_cast<float4*>(stored + j * plane + q.element) = sum;
      });
      stored += kPack * plane;
    } else if (kInput) {
      tile.flush(quad, scales, [&](int j, const Quad& q, const float4& sum) {
        if (j < left) add_quad(p, q, grad_input + j * p.pixels(), sum);
      });
      grad_input += kPack * p.pixels();
    }
    columns = next;
  }
  if (kMap) add_map(p, job, at, p.y.dilation * sum_y + p.x.dilation * sum_x, tensors.grad_map, tensors.map_part);
}

}  // namespace ddu::cuda
