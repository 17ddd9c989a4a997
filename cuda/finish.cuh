#pragma once

// What goes before the backward kernels and what follows them: zeros to add to, sums to the gradients' types, and the rest of
// a deterministic backward.

#include <climits>

#include "direct.cuh"
#include "pack.cuh"

namespace ddu::cuda {

/// Where one thread of a kernel over `count` elements has its quads of them: all at once, so that their loads overlap.
struct Span {
  static constexpr int kQuads = 4;
  static constexpr int kThreads = 256;
  static constexpr int kOfBlock = 4 * kQuads * kThreads;  // elements
  std::int64_t first, count;

  __device__ explicit Span(std::int64_t elements)
      : first(std::int64_t{blockIdx.x} * kOfBlock + 4 * threadIdx.x), count(elements) {}
  __device__ std::int64_t quad(int i) const { return first + 4 * kThreads * i; }
  __device__ bool whole() const { return quad(kQuads - 1) + 4 <= count; }
  /// Calls body(element) for those there are.
  template <class Body>
  __device__ void for_each(Body body) const {
    for (int i = 0; i < 4 * kQuads; ++i) {
      if (const std::int64_t element = quad(i / 4) + i % 4; element < count) body(element);
    }
  }
};

/// Sets sums to zero; `aligned` says that four of them are.
template <class Acc>
__global__ void __launch_bounds__(Span::kThreads) clear_kernel(Acc* sums, std::int64_t count, bool aligned) {
  let_next_start();
  const Span span(count);
  if (!aligned || !span.whole()) return span.for_each([&](std::int64_t i) { sums[i] = 0; });
#pragma unroll
  for (int i = 0; i < Span::kQuads; ++i) *reinterpret_cast<Pack<Acc, 4>*>(sums + span.quad(i)) = {};
}

/// Rounds sums, which lie aligned, to a half type; `aligned` says that four of the gradient do too.
template <class T>
__global__ void __launch_bounds__(Span::kThreads)
    narrow_kernel(const float* sums, T* gradient, std::int64_t count, bool aligned) {
  wait_for_previous();
  const Span span(count);
  if (!aligned || !span.whole()) return span.for_each([&](std::int64_t i) { gradient[i] = narrow<T>(sums[i]); });
  float4 v[Span::kQuads];
#pragma unroll
  for (int i = 0; i < Span::kQuads; ++i) v[i] = *reinterpret_cast<const float4*>(sums + span.quad(i));
#pragma unroll
  for (int i = 0; i < Span::kQuads; ++i) {
    *reinterpret_cast<Pack<T, 4>*>(gradient + span.quad(i)) = {narrow<T>(v[i].x), narrow<T>(v[i].y), narrow<T>(v[i].z),
                                                               narrow<T>(v[i].w)};
  }
}

/// Adds up `parts` arrays of `count` sums in their order.
template <class M, class Acc>
__global__ void reduce_map_kernel(const Acc* sums, M* gradient, std::int64_t count, std::int64_t parts) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    Acc sum = 0;
    for (std::int64_t part = 0; part < parts; ++part) sum += sums[part * count + i];
    gradient[i] = narrow<M>(sum);
  }
}

constexpr int kNowhere = INT_MIN;

/// Adds up, channel by channel, what lies at these places of the windows; `some` is any that is not nowhere.
template <int kCount>
__device__ __forceinline__ void add_places(const int (&places)[kCount], int some, const float* windows, std::int64_t stored,
                                           float* target, std::int64_t pixels, int channels) {
#pragma unroll kCount <= 4 ? 8 : 2
  for (int left = channels; left > 0; --left, windows += stored, target += pixels) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const bool is = places[n] != kNowhere;
      const float value = __ldcs(windows + (is ? places[n] : some));  // always loaded: then the loads do not wait in turn
      sum += is ? value : 0.f;
    }
    *target = sum;
  }
}

