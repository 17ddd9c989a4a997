#pragma once

// Sums over the channels of a head, which give a number for each head, tap and position: scores of correlate, gradients of
// weights and masks. Internal linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "nontemporal.h"
#include "vecs.h"
#include "weighted.h"
#include "without_window.h"

namespace ddu::cpu {
namespace {

/// Scores of a tile: of the heads of a run, a row of positions for each tap.
template <class Acc>
struct Scores {
  Acc* first;
  std::int64_t taps, padded, first_head, head_channels;

  Acc* row(std::int64_t head, std::int64_t tap) const { return first + ((head - first_head) * taps + tap) * padded; }
  Acc* row_of_channel(std::int64_t channel, std::int64_t tap) const { return row(channel / head_channels, tap); }
};

/// What such a sum reads beside the values, and what it writes.
struct ScoresTensors {
  const void *image, *map;
  DType map_type;
  void* result;
  MemoryFormat format;       // of image
  std::int64_t members = 1;  // of each of the geometry's channels in the image: see Image
};

/// Adds what some channels of a group, a slice, give to the scores of a tile.
template <class T, class Acc, class MakeValues>
void add_to_scores(const HeadGeometry& heads, const Tile<Acc>& tile, const ScoresTensors& tensors, const Slice& slice,
                   const Scratch& scratch, const Scores<Acc>& scores, MakeValues make_values) {
  const Geometry& g = heads.geometry;
  const Image<const T> image(static_cast<const T*>(tensors.image), tensors.format, g, slice, tensors.members);
  for_each_vec(tile, heads, slice, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    using V = Vec<Acc, N>;
    const Image<const T> input = image.from(first);
    const std::int64_t channel = slice.channel(g) + first;
    const bool one_head = channel / heads.head_channels() == (channel + used - 1) / heads.head_channels();
    auto source = make_values(std::integral_constant<int, N>{}, tile, slice, first, used);
    Window<Acc, N> window(scratch.window, scratch.transfer);
    const bool finite = lanes == 0 || window.load(tile, input, used);
    if (!finite && !all_corners_serve(tile)) return false;
    auto& products = Stage<Acc, N>::in(scratch.rows);
    Acc* const ones = static_cast<Acc*>(scratch.factors);
    std::fill_n(ones, tile.padded, Acc(1));
    for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
      const V* const values = source.of_tap(index);
      Acc* const row = scores.row_of_channel(channel, index);
      if constexpr (lanes == 0) {
        sample_scalar(tile, ky, kx, input, products.row[0]);
        for (int n = 0; n < tile.count; ++n) row[n] += values[n] * products.row[0][n];
      } else {
        Tap<Acc> tap(tile, ky, kx);
        if (!finite) tap.with_all_corners();
        multiply_samples(tap, tile.padded, window.pixel, ones, values, one_head ? row : nullptr, products);
        for (int c = 0; !one_head && c < used; ++c) {
          Acc* const sums = scores.row_of_channel(channel + c, index);
          for (int n = 0; n < tile.padded; ++n) sums[n] += products.row[c][n];
        }
      }
    });
    return true;
  });
}

/// The scores of some heads at a region: sums over channels, and over images that share the result, of values and samples.
/// `make_values(lanes, tile, slice, first, used)` makes a source: source.of_tap(tap) has the values of the channels that start
/// at `first`, a Vec for each position, 0 beyond the tile.
template <class T, class MakeValues>
void add_up_channels(const HeadGeometry& heads, const ScoresTensors& tensors, const HeadRun& run, const Region& region,
                     const Scratch& scratch, MakeValues make_values) {
  using Acc = accumulator_t<T>;
  const Geometry& g = heads.geometry;
  const std::int64_t padded = round_up(region.rows * region.columns, Tiling::kBlock);
  const Scores<Acc> scores{static_cast<Acc*>(scratch.sums), g.taps(), padded, run.first, heads.head_channels()};
  std::fill_n(scores.first, (run.last - run.first) * g.taps() * padded, Acc(0));
  const std::int64_t end = run.last * heads.head_channels(), images = heads.factors_batch == 1 ? g.batch : 1;
  for (std::int64_t image = run.image; image < run.image + images; ++image) {
    for (std::int64_t channel = run.first * heads.head_channels(), count; channel < end; channel += count) {
      const std::int64_t group = channel / g.group_channels(), in_group = channel % g.group_channels();
      count = std::min(end - channel, g.group_channels() - in_group);
      const Tile<Acc> tile(g, tensors.map, tensors.map_type, g.map_offset(image, group), region, scratch.tile);
      for (std::int64_t member = 0; member < tensors.members; ++member) {
        add_to_scores<T>(heads, tile, tensors, {image, group, in_group, count, member}, scratch, scores, make_values);
      }
      const std::int64_t last_head = (channel + count - 1) / heads.head_channels();
      for (std::int64_t head = channel / heads.head_channels(); !tile.all_finite && head <= last_head; ++head) {
        for (std::int64_t tap = 0; tap < g.taps(); ++tap) {
          Acc* const row = scores.row(head, tap);
          for (int n = 0; n < tile.count; ++n) row[n] += tile.nan[n];
        }
      }
    }
  }
  const bool nontemporal = exceeds_caches(heads.factors_numel() * static_cast<std::int64_t>(sizeof(T)));
  for (std::int64_t head = run.first; head < run.last; ++head) {
    T* const result = at<T>(tensors.result, heads.factors_offset(run.image, head));
    for (std::int64_t tap = 0; tap < g.taps(); ++tap) {
      region.for_each_run(g.w.out_size, [&](int n, std::int64_t position, int length) {
        T* const target = result + tap * g.positions() + position;
        nontemporal ? store_nontemporal(scores.row(head, tap) + n, target, length)
                    : narrow(scores.row(head, tap) + n, target, length);
      });
    }
  }
  if (nontemporal) finish_nontemporal();
}

}  // namespace
}  // namespace ddu::cpu
