// The CPU kernels of aggregate and correlate, compiled once per instruction set into namespace DDU_TARGET. Nothing here has
// external linkage but the table at the end. core/tiling.h has the words, and a drawing.

#include "sums_kernels.h"

#include <algorithm>

#include "core/backward.h"
#include "core/scores.h"
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
    if (!finite && !all_corners_serve(tile)) return false;
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
    return true;
  });
}

/// The same values for every tap: see core/scores.h.
template <class V>
struct SameValues {
  const V* values;

  const V* of_tap(std::int64_t) const { return values; }
};

template <class T>
void sum_channels(const HeadGeometry& heads, DType map_type, const ChannelSum& tensors, const HeadRun& run,
                  const Region& region, const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  add_up_channels<T>(heads, {tensors.image, tensors.map, map_type, tensors.result, tensors.format}, run, region, scratch,
                     [&](auto lanes, const Tile<Acc>& tile, const Slice& slice, std::int64_t first, int used) {
                       using V = Vec<Acc, lanes>;
                       const auto* const from = static_cast<const T*>(tensors.values);
                       const auto values = Image<const T>::of_positions(from, tensors.format, heads.geometry, slice);
                       V* const vecs = static_cast<V*>(scratch.values);
                       load_values<lanes>(tile, values.from(first), used, scratch.transfer, vecs);
                       return SameValues<V>{vecs};
                     });
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
  backward_of_heads<T, ProductSource>(heads, {tensors.image, tensors.map, map_type, tensors.grad_image, tensors.format},
                                      tensors, slice, band, scratch, map_sums);
}

template <class T>
constexpr SumsKernels kernels_of() {
  using Acc = accumulator_t<T>;
  return {kLanes<Acc>, sum_taps<T>, sum_channels<T>, backward<T>, sum_map<Acc>};
}

}  // namespace

const SumsKernels sums_kernels[4] = {kernels_of<float16>(), kernels_of<bfloat16>(), kernels_of<float>(), kernels_of<double>()};

}  // namespace ddu::cpu::DDU_TARGET
