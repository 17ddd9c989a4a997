#pragma once

// What goes before the backward kernels and what follows them: zeros to add to, sums to the gradients' types, and, of a
// deterministic backward, the windows that tiles stored.

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

}  // namespace ddu::cuda
