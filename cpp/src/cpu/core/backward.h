#pragma once

// The walk of a backward: gradients of columns, which never lie in memory as such, are added to the image and to the rates.
// Internal linkage: compiled once per instruction set.
//
// The gradients come from a source, an object for the channels of one Vec and one tile. source.gradients(tap) makes those of a
// tap ready, and returns what hands them out, a small value whose type does not depend on that of the elements in memory:
//   void load(int n, Block& block) const;   of a block of positions: 0 where the rate is not finite, and beyond the tile

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "taps.h"
#include "vecs.h"
#include "without_window.h"

namespace ddu::cpu {
namespace {

/// Adds the gradients of one tap to a window of sums and, summed over the lanes at the end, to `rate_sums`; null if not wanted.
/// `from` is the same tap for reading `values`.
template <class Acc, int N, class Grads, class V>
DDU_ONE_COPY void backward_tap(Tap<Acc> to, Tap<Acc> from, int padded, Grads grads, V* sums, const V* values, V* rate_sums) {
  for (int n = 0; n < padded; n += kBlock<N>) {
    typename Stage<Acc, N>::Block grad;
    grads.load(n, grad);
    if (sums) scatter(to, n, grad, sums);
    if (rate_sums) add_derivatives(from, n, grad, values, rate_sums + n);
  }
}

/// Adds the gradients of one tile and up to N channels to `sums` and, per position, to `rate_sums`. Either may be null.
template <int N, class T, class Acc, class Source>
void backward_vec(const Tile<Acc>& tile, const Image<const T>& input, Source&& source, int used, const Sums<Acc>* sums,
                  Acc* rate_sums, const Scratch& scratch) {
  using V = Vec<Acc, N>;
  Window<Acc, N> values(scratch.window, scratch.transfer), grad_sums(scratch.grad_window, scratch.transfer);
  V* vec_sums = static_cast<V*>(scratch.vec_sums);
  if (sums) grad_sums.clear(tile);
  if (rate_sums) std::fill_n(vec_sums, tile.padded, V{});
  const bool finite = !rate_sums || values.load(tile, input, used);
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    const Tap<Acc> to(tile, ky, kx);
    Tap<Acc> from = to;
    if (!finite) from.with_all_corners();
    const auto grads = source.gradients(index);
    if constexpr (N == 1) {  // gcc makes backward_tap 40 % slower than this with plain numbers
      for (int n = 0; n < tile.padded; n += kBlock<N>) {
        typename Stage<Acc, N>::Block grad;
        grads.load(n, grad);
        if (sums) scatter(to, n, grad, grad_sums.pixel);
        if (rate_sums) add_derivatives(from, n, grad, values.pixel, vec_sums + n);
      }
    } else {
      backward_tap<Acc, N>(to, from, tile.padded, grads, sums ? grad_sums.pixel : nullptr, values.pixel,
                           rate_sums ? vec_sums : nullptr);
    }
  });
  if (sums) grad_sums.add_to(*sums, tile, used);
  for (int n = 0; rate_sums && n < tile.padded; n += kBlock<N>) {
    typename Stage<Acc, N>::Block block;
    std::copy_n(vec_sums + n, kBlock<N>, block);
    add_lanes<Acc, N>(block, rate_sums + n);
  }
}

/// The same for one channel, with vectors of positions. Its source has rows(tap), which are GradRows.
template <class T, class Acc, class Source>
void backward_alone(const Tile<Acc>& tile, const Image<const T>& input, Source&& source, const Sums<Acc>* sums, Acc* rate_sums,
                    const Scratch& scratch) {
  ChannelWindow<Acc> window(tile, scratch.window, scratch.grad_window, scratch.transfer);
  if (sums) window.clear();
  const bool finite = !rate_sums || window.load(input);
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    const GradRows<Acc> grads = source.rows(index);
    const Tap<Acc> to(tile, ky, kx);
    Tap<Acc> from = to;
    if (!finite) from.with_all_corners();
    if (sums && rate_sums) return window.scatter_and_add_derivatives(to, from, grads, rate_sums);
    if (sums) window.scatter(to, grads);
    if (rate_sums) window.add_derivatives(from, grads, rate_sums);
  });
  if (sums) window.add_to(*sums);
}

/// The same for one channel of a tile whose window does not fit.
template <class T, class Acc, class Source>
void backward_scalar(const Tile<Acc>& tile, const Image<const T>& input, Source&& source, const Sums<Acc>* sums, Acc* rate_sums,
                     const Scratch& scratch) {
  Acc* const grads = Stage<Acc, 1>::in(scratch.transfer).row[0];
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    const auto gradients = source.gradients(index);
    for (int n = 0; n < tile.padded; n += kBlock<1>) {
      typename Stage<Acc, 1>::Block block;
      gradients.load(n, block);
      std::memcpy(grads + n, block, sizeof block);
    }
    if (sums) scatter_scalar(tile, ky, kx, input, grads, *sums);
    if (rate_sums) add_derivatives_scalar(tile, ky, kx, input, grads, rate_sums);
  });
}

/// Sets some channels' sums to 0.
template <class Acc>
void clear(const Sums<Acc>& sums, std::int64_t channels) {
  const std::int64_t pixels = (sums.last_row - sums.first_row) * sums.width, step = sums.image.pixel_stride;
  if (sums.image.is_channels_last() && step != 1) {
    for (std::int64_t p = 0; p < pixels; ++p) std::fill_n(sums.at(0, sums.first_row, p), channels, Acc(0));
    return;
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    Acc* const first = sums.at(c, sums.first_row, 0);
    if (step == 1) std::fill_n(first, pixels, Acc(0));
    for (std::int64_t p = 0; step != 1 && p < pixels; ++p) first[p * step] = 0;
  }
}

