#include "image.h"

#include <numeric>

namespace ddu::cuda::convolution {
namespace {

struct PadSizes {
  std::int64_t vectors;  // of 16 bytes, of the whole copy
  int unit_channels, unit_vectors;
};

/// Rows of channels without gaps to rows of whole vectors, filled up with zeros. Elements are words of 2 or 4 bytes.
template <class Word>
__global__ void __launch_bounds__(256) pad_rows_kernel(const PadSizes sizes, const Word* from, Word* to) {
  constexpr int kOfVector = 16 / int(sizeof(Word));
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t n = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < sizes.vectors; n += step) {
    const std::int64_t unit = n / sizes.unit_vectors;
    const int channel = int(n - unit * sizes.unit_vectors) * kOfVector;
    Word element[kOfVector];
#pragma unroll
    for (int c = 0; c < kOfVector; ++c) {
      element[c] = channel + c < sizes.unit_channels ? __ldg(from + unit * sizes.unit_channels + channel + c) : Word(0);
    }
    uint4 whole;
    memcpy(&whole, element, sizeof whole);
    reinterpret_cast<uint4*>(to)[n] = whole;
  }
}

template <class Word>
void pad_rows(const PadSizes& sizes, const void* from, void* to, Stream stream) {
  const std::int64_t enough = std::int64_t{16} * current_device().multiprocessors;
  launch(pad_rows_kernel<Word>, {grid_size(std::min(ceil_div(sizes.vectors, std::int64_t{256}), enough)), 256}, stream, sizes,
         static_cast<const Word*>(from), static_cast<Word*>(to));
}

}  // namespace

Conv2dGeometry merge_groups(const Conv2dGeometry& given) {
  constexpr std::int64_t kProduct = 64, kMost = 256, kLeast = 8;
  const std::int64_t channels = given.weight_group_channels(), outputs = given.weight_group_outputs();
  Conv2dGeometry c = given;
  if (channels == 0 || outputs == 0) return c;
  const std::int64_t larger = std::max(channels, outputs), smaller = std::min(channels, outputs);
  const std::int64_t shared = std::gcd(given.geometry.group_channels(), given.head_channels());
  const auto fits = [&](std::int64_t n) { return given.weight_groups % n == 0 && shared % (n * channels) == 0; };
  std::int64_t merged = std::max<std::int64_t>(1, std::min(given.weight_groups, kProduct / larger));
  while (merged > 1 && !fits(merged)) --merged;
  if (merged * smaller < kLeast) {  // nothing to multiply: more than a product holds, if that helps
    std::int64_t more = std::max(merged + 1, ceil_div(kLeast, smaller));
    while (more <= std::min(given.weight_groups, kMost / larger) && !fits(more)) ++more;
    if (more <= std::min(given.weight_groups, kMost / larger)) merged = more;
  }
  c.weight_groups /= merged;
  return c;
}

HeadGeometry units_of(const Conv2dGeometry& c) {
  const std::int64_t unit = std::gcd(std::gcd(c.geometry.group_channels(), c.head_channels()), c.weight_group_channels());
  return {c.geometry, c.geometry.channels / unit, c.geometry.batch};
}

HeadGeometry with_heads(const Conv2dGeometry& c) {
  const std::int64_t channels = std::gcd(c.head_channels(), c.weight_group_channels());
  return {c.geometry, c.geometry.channels / channels, 1};
}

Geometry as_image(const Conv2dGeometry& c) {
  Geometry g = c.geometry;
  g.channels = c.out_channels;
  g.groups = c.weight_groups;
  g.h.size = g.h.out_size;
  g.w.size = g.w.out_size;
  return g;
}

ImageOfUnits::ImageOfUnits(const Conv2dGeometry& c, DType type, MemoryFormat format, const void* input, void* memory)
    : units(units_of(c)), given(units, type, format, input, memory), rows(given.image), bytes(given.bytes) {
  if (!rows.own || rows.vectors) return;
  rows = channels_last::ImageRows(units, MemoryFormat::contiguous, static_cast<int>(16 / size_of(type)), true);
  Workspace workspace(memory);
  padded = workspace.take<unsigned char>(rows.numel() * static_cast<std::int64_t>(size_of(type)));
  bytes = workspace.bytes();
}

const void* ImageOfUnits::read(DType type, const void* input, Stream stream) const {
  if (!padded) return given.read(type, input, stream);
  const PadSizes sizes{rows.numel() * static_cast<std::int64_t>(size_of(type)) / 16, static_cast<int>(units.head_channels()),
                       unit_vectors(type)};
  size_of(type) == 2 ? pad_rows<unsigned short>(sizes, input, padded, stream)
                     : pad_rows<unsigned>(sizes, input, padded, stream);
  return padded;
}

}  // namespace ddu::cuda::convolution
