#pragma once

// Channels of one image in either memory format. Internal linkage: compiled once per instruction set.

#include <cstdint>

#include "ddu/memory_format.h"
#include "tiling.h"

namespace ddu::cpu {
namespace {

template <class T>
struct Image {
  T* first;  // pixel of the first channel
  std::int64_t channel_stride, pixel_stride;

  /// Of a tensor that has `members` channels for each of the geometry's, it has the slice's member of each.
  Image(T* tensor, MemoryFormat format, const Geometry& g, const Slice& slice, std::int64_t members = 1)
      : Image(tensor, format, g, slice, members, g.pixels()) {}
  Image(T* first, std::int64_t channel_stride, std::int64_t pixel_stride)
      : first(first), channel_stride(channel_stride), pixel_stride(pixel_stride) {}

  /// The same channels of a tensor that has a value for each position, not for each pixel.
  static Image of_positions(T* tensor, MemoryFormat format, const Geometry& g, const Slice& slice, std::int64_t members = 1) {
    return {tensor, format, g, slice, members, g.positions()};
  }

  bool is_channels_last() const { return channel_stride == 1; }
  T* at(std::int64_t channel, std::int64_t pixel) const { return first + (channel * channel_stride + pixel * pixel_stride); }
  Image from(std::int64_t channel) const { return {at(channel, 0), channel_stride, pixel_stride}; }

 private:
  Image(T* tensor, MemoryFormat format, const Geometry& g, const Slice& slice, std::int64_t members, std::int64_t plane) {
    const bool channels_last = format == MemoryFormat::channels_last;
    const std::int64_t next = channels_last ? 1 : plane;
    channel_stride = next * members;
    pixel_stride = channels_last ? g.channels * members : 1;
    first = tensor + (slice.image * g.channels * members * plane + (slice.channel(g) * members + slice.member) * next);
  }
};

/// Where gradients of a slice are summed: of each channel, the rows [first_row, last_row) of the image.
template <class Acc>
struct Sums {
  Image<Acc> image;     // whose first row is `origin`
  std::int64_t origin;  // row of the image
  std::int64_t first_row, last_row;
  std::int64_t width;

  bool has(std::int64_t y) const { return y >= first_row && y < last_row; }
  Acc* at(std::int64_t channel, std::int64_t y, std::int64_t x) const { return image.at(channel, (y - origin) * width + x); }
  Sums from(std::int64_t channel) const { return {image.from(channel), origin, first_row, last_row, width}; }
};

}  // namespace
}  // namespace ddu::cpu