/// What a backward reads beside the gradients, and what it writes.
struct BackwardTensors {
  const void* image;
  const void* map;
  DType map_type;
  void* grad_image;  // null if not wanted
  MemoryFormat format;
  std::int64_t members = 1;  // of each of the geometry's channels in image and grad_image: see Image
};

/// Both gradients of a slice, as far as the band goes: to the image, and to `map_sums`, a value for each position; null if not
/// wanted. `each_vec(tile, body)` calls body(lanes, first, used) for the channels of the slice, `source(lanes, tile, first,
/// used)` makes a source.
template <class T, class EachVec, class MakeSource>
void backward_walk(const Geometry& g, const BackwardTensors& tensors, const Slice& slice, const Band& band,
                   const Scratch& scratch, void* map_sums, EachVec each_vec, MakeSource make_source) {
  using Acc = accumulator_t<T>;
  constexpr bool kApart = sizeof(T) < sizeof(Acc);  // sums are rounded at the end
  const std::int64_t first_pixel = band.first_row * g.w.size, pixels = (band.last_row - band.first_row) * g.w.size;
  T* const grad_image = static_cast<T*>(tensors.grad_image);
  const Image<T> result(grad_image, tensors.format, g, slice, tensors.members);
  const Image<const T> image(static_cast<const T*>(tensors.image), tensors.format, g, slice, tensors.members);
  const auto sums = [&]() -> Sums<Acc> {
    if constexpr (kApart)
      return {{static_cast<Acc*>(scratch.sums), pixels, 1}, band.first_row, band.first_row, band.last_row, g.w.size};
    else
      return {result, 0, band.first_row, band.last_row, g.w.size};
  }();
  if (grad_image) clear(sums, slice.channels);

  const Tiling tiling(g);
  for (std::int64_t index = 0; index < tiling.count(); ++index) {
    const Rates<Acc> rates(g, tensors.map, tensors.map_type, g.map_offset(slice.image, slice.group), tiling.region(index),
                           scratch.tile);
    const bool to_image = grad_image && rates.reaches(band.first_row, band.last_row);
    const bool to_map = map_sums && index >= band.first_tile && index < band.last_tile;
    if (!to_image && !to_map) continue;
    const Tile<Acc> tile(rates);
    Acc* const rate_sums = to_map ? static_cast<Acc*>(scratch.rate_sums) : nullptr;  // over taps and channels
    if (to_map) std::fill_n(rate_sums, tile.padded, Acc(0));
    each_vec(tile, [&](auto lanes, std::int64_t first, int used) {
      constexpr int N = std::max<int>(lanes, 1);
      const Image<const T> input = image.from(first);
      const Sums<Acc> vec_sums = sums.from(first);
      const Sums<Acc>* image_sums = to_image ? &vec_sums : nullptr;
      auto&& source = make_source(std::integral_constant<int, N>{}, tile, first, used);
      if constexpr (lanes == 0) {
        backward_scalar(tile, input, source, image_sums, rate_sums, scratch);
      } else if constexpr (std::is_same_v<decltype(lanes), Alone>) {
        backward_alone(tile, input, source, image_sums, rate_sums, scratch);
      } else {
        backward_vec<N>(tile, input, source, used, image_sums, rate_sums, scratch);
      }
      return true;  // differences of an infinite pixel and its copy are NaN, as its slope is without a window
    });
    if (to_map) {
      tile.for_each_run([&](int n, std::int64_t position, int length) {
        Acc* target = at<Acc>(map_sums, position);
        for (int i = 0; i < length; ++i) target[i] = rate_sums[n + i] + tile.nan[n + i];
      });
    }
  }

  if constexpr (kApart) {
    for (std::int64_t c = 0; grad_image && c < slice.channels; ++c) {
      T* rows = result.at(c, first_pixel);
      const Acc* sum = sums.at(c, band.first_row, 0);
      for (std::int64_t p = 0; p < pixels; ++p) rows[p * result.pixel_stride] = narrow<T>(sum[p]);
    }
  }
}

/// The walk of an operator with heads. A source of its is a Source<lanes, T, Acc>, made from its tensors.
template <class T, template <int, class, class> class Source, class Tensors>
void backward_of_heads(const HeadGeometry& heads, const BackwardTensors& walked, const Tensors& tensors, const Slice& slice,
                       const Band& band, const Scratch& scratch, void* map_sums) {
  using Acc = accumulator_t<T>;
  backward_walk<T>(
      heads.geometry, walked, slice, band, scratch, map_sums,
      [&](const Tile<Acc>& tile, auto body) { for_each_vec(tile, heads, slice, body); },
      [&](auto lanes, const Tile<Acc>& tile, std::int64_t first, int used) {
        return Source<lanes, T, Acc>(heads, tile, tensors, slice, first, used, scratch);
      });
}

/// A SumMap: see plan.h.
template <class Acc>
void sum_map(DType map_type, const void* map_sums, std::int64_t slices, std::int64_t stride, std::int64_t count, void* map) {
  const auto store = [&](auto* target) {
    using M = std::remove_pointer_t<decltype(target)>;
    for (std::int64_t n = 0; n < count; ++n) {
      Acc sum = 0;
      for (std::int64_t slice = 0; slice < slices; ++slice) sum += at<Acc>(map_sums, slice * stride)[n];
      target[n] = narrow<M>(static_cast<accumulator_t<M>>(sum));
    }
  };
  if (map_type == DType::float16) return store(static_cast<float16*>(map));
  if (map_type == DType::bfloat16) return store(static_cast<bfloat16*>(map));
  store(static_cast<Acc*>(map));
}

}  // namespace
}  // namespace ddu::cpu
