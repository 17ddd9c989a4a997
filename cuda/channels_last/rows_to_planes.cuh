#pragma once

// Sums of a gradient, or pixels, channels-last, to planes; and ordered sums that wide tiles have in planes. A thread takes a
// square of kVec pixels by kVec channels and turns it in registers.

#include "conversion.cuh"
#include "ordered_sums.cuh"

namespace ddu::cuda {

/// One thread's square.
template <class T>
struct ConversionWork {
  std::int64_t pixel, plane, row;           // first pixel; first element of its plane, and of its row
  std::int64_t group_plane, channel_plane;  // of all images, the group and the first channel
  int channels, pixels;                     // how many there are of each; none is less than 1

  __device__ ConversionWork(const ConversionParams& p, unsigned block) {
    unsigned rest = p.by_pixel_blocks.take(block);
    unsigned slice = rest;
    rest = p.by_slices.take(slice);
    unsigned group = rest;
    const unsigned image = p.by_groups.take(group);
    const int lanes = 1 << p.log_lanes;
    const int channel = (int(slice) * lanes + (int(threadIdx.x) & (lanes - 1))) * kVec<T>;
    pixel = (std::int64_t{block} * (kRowThreads >> p.log_lanes) + (threadIdx.x >> p.log_lanes)) * kVec<T>;
    channels = min(p.group_channels - channel, kVec<T>);
    pixels = int(min(p.pixels - pixel, std::int64_t{kVec<T>}));
    group_plane = std::int64_t{image} * p.groups + group;
    channel_plane = group_plane * p.group_channels + channel;
    plane = channel_plane * p.pixels;
    row = image * p.rows.image + group * p.rows.group + channel + pixel * p.rows.pixel;
  }
};

/// Reads the sums of kVec channels of pixels, from the first channel `plane` of all images on.
template <class T, class Sums>
struct SumsReader;

template <class T>
struct SumsReader<T, FloatingSums<T>> {
  using Acc = accumulator_t<T>;
  const FloatingSums<T>& sums;

  __device__ SumsReader(const FloatingSums<T>& sums, std::int64_t, int) : sums(sums) {}
  __device__ __forceinline__ void load(std::int64_t at, Acc (&value)[kVec<T>]) const {
    const auto* from = reinterpret_cast<const uint4*>(sums.words + at);
#pragma unroll
    for (int v = 0; v < int(sizeof(Acc) / sizeof(T)); ++v) {
      Bits16<Acc> some;
      some.whole = from[v];
#pragma unroll
      for (int c = 0; c < kVec<Acc>; ++c) value[v * kVec<Acc> + c] = some.get(c);
    }
  }
};
/// Pixels of a channels_last tensor, read as if they were sums.
template <class T>
struct PixelRows {
  static constexpr bool kOrdered = false;
  const T* words;
};
template <class T>
struct SumsReader<T, PixelRows<T>> {
  const PixelRows<T>& pixels;

  __device__ SumsReader(const PixelRows<T>& pixels, std::int64_t, int) : pixels(pixels) {}
  __device__ __forceinline__ void load(std::int64_t at, accumulator_t<T> (&value)[kVec<T>]) const {
    Bits16<T> some;
    some.whole = *reinterpret_cast<const uint4*>(pixels.words + at);
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) value[c] = some.get(c);
  }
};
template <class T>
struct SumsReader<T, OrderedSums<T>> {
  const OrderedSums<T>& sums;
  int channels;
  typename OrderedSums<T>::Unit unit[kVec<T>];

  __device__ SumsReader(const OrderedSums<T>& sums, std::int64_t plane, int channels) : sums(sums), channels(channels) {
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) {
      if (c < channels) unit[c] = sums.unit(plane + c);
    }
  }
  __device__ __forceinline__ void load(std::int64_t at, accumulator_t<T> (&value)[kVec<T>]) const {
    const unsigned marks = sums.marks(at);  // vectors do not cross what these are of
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) value[c] = c < channels ? sums.value(at + c, unit[c], marks >> (2 * c)) : 0;
  }
};

/// Writes one channel's pixels, or, kAdd, adds to them, which are zero unless `held`. kWhole: they are 16 bytes of T, or
/// several times 16 bytes.
template <bool kAdd, bool kWhole, class T, class To>
__device__ __forceinline__ void store_channel(To* to, const accumulator_t<T> (&value)[kVec<T>], int pixels, bool held) {
  constexpr int kN = kVec<T>;
  if constexpr (kAdd && kWhole) {
#pragma unroll
    for (int i = 0; i < kN; i += kVec<To>) {
      auto* four = reinterpret_cast<uint4*>(to + i);
      Bits16<To> bits{};
      if (held) bits.whole = *four;
#pragma unroll
      for (int j = 0; j < kVec<To>; ++j) {
        const To sum = bits.get(j) + To(value[i + j]);
        bits.set(j, sum == sum ? sum : To(NAN));  // of two NaN, the bits would tell which came first
      }
      *four = bits.whole;
    }
  } else if constexpr (kAdd) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (i >= pixels || value[i] == 0) continue;
      const To sum = to[i] + To(value[i]);
      to[i] = sum == sum ? sum : To(NAN);
    }
  } else {
    Bits16<To> bits;
#pragma unroll
    for (int i = 0; i < kN; ++i) bits.set(i, narrow<To>(i < pixels ? value[i] : 0));
    if constexpr (kWhole) {
      *reinterpret_cast<uint4*>(to) = bits.whole;
    } else {
      store_positions<false>(to, bits, pixels);
    }
  }
}

