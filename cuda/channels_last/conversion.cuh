#pragma once

// Between planes of pixels and pixels whose channels lie side by side. As in the kernels that need it, a thread takes a square
// of kVec pixels by kVec channels and turns it in registers.

#include "gather.cuh"

namespace ddu::cuda {

struct ConversionParams {
  std::int64_t pixels;
  int group_channels;  // of a plane's group; the planes of a group lie one after the other
  RowLayout rows;
  int log_lanes;        // channel vectors that a warp takes
  int slices, groups;
  Divider by_pixel_blocks, by_slices, by_groups;
};

/// One thread's square.
template <class T>
struct ConversionWork {
  std::int64_t pixel, plane, row;  // first pixel; first element of its plane, and of its row
  int channels, pixels;            // how many there are of each; none is less than 1
  int padded;                      // channels up to the end of the vector, if this lane has any place at all

  __device__ explicit ConversionWork(const ConversionParams& p) {
    unsigned rest = blockIdx.x, block = rest;
    rest = p.by_pixel_blocks.take(block);
    unsigned slice = rest;
    rest = p.by_slices.take(slice);
    unsigned group = rest;
    const unsigned image = p.by_groups.take(group);
    const int lanes = 1 << p.log_lanes;
    const int channel = (int(slice) * lanes + (int(threadIdx.x) & (lanes - 1))) * kVec<T>;
    pixel = (std::int64_t{block} * (kRowThreads >> p.log_lanes) + (threadIdx.x >> p.log_lanes)) * kVec<T>;
    channels = min(p.group_channels - channel, kVec<T>);
    pixels = int(min(p.pixels - pixel, std::int64_t{kVec<T>}));
    plane = ((std::int64_t{image} * p.groups + group) * p.group_channels + channel) * p.pixels;
    row = image * p.rows.image + group * p.rows.group + channel + pixel * p.rows.pixel;
  }
};

/// Planes to rows, whose padding becomes zero; and, unless null, clears sums of the same layout.
/// kPlanes: planes start at multiples of 16 bytes, and so does the end of each. Rows do.
template <class T, bool kPlanes>
__global__ void __launch_bounds__(kRowThreads)
    planes_to_rows_kernel(const ConversionParams p, const T* planes, T* rows, accumulator_t<T>* sums) {
  constexpr int kN = kVec<T>;
  const ConversionWork<T> work(p);
  if (work.channels <= 0 || work.pixels <= 0) return;
  Bits16<T> channel[kN];
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    if (c < work.channels) channel[c] = load_positions<kPlanes>(planes + work.plane + c * p.pixels + work.pixel, work.pixels);
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i >= work.pixels) break;
    Bits16<T> pixel;
#pragma unroll
    for (int c = 0; c < kN; ++c) pixel.set(c, channel[c].at(i));
    *reinterpret_cast<uint4*>(rows + work.row + i * p.rows.pixel) = pixel.whole;
    if (sums) {
      auto* zeros = reinterpret_cast<uint4*>(sums + work.row + i * p.rows.pixel);
#pragma unroll
      for (int v = 0; v < int(sizeof(accumulator_t<T>) / sizeof(T)); ++v) zeros[v] = {0, 0, 0, 0};
    }
  }
}

/// Sums in rows to planes of T.
template <class T, bool kPlanes>
__global__ void __launch_bounds__(kRowThreads)
    rows_to_planes_kernel(const ConversionParams p, const accumulator_t<T>* sums, T* planes) {
  using Acc = accumulator_t<T>;
  constexpr int kN = kVec<T>;
  const ConversionWork<T> work(p);
  if (work.channels <= 0 || work.pixels <= 0) return;
  Square<T> square;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    Acc value[kN] = {};
    if (i < work.pixels) {
      const auto* from = reinterpret_cast<const uint4*>(sums + work.row + i * p.rows.pixel);
#pragma unroll
      for (int v = 0; v < int(sizeof(Acc) / sizeof(T)); ++v) {
        Bits16<Acc> some;
        some.whole = from[v];
#pragma unroll
        for (int c = 0; c < kVec<Acc>; ++c) value[v * kVec<Acc> + c] = some.get(c);
      }
    }
    square.set(i, value);
  }
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    T* to = planes + work.plane + c * p.pixels + work.pixel;
    if (c >= work.channels) break;
    if constexpr (kPlanes) {
      *reinterpret_cast<uint4*>(to) = square.channel[c].whole;
    } else {
      store_positions<false>(to, square.channel[c], work.pixels);
    }
  }
}

}  // namespace ddu::cuda
