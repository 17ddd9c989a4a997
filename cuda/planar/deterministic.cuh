#pragma once

// A deterministic backward: tiles store their windows of sums instead of adding them to the gradient, and a second kernel adds
// up what was stored, for each pixel in the same order.
//
//        tile   |   tile   |   tile        A pixel P lies in the window of its own tile, and of those around whose window
//      ---------+----------+---------      reaches it. Windows that reach beyond the tiles around are not stored: such tiles
//        tile   |  own  P  | near_x        are marked, for the kernels that follow.
//      ---------+----------+---------      At moderate rates only the nearer tile of each axis reaches P: four windows,
//        tile   |  near_y  |   both        not nine.

#include <climits>

#include "../core/dependent_launch.cuh"
#include "../core/integer.h"
#include "pointers.cuh"

namespace ddu::cuda {

/// How add_windows_kernel shares the work: a thread owns one pixel of a run of channels.
struct AddWindows {
  static constexpr int kThreads = 256;
  int channels = 16;  // of a run; in the kernel, as a constant, it made registers spill
  // What is divided fits 32 bits: divisions of 64 took most of the kernel's time where there is one channel.
  Divider by_pixel_blocks, by_channel_blocks, by_width;

  explicit AddWindows(const Params<float>& p)
      : by_pixel_blocks(static_cast<unsigned>(ceil_div(std::int64_t{p.height} * p.width, kThreads))),
        by_channel_blocks(static_cast<unsigned>(ceil_div(p.group_channels, channels))),
        by_width(static_cast<unsigned>(p.width)) {}
  std::int64_t blocks(std::int64_t planes) const {
    return std::int64_t{by_pixel_blocks.divisor} * by_channel_blocks.divisor * planes;
  }
};

constexpr int kNoWindow = INT_MIN;

/// Adds up, channel by channel, what lies at these offsets of the stored windows; `any` is one that is not kNoWindow.
template <int kCount>
__device__ __forceinline__ void add_offsets(const int (&offsets)[kCount], int any, const float* windows,
                                            std::int64_t plane_stride, float* target, std::int64_t pixels, int channels) {
#pragma unroll kCount <= 4 ? 8 : 2
  for (int left = channels; left > 0; --left, windows += plane_stride, target += pixels) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const bool there = offsets[n] != kNoWindow;
      const float value = __ldcs(windows + (there ? offsets[n] : any));  // always loaded: then the loads do not wait in turn
      sum += there ? value : 0.f;
    }
    *target = sum;
  }
}

/// The input's gradient from the windows that the tiles stored.
__global__ void __launch_bounds__(AddWindows::kThreads, 4)
    add_windows_kernel(const Params<float> p, const BackwardPointers<float> tensors, const AddWindows cut) {
  let_next_start();
  const unsigned tiles = p.by_tiles.divisor;
  unsigned block = blockIdx.x, run = cut.by_pixel_blocks.take(block), group = cut.by_channel_blocks.take(run);
  const unsigned image = p.by_groups.take(group);
  const std::int64_t pixel = std::int64_t{block} * AddWindows::kThreads + threadIdx.x;
  if (pixel >= p.pixels()) return;

  const int first = int(run) * cut.channels;
  unsigned column = unsigned(pixel);
  const int iy = int(cut.by_width.take(column)), ix = int(column);
  const int tile_pixels_y = p.tile_height * p.y.stride, tile_pixels_x = p.tile_width * p.x.stride;
  const int tile_y = (iy - p.y.base(0)) / tile_pixels_y, tile_x = (ix - p.x.base(0)) / tile_pixels_x;
  // The tile that is nearer comes first: the others hardly ever reach the pixel.
  const int near_y = 2 * ((iy - p.y.base(0)) % tile_pixels_y) < tile_pixels_y ? -1 : 1;
  const int near_x = 2 * ((ix - p.x.base(0)) % tile_pixels_x) < tile_pixels_x ? -1 : 1;
  const WindowRect* rects = tensors.window_rects + (std::int64_t{image} * p.groups + group) * tiles;
  int offsets[9], any = kNoWindow;  // within the windows of a plane, from that of the pixel's own tile
#pragma unroll
  for (int n = 0; n < 9; ++n) {
    const int dy = n / 3 == 0 ? 0 : n / 3 == 1 ? near_y : -near_y, dx = n % 3 == 0 ? 0 : n % 3 == 1 ? near_x : -near_x;
    const int ty = tile_y + dy, tx = tile_x + dx;
    offsets[n] = kNoWindow;
    if (ty < 0 || ty >= p.tile_rows || tx < 0 || tx >= p.tile_columns) continue;
    const WindowRect rect = rects[ty * p.tile_columns + tx];
    const int r = iy - rect.first_y, c = ix - rect.first_x;
    if (r < 0 || r >= rect.rows || c < 0 || c >= rect.columns) continue;
    offsets[n] = any = (dy * p.tile_columns + dx) * p.capacity + r * rect.columns + c;
  }

  const std::int64_t plane = std::int64_t{image} * p.channels + group * p.group_channels;
  const std::int64_t plane_stride = std::int64_t{tiles} * p.capacity, own = std::int64_t{tile_y} * p.tile_columns + tile_x;
  const float* windows = tensors.window_sums + (plane + first) * plane_stride + own * p.capacity;
  float* target = tensors.grad_input + (plane + first) * p.pixels() + pixel;
  const int channels = min(cut.channels, p.group_channels - first);
  if (any == kNoWindow) {  // no tile reaches the pixel
    for (int left = channels; left > 0; --left, target += p.pixels()) *target = 0;
    return;
  }
  const bool beyond_near = offsets[2] != kNoWindow || offsets[5] != kNoWindow || offsets[6] != kNoWindow ||
                           offsets[7] != kNoWindow || offsets[8] != kNoWindow;
  if (__any_sync(__activemask(), beyond_near)) {
    return add_offsets(offsets, any, windows, plane_stride, target, p.pixels(), channels);
  }
  const int near[4] = {offsets[0], offsets[1], offsets[3], offsets[4]};
  add_offsets(near, any, windows, plane_stride, target, p.pixels(), channels);
}

}  // namespace ddu::cuda