/// Adds what wide tiles have summed in planes.
template <class T>
__device__ __forceinline__ void add_ordered_planes(const ConversionParams& p, OrderedSums<T> sums, const OrderedPlanes& of_wide,
                                                   const ConversionWork<T>& work, bool whole,
                                                   accumulator_t<T> (&value)[kVec<T>][kVec<T>]) {
  sums.words = of_wide.words;
#pragma unroll
  for (int c = 0; c < kVec<T>; ++c) {
    if (c >= work.channels) break;
    const auto unit = sums.unit(work.channel_plane + c);
    const std::int64_t first = work.plane + c * p.pixels + work.pixel;
    if (whole) {
#pragma unroll
      for (int i = 0; i < kVec<T>; i += 2) {
        const auto words = *reinterpret_cast<const ulonglong2*>(sums.words + first + i);
        value[c][i] += sums.scaled(words.x, unit);
        value[c][i + 1] += sums.scaled(words.y, unit);
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      if (i < work.pixels) value[c][i] += sums.scaled(sums.words[first + i], unit);
    }
  }
}

/// Zeros.
template <class Acc, int kN>
__device__ __forceinline__ void clear_square(Acc (&value)[kN][kN]) {
#pragma unroll
  for (int c = 0; c < kN; ++c) {
#pragma unroll
    for (int i = 0; i < kN; ++i) value[c][i] = 0;
  }
}

/// Marks of tiles whose sums are added to planes.
template <class Sums>
constexpr unsigned char kLeft = Sums::kOrdered ? TileMarks::kMarked | TileMarks::kWide : TileMarks::kMarked;

/// What one block does. kAdd: planes hold something already, of tiles that were not left, unless `held` says that all were; and
/// sums may come from planes too.
template <class T, class Sums, class To, bool kAdd>
__device__ __forceinline__ void rows_to_planes(const ConversionParams& p, const TileMarks& tiles, const Sums& sums, To* planes,
                                               bool whole, unsigned block, const OrderedPlanes& of_wide = {},
                                               bool held = true) {
  constexpr int kN = kVec<T>;
  constexpr bool kBoth = kAdd && Sums::kOrdered;
  const ConversionWork<T> work(p, block);
  const std::int64_t first_tile = work.group_plane * tiles.tiles;
  if (kAdd && !tiles.any<kLeft<Sums>>(first_tile, tiles.tiles) && held) return;
  const bool in_rows = !kBoth || tiles.any(first_tile, tiles.tiles);
  const bool in_planes = kBoth && of_wide.words && tiles.any<TileMarks::kWide>(first_tile, tiles.tiles);
  if (work.channels <= 0 || work.pixels <= 0) return;
  const SumsReader<T, Sums> reader(sums, work.channel_plane, work.channels);
  accumulator_t<T> value[kN][kN];  // of a channel, and of a pixel
  if constexpr (kBoth) clear_square(value);
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i >= work.pixels || !in_rows) continue;
    accumulator_t<T> pixel[kN];
    reader.load(work.row + i * p.rows.pixel, pixel);
#pragma unroll
    for (int c = 0; c < kN; ++c) value[c][i] = pixel[c];
  }
  if constexpr (kBoth) {
    if (in_planes) add_ordered_planes<T>(p, sums, of_wide, work, whole, value);
  }
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    if (c >= work.channels) break;
    To* to = planes + work.plane + c * p.pixels + work.pixel;
    whole ? store_channel<kAdd, true, T>(to, value[c], work.pixels, held)
          : store_channel<kAdd, false, T>(to, value[c], work.pixels, held);
  }
}

/// Sums of a half type as those of float32, which they are.
template <class T>
__host__ __device__ FloatingSums<float> float_sums(const FloatingSums<T>& sums) {
  FloatingSums<float> same{};
  same.words = sums.words;
  return same;
}
template <class T>
__host__ __device__ OrderedSums<float> float_sums(const OrderedSums<T>& sums) {
  OrderedSums<float> same{};
  same.words = sums.words;
  same.array = sums.array;
  same.strange = sums.strange;
  same.largest = sums.largest;
  same.bits = sums.bits;
  same.fallback_marks = sums.fallback_marks;
  return same;
}

/// Planes of float32 that hold something already, to which sums of marked groups are added: by all blocks of a kernel.
struct SumsToPlanes {
  ConversionParams params;
  float* planes;
  bool whole;  // they start at multiples of 16 bytes, and so does the end of each
  unsigned blocks;

  template <class Sums>
  __device__ __forceinline__ void run(const TileMarks& tiles, const Sums& sums, const OrderedPlanes& of_wide = {},
                                      bool held = true) const {
#pragma unroll 1
    for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x)
      rows_to_planes<float, Sums, float, true>(params, tiles, sums, planes, whole, block, of_wide, held);
  }
};
/// That alone. It lets nobody start early: fallback_kernel asks for marks before it waits.
template <class Sums>
__global__ void __launch_bounds__(kRowThreads)
    add_to_planes_kernel(const SumsToPlanes planes, const TileMarks tiles, const Sums sums, const OrderedPlanes of_wide) {
  if (tiles.nothing_left<kLeft<Sums>>()) return;
  planes.run(tiles, sums, of_wide, !Sums::kOrdered || !tiles.every<kLeft<Sums>>());
}

/// Writes planes of T.
template <class T, class Sums>
__global__ void __launch_bounds__(kRowThreads)
    rows_to_planes_kernel(const ConversionParams p, const Sums sums, T* planes, bool whole) {
  wait_for_previous();
  rows_to_planes<T, Sums, T, false>(p, TileMarks{}, sums, planes, whole, blockIdx.x);
}

}  // namespace ddu::cuda