/// The input's gradient from the windows that the tiles stored, added in a fixed order. A thread owns one pixel, and walks
/// over channels; the tiles whose window may hold it are the one that it lies in and those around.
__global__ void __launch_bounds__(256, 4)
    add_windows_kernel(const Layout<float> p, const BackwardPointers<float> tensors, int chunk) {
  const unsigned blocks = unsigned((p.pixels() + 255) / 256), tiles = p.by_tiles.divisor;
  const std::int64_t pixel = std::int64_t{blockIdx.x % blocks} * 256 + threadIdx.x;
  unsigned rest = blockIdx.x / blocks;
  const unsigned chunks = unsigned((p.group_channels + chunk - 1) / chunk);
  const int first = int(rest % chunks) * chunk;
  rest /= chunks;
  const int group = int(rest % unsigned(p.groups)), image = int(rest / unsigned(p.groups));
  if (pixel >= p.pixels()) return;

  const int iy = int(pixel / p.width), ix = int(pixel % p.width);
  const int pixels_y = p.tile_height * p.y.stride, pixels_x = p.tile_width * p.x.stride;
  const int tile_y = (iy - p.y.base(0)) / pixels_y, tile_x = (ix - p.x.base(0)) / pixels_x;
  // The tile that is nearer comes first: the others hardly ever reach the pixel.
  const int near_y = 2 * ((iy - p.y.base(0)) % pixels_y) < pixels_y ? -1 : 1;
  const int near_x = 2 * ((ix - p.x.base(0)) % pixels_x) < pixels_x ? -1 : 1;
  const int4* windows_of = tensors.places + (std::int64_t{image} * p.groups + group) * tiles;
  int places[9], some = kNowhere;  // within the windows of a plane, from that of the pixel's own tile
#pragma unroll
  for (int n = 0; n < 9; ++n) {
    const int dy = n / 3 == 0 ? 0 : n / 3 == 1 ? near_y : -near_y, dx = n % 3 == 0 ? 0 : n % 3 == 1 ? near_x : -near_x;
    const int ty = tile_y + dy, tx = tile_x + dx;
    places[n] = kNowhere;
    if (ty < 0 || ty >= p.tile_rows || tx < 0 || tx >= p.tile_columns) continue;
    const int4 window = windows_of[ty * p.tile_columns + tx];
    const int r = iy - window.x, c = ix - window.y;
    if (r < 0 || r >= window.z || c < 0 || c >= window.w) continue;
    places[n] = some = (dy * p.tile_columns + dx) * p.capacity + r * window.w + c;
  }
  const std::int64_t plane = std::int64_t{image} * p.channels + group * p.group_channels;
  const std::int64_t stored = std::int64_t{tiles} * p.capacity, own = std::int64_t{tile_y} * p.tile_columns + tile_x;
  const float* windows = tensors.windows + (plane + first) * stored + own * p.capacity;
  float* target = tensors.grad_input + (plane + first) * p.pixels() + pixel;
  const int channels = min(chunk, p.group_channels - first);
  if (some == kNowhere) {  // no tile reaches the pixel
    for (int left = channels; left > 0; --left, target += p.pixels()) *target = 0;
    return;
  }
  const bool far =
      places[2] != kNowhere || places[5] != kNowhere || places[6] != kNowhere || places[7] != kNowhere || places[8] != kNowhere;
  if (__any_sync(__activemask(), far)) return add_places(places, some, windows, stored, target, p.pixels(), channels);
  const int near[4] = {places[0], places[1], places[3], places[4]};
  add_places(near, some, windows, stored, target, p.pixels(), channels);
}

/// Notes every tile's window, none of them stored.
template <class T>
__global__ void __launch_bounds__(256) places_kernel(const Layout<accumulator_t<T>> p, const BackwardPointers<T> tensors) {
  static __shared__ int slots[32];
  const Job job = Job::of_block(p);
  if (job.part != 0) return;
  const Position<accumulator_t<T>> at(p, job, tensors.map);
  const Window window = Window::of_tile<256, 0>(p, job, at, slots);
  if (threadIdx.x != 0) return;
  tensors.places[place_index(p, job)] = {window.first_y, window.first_x, -window.rows, window.columns};
}

/// The pixels of one block, a patch of the plane: one a thread, as far as there are any.
struct Patch {
  static constexpr int kThreads = 256;
  int first_y, first_x, rows, columns;

  template <class Acc>
  __host__ __device__ static int width(const Layout<Acc>& p) {
    return p.width < 32 ? p.width : 32;
  }
  template <class Acc>
  __host__ __device__ static std::int64_t count(const Layout<Acc>& p) {
    const int across = width(p), down = kThreads / across;
    return std::int64_t{(p.height + down - 1) / down} * ((p.width + across - 1) / across);
  }
  template <class Acc>
  __device__ Patch(const Layout<Acc>& p, std::int64_t index) {
    const int across = width(p), down = kThreads / across, patches = (p.width + across - 1) / across;
    first_y = int(index / patches) * down;
    first_x = int(index % patches) * across;
    rows = min(down, p.height - first_y);
    columns = min(across, p.width - first_x);
  }
  __device__ bool meets(const int4& window) const {
    const int height = window.z < 0 ? -window.z : window.z;
    return window.x < first_y + rows && first_y < window.x + height && window.y < first_x + columns &&
           first_x < window.y + window.w;
  }
};

