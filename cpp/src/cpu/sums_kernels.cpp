// The CPU kernels of aggregate and correlate, compiled once per instruction set into namespace DDU_TARGET. Nothing here has
// external linkage but the table at the end. core/tiling.h has the words, and a drawing.

#include "sums_kernels.h"

#include <algorithm>

#include "core/backward.h"
#include "core/values.h"
#include "core/weighted.h"

namespace ddu::cpu::DDU_TARGET {
namespace {

template <class T>
void sum_taps(const HeadGeometry& heads, DType map_type, const TapSum& tensors, const Slice& slice, const Region& region,
              const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  const Geometry& g = heads.geometry;
  const Tile<Acc> tile(g, tensors.map, map_type, g.map_offset(slice.image, slice.group), region, scratch.tile);
  const Image<const T> image(static_cast<const T*>(tensors.image), tensors.format, g, slice);
  const auto result = Image<T>::of_positions(static_cast<T*>(tensors.result), tensors.format, g, slice);
  for_each_vec(tile, heads, slice, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    using V = Vec<Acc, N>;
    const Image<const T> input = image.from(first);
    Factors<N, T, Acc> factors(heads, tile, tensors.factors, slice.image, slice.channel(g) + first, used, scratch.factors,
                               scratch.rows);
    Window<Acc, N> window(scratch.window, scratch.transfer);
    const bool finite = lanes == 0 || window.load(tile, input, used);
    V* const sums = static_cast<V*>(scratch.values);
    for (int n = 0; n < tile.padded; ++n) sums[n] = n < tile.count ? V{} + tile.nan[n] : V{};
    for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
      factors.begin(index);
      if constexpr (lanes == 0) {
        Acc* const values = Stage<Acc, 1>::in(scratch.transfer).row[0];
        sample_scalar(tile, ky, kx, input, values);
        for (int n = 0; n < tile.count; ++n) sums[n] += factors.of_tap.row[n] * values[n];
      } else {
        Tap<Acc> tap(tile, ky, kx);
        if (!finite) tap.with_all_corners();
        add_samples(tap, tile.padded, window.pixel, factors.of_tap, sums);
      }
    });
    store_values<N>(tile, sums, result.from(first), used, scratch.transfer);
  });
}

/// Scores of a tile: of the heads of a run, a row of positions for each tap.
template <class Acc>
struct Scores {
  Acc* first;
  std::int64_t taps, padded, first_head, head_channels;

  Acc* row(std::int64_t head, std::int64_t tap) const { return first + ((head - first_head) * taps + tap) * padded; }
  Acc* row_of_channel(std::int64_t channel, std::int64_t tap) const { return row(channel / head_channels, tap); }
};

/// Adds what some channels of a group, a slice, give to the scores of a tile.
template <class T, class Acc>
void add_to_scores(const HeadGeometry& heads, const Tile<Acc>& tile, const ChannelSum& tensors, const Slice& slice,
                   const Scratch& scratch, const Scores<Acc>& scores) {
  const Geometry& g = heads.geometry;
  const Image<const T> image(static_cast<const T*>(tensors.image), tensors.format, g, slice);
  const auto all_values = Image<const T>::of_positions(static_cast<const T*>(tensors.values), tensors.format, g, slice);
  for_each_vec(tile, heads, slice, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    using V = Vec<Acc, N>;
    const Image<const T> input = image.from(first);
    const std::int64_t channel = slice.channel(g) + first;
    const bool one_head = channel / heads.head_channels() == (channel + used - 1) / heads.head_channels();
    V* const values = static_cast<V*>(scratch.values);
    load_values<N>(tile, all_values.from(first), used, scratch.transfer, values);
    Window<Acc, N> window(scratch.window, scratch.transfer);
    const bool finite = lanes == 0 || window.load(tile, input, used);
    auto& products = Stage<Acc, N>::in(scratch.rows);
    Acc* const ones = static_cast<Acc*>(scratch.factors);
    std::fill_n(ones, tile.padded, Acc(1));
    for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
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
  });
}

template <class T>
void sum_channels(const HeadGeometry& heads, DType map_type, const ChannelSum& tensors, const HeadRun& run,
                  const Region& region, const Scratch& scratch) {
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
      const Tile<Acc> tile(g, tensors.map, map_type, g.map_offset(image, group), region, scratch.tile);
      add_to_scores<T>(heads, tile, tensors, {image, group, in_group, count}, scratch, scores);
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

/// A tap's gradients that are products of a factor and a value.
template <class Acc, int N>
struct Products {
  FactorRows<Acc, N> factors;
  const Vec<Acc, N>* values;

  void load(int n, typename Stage<Acc, N>::Block& block) const {
    if (factors.shared) {
      for (int i = 0; i < kBlock<N>; ++i) block[i] = factors.row[n + i] * values[n + i];
    } else {
      factors.load(n, block);
      for (int i = 0; i < kBlock<N>; ++i) block[i] *= values[n + i];
    }
  }
};

/// A source of them: see backward.h.
template <int N, class T, class Acc>
class ProductSource {
 public:
  using V = Vec<Acc, N>;

  ProductSource(const HeadGeometry& heads, const Tile<Acc>& tile, const ProductBackward& tensors, const Slice& slice,
                std::int64_t first, int used, const Scratch& scratch)
      : values_(static_cast<V*>(scratch.values)),
        factors_(heads, tile, tensors.factors, slice.image, slice.channel(heads.geometry) + first, used, scratch.factors,
                 scratch.rows) {
    const auto* const from = static_cast<const T*>(tensors.values);
    const auto values = Image<const T>::of_positions(from, tensors.format, heads.geometry, slice);
    load_values<N>(tile, values.from(first), used, scratch.transfer, values_);
    for (int n = 0; !tile.all_finite && n < tile.count; ++n) {
      if (!is_finite(tile.nan[n])) values_[n] = V{};
    }
  }
  Products<Acc, N> gradients(std::int64_t tap) {
    factors_.begin(tap);
    return {factors_.of_tap, values_};
  }

 private:
  V* const values_;
  Factors<N, T, Acc> factors_;
};

template <class T>
void backward(const HeadGeometry& heads, DType map_type, const ProductBackward& tensors, const Slice& slice, const Band& band,
              const Scratch& scratch, void* map_sums) {
  using Acc = accumulator_t<T>;
  backward_walk<T>(
      heads.geometry, {tensors.image, tensors.map, map_type, tensors.grad_image, tensors.format}, slice, band, scratch,
      map_sums, [&](const Tile<Acc>& tile, auto body) { for_each_vec(tile, heads, slice, body); },
      [&](auto lanes, const Tile<Acc>& tile, std::int64_t first, int used) {
        return ProductSource<lanes, T, Acc>(heads, tile, tensors, slice, first, used, scratch);
      });
}

template <class T>
constexpr SumsKernels kernels_of() {
  using Acc = accumulator_t<T>;
  return {kLanes<Acc>, sum_taps<T>, sum_channels<T>, backward<T>, sum_map<Acc>};
}

}  // namespace

const SumsKernels sums_kernels[4] = {kernels_of<float16>(), kernels_of<bfloat16>(), kernels_of<float>(), kernels_of<double>()};

}  // namespace ddu::cpu::DDU_TARGET