/// Adds what the marked tiles contribute, in a fixed order: every thread owns one pixel of a pack of planes, and looks for the
/// taps whose cells hold it, in the tiles whose windows meet the block's patch. Without marks, all tiles are done so.
///
/// `blocks` blocks share a pack's pixels. Where there are marks there are few, so most blocks only look for them and end.
template <class T>
__global__ void __launch_bounds__(Patch::kThreads)
    gather_kernel(const Layout<accumulator_t<T>> p, const BackwardPointers<T> tensors, unsigned blocks) {
  using Acc = accumulator_t<T>;
  constexpr int kThreads = Patch::kThreads;
  static __shared__ Acc rates[kThreads];
  static __shared__ bool wanted[kThreads];
  const int packs = (p.group_channels + kBackwardPack - 1) / kBackwardPack;
  unsigned rest = blockIdx.x / blocks;
  const int pack = int(rest % unsigned(packs));
  rest /= unsigned(packs);
  const int group = int(rest % unsigned(p.groups)), image = int(rest / unsigned(p.groups));
  const int channels = min(kBackwardPack, p.group_channels - pack * kBackwardPack);
  const std::int64_t plane = std::int64_t{image} * p.channels + group * p.group_channels + pack * kBackwardPack;
  const std::int64_t map_plane = (std::int64_t{p.shared_map ? 0 : image} * p.groups + group) * p.positions();
  const T* grad_output = tensors.grad_output + plane * p.taps() * p.positions();
  const int tiles = p.tile_rows * p.tile_columns, tile_positions = p.tile_height * p.tile_width;
  const int4* places = tensors.places + (std::int64_t{image} * p.groups + group) * tiles;
  const unsigned char* marks = tensors.left_over ? tensors.left_over + left_over_index(p, image, group, pack) : nullptr;

  bool marked = marks == nullptr;
  for (int tile = threadIdx.x; !marked && tile < tiles; tile += kThreads) marked = marks[tile];
  if (!__syncthreads_or(marked)) return;

  for (std::int64_t index = blockIdx.x % blocks; index < Patch::count(p); index += blocks) {
    const Patch patch(p, index);
    const int iy = patch.first_y + int(threadIdx.x) / Patch::width(p), ix = patch.first_x + int(threadIdx.x) % Patch::width(p);
    const bool active = iy < patch.first_y + patch.rows && ix < patch.first_x + patch.columns;
    Acc sums[kBackwardPack] = {};
    for (int first = 0; first < tiles; first += kThreads) {
      const int mine = first + int(threadIdx.x);
      __syncthreads();  // nobody looks at what was wanted before
      wanted[threadIdx.x] = mine < tiles && (!marks || marks[mine]) && patch.meets(places[mine]);
      if (!__syncthreads_or(wanted[threadIdx.x])) continue;
      for (int tile = first; tile < min(first + kThreads, tiles); ++tile) {
        if (!wanted[tile - first]) continue;
        const int tile_y = tile / p.tile_columns * p.tile_height, tile_x = tile % p.tile_columns * p.tile_width;
        for (int start = 0; start < tile_positions; start += kThreads) {
          const int slot = start + int(threadIdx.x);
          const int slot_y = tile_y + slot / p.tile_width, slot_x = tile_x + slot % p.tile_width;
          const bool exists = slot < tile_positions && slot_y < p.out_height && slot_x < p.out_width;
          const std::int64_t at = map_plane + std::int64_t{slot_y} * p.out_width + slot_x;
          __syncthreads();
          rates[threadIdx.x] = exists ? load_rate<Acc>(tensors.map, p.map_type, at) : Acc(NAN);
          __syncthreads();
          for (int n = 0; n < kThreads; ++n) {
            const Acc rate = rates[n];
            if (!is_finite(rate)) continue;  // no position, or one whose rate lets no gradient through
            const int oy = tile_y + (start + n) / p.tile_width, ox = tile_x + (start + n) % p.tile_width;
            for (int ky = 0; ky < p.kernel_h; ++ky) {
              const Cell<Acc> y = p.y.cell(p.y.base(oy), p.y.offset(ky), rate);
              if (unsigned(iy - y.index) > 1u) continue;
              for (int kx = 0; kx < p.kernel_w; ++kx) {
                const Cell<Acc> x = p.x.cell(p.x.base(ox), p.x.offset(kx), rate);
                if (unsigned(ix - x.index) > 1u || !active) continue;
                const Acc weight = (iy > y.index ? y.fraction : 1 - y.fraction) * (ix > x.index ? x.fraction : 1 - x.fraction);
                const std::int64_t column = std::int64_t{ky} * p.kernel_w + kx;
                const T* grad = grad_output + column * p.positions() + std::int64_t{oy} * p.out_width + ox;
#pragma unroll
                for (int j = 0; j < kBackwardPack; ++j) {
                  if (j < channels) sums[j] += weight * widen(grad[std::int64_t{j} * p.taps() * p.positions()]);
                }
              }
            }
          }
        }
      }
    }
    if (!active) continue;
    const std::int64_t pixel = std::int64_t{iy} * p.width + ix;
#pragma unroll
    for (int j = 0; j < kBackwardPack; ++j) {
      if (j < channels) tensors.grad_input[(plane + j) * p.pixels() + pixel] += sums[j];
    }
  }
}

}  // namespace ddu::cuda
