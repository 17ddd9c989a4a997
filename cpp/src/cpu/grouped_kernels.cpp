// The CPU kernels of a convolution in small groups, a depthwise one above all, compiled once per instruction set into namespace
// DDU_TARGET. Nothing here has external linkage but the table at the end. core/tiling.h has the words, and a drawing.

#include "grouped_kernels.h"

#include <algorithm>

#include "core/backward.h"
#include "core/scores.h"
#include "core/values.h"
#include "core/weighted.h"

namespace ddu::cpu::DDU_TARGET {
namespace {

/// Weights of one tap and the slice's member: of each output of a group a Vec, with 0 in idle lanes.
template <int N, class T, class Acc>
class GroupWeights {
 public:
  using V = Vec<Acc, N>;

  GroupWeights(const GroupedTensors& tensors, const Geometry& g, const Slice& slice, std::int64_t first, int used)
      : taps_(g.taps()), output_(tensors.channels * taps_), outputs_(static_cast<int>(tensors.outputs)), used_(used) {
    const std::int64_t group = slice.channel(g) + first;
    first_ = static_cast<const T*>(tensors.weight) + (group * outputs_ * output_ + slice.member * taps_);
  }

  V of_output[kMostGroupOutputs];  // of the tap that has begun

  void begin(std::int64_t tap) {
    for (int j = 0; j < outputs_; ++j) {
      Acc lanes[N] = {};
      for (int c = 0; c < used_; ++c) lanes[c] = widen(first_[(c * outputs_ + j) * output_ + tap]);
      std::memcpy(&of_output[j], lanes, sizeof lanes);
    }
  }

 private:
  const std::int64_t taps_, output_;
  const int outputs_, used_;
  const T* first_;
};

/// Of the outputs of a Vec's groups, or of what is like them.
template <int N, class T, class Acc, class Body>
void for_each_output(const HeadGeometry& heads, const GroupedTensors& tensors, T* tensor, Slice slice, std::int64_t first,
                     const Tile<Acc>& tile, void* vecs, Body body) {
  auto* const values = static_cast<Vec<Acc, N>*>(vecs);
  for (slice.member = 0; slice.member < tensors.outputs; ++slice.member) {
    const auto image = Image<T>::of_positions(tensor, tensors.format, heads.geometry, slice, tensors.outputs);
    body(image.from(first), values + slice.member * tile.padded);
  }
}

/// The gradients of the outputs: 0 in idle lanes, beyond the tile and, unless they are to meet samples, where the rate is not
/// finite.
template <int N, class T, class Acc>
void load_gradients(const HeadGeometry& heads, const GroupedTensors& tensors, const Slice& slice, std::int64_t first, int used,
                    const Tile<Acc>& tile, const Scratch& scratch, bool all_rates) {
  for_each_output<N>(heads, tensors, static_cast<const T*>(tensors.grad), slice, first, tile, scratch.values,
                     [&](const Image<const T>& grad, Vec<Acc, N>* values) {
                       load_values<N>(tile, grad, used, scratch.transfer, values);
                       for (int n = 0; !all_rates && !tile.all_finite && n < tile.count; ++n) {
                         if (!is_finite(tile.nan[n])) values[n] = Vec<Acc, N>{};
                       }
                     });
}

/// The factors of a block times the samples of a tap.
template <class Acc, int N, class V>
void load_samples(const Tap<Acc>& tap, int n, const V* window, const FactorRows<Acc, N>& factors,
                  typename Stage<Acc, N>::Block& block) {
  constexpr int M = kBlock<N>;
  if (factors.shared) {
    for_each_sample<M>(tap, n, factors.row, window, [&](int i, const V& value) { block[i] = value; });
  } else {
    sample(tap, n, window, block);
    factors.multiply(n, block);
  }
}

/// Adds to the sums of each output its weight times the samples of a tap, at `padded` positions.
template <class Acc, int N, class V>
DDU_ONE_COPY void add_to_outputs(Tap<Acc> tap, int padded, const V* window, FactorRows<Acc, N> factors, const V* weights,
                                 int outputs, V* sums) {
  constexpr int M = kBlock<N>;
  for (int n = 0; n < padded; n += M) {
    typename Stage<Acc, N>::Block block;
    load_samples<Acc, N>(tap, n, window, factors, block);
    for (int j = 0; j < outputs; ++j) {
      const V weight = weights[j];
      V* const sum = sums + j * padded + n;
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) sum[i] += weight * block[i];
    }
  }
}

/// Adds to the sum of each output the samples of a tap at `count` positions times its values there.
template <class Acc, int N, class V>
DDU_ONE_COPY void add_over_positions(Tap<Acc> tap, int count, int padded, const V* window, FactorRows<Acc, N> factors,
                                     const V* values, int outputs, V* sums) {
  constexpr int M = kBlock<N>;
  for (int n = 0; n < count; n += M) {
    typename Stage<Acc, N>::Block block;
    load_samples<Acc, N>(tap, n, window, factors, block);
    for (int i = count - n; i < M; ++i) block[i] = V{};  // what is sampled there need not be finite
    for (int j = 0; j < outputs; ++j) {
      const V* const value = values + j * padded + n;
      V sum{};
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) sum += block[i] * value[i];
      sums[j] += sum;
    }
  }
}

/// The samples of a tap of one channel, times the factors.
template <class T, class Acc>
void sample_into(const Tile<Acc>& tile, int ky, int kx, const Image<const T>& input, const Acc* factors, Acc* samples) {
  sample_scalar(tile, ky, kx, input, samples);
  for (int n = 0; n < tile.count; ++n) samples[n] *= factors[n];
}

template <class T>
void forward(const HeadGeometry& heads, DType map_type, const GroupedTensors& tensors, const Slice& slice, const Region& region,
             const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  const Geometry& g = heads.geometry;
  const int outputs = static_cast<int>(tensors.outputs);
  const Tile<Acc> tile(g, tensors.map, map_type, g.map_offset(slice.image, slice.group), region, scratch.tile);
  for_each_vec(tile, heads, slice, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    using V = Vec<Acc, N>;
    const std::int64_t group = slice.channel(g) + first;
    V* const sums = static_cast<V*>(scratch.values);
    for (int j = 0; j < outputs; ++j) {
      Acc bias[N] = {};
      const T* const from = static_cast<const T*>(tensors.bias);
      for (int c = 0; from && c < used; ++c) bias[c] = widen(from[(group + c) * outputs + j]);
      V start;
      std::memcpy(&start, bias, sizeof bias);
      for (int n = 0; n < tile.padded; ++n) sums[j * tile.padded + n] = n < tile.count ? start + tile.nan[n] : V{};
    }
    Slice channel = slice;
    for (channel.member = 0; channel.member < tensors.channels; ++channel.member) {
      const auto input =
          Image<const T>(static_cast<const T*>(tensors.image), tensors.format, g, channel, tensors.channels).from(first);
      Factors<N, T, Acc> factors(heads, tile, tensors.mask, slice.image, group, used, scratch.factors, scratch.rows);
      GroupWeights<N, T, Acc> weights(tensors, g, channel, first, used);
      Window<Acc, N> window(scratch.window, scratch.transfer);
      const bool finite = lanes == 0 || window.load(tile, input, used);
      if (!finite && !all_corners_serve(tile)) return false;
      for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
        factors.begin(index);
        weights.begin(index);
        if constexpr (lanes == 0) {
          Acc* const samples = Stage<Acc, 1>::in(scratch.transfer).row[0];
          sample_into(tile, ky, kx, input, factors.of_tap.row, samples);
          for (int j = 0; j < outputs; ++j) {
            for (int n = 0; n < tile.count; ++n) sums[j * tile.padded + n] += weights.of_output[j] * samples[n];
          }
        } else {
          Tap<Acc> tap(tile, ky, kx);
          if (!finite) tap.with_all_corners();
          add_to_outputs<Acc, N>(tap, tile.padded, window.pixel, factors.of_tap, weights.of_output, outputs, sums);
        }
      });
    }
    for_each_output<N>(
        heads, tensors, static_cast<T*>(tensors.output), slice, first, tile, sums,
        [&](const Image<T>& output, const V* values) { store_values<N>(tile, values, output, used, scratch.transfer); });
    return true;
  });
}

/// The weights times the values of a group's outputs, at a block of positions.
template <class Acc, int N>
void load_weighted(const Vec<Acc, N>* weights, const Vec<Acc, N>* values, int outputs, int padded, int n,
                   typename Stage<Acc, N>::Block& block) {
#pragma GCC unroll 16
  for (int i = 0; i < kBlock<N>; ++i) block[i] = weights[0] * values[n + i];
  for (int j = 1; j < outputs; ++j) {
    const Vec<Acc, N> weight = weights[j];
#pragma GCC unroll 16
    for (int i = 0; i < kBlock<N>; ++i) block[i] += weight * values[j * padded + n + i];
  }
}

/// A tap's gradients: those, times the mask.
template <class Acc, int N>
struct WeightedGrads {
  FactorRows<Acc, N> factors;
  const Vec<Acc, N>*weights, *values;
  int outputs, padded;

  void load(int n, typename Stage<Acc, N>::Block& block) const {
    load_weighted<Acc, N>(weights, values, outputs, padded, n, block);
    factors.multiply(n, block);
  }
};

/// A source of them: see backward.h.
template <int N, class T, class Acc>
class WeightedSource {
 public:
  WeightedSource(const HeadGeometry& heads, const Tile<Acc>& tile, const GroupedTensors& tensors, const Slice& slice,
                 std::int64_t first, int used, const Scratch& scratch)
      : values_(static_cast<Vec<Acc, N>*>(scratch.values)),
        outputs_(static_cast<int>(tensors.outputs)),
        padded_(tile.padded),
        factors_(heads, tile, tensors.mask, slice.image, slice.channel(heads.geometry) + first, used, scratch.factors,
                 scratch.rows),
        weights_(tensors, heads.geometry, slice, first, used) {
    load_gradients<N, T>(heads, tensors, slice, first, used, tile, scratch, false);
  }
  WeightedGrads<Acc, N> gradients(std::int64_t tap) {
    factors_.begin(tap);
    weights_.begin(tap);
    return {factors_.of_tap, weights_.of_output, values_, outputs_, padded_};
  }

 private:
  Vec<Acc, N>* const values_;
  const int outputs_, padded_;
  Factors<N, T, Acc> factors_;
  GroupWeights<N, T, Acc> weights_;
};

template <class T>
void backward(const HeadGeometry& heads, DType map_type, const GroupedTensors& tensors, const Slice& slice, const Band& band,
              const Scratch& scratch, void* map_sums) {
  backward_of_heads<T, WeightedSource>(
      heads, {tensors.image, tensors.map, map_type, tensors.grad_image, tensors.format, tensors.channels}, tensors, slice, band,
      scratch, map_sums);
}

template <class T>
void sum_positions(const HeadGeometry& heads, DType map_type, const GroupedTensors& tensors, const Slice& slice,
                   const TileRun& run, const Scratch& scratch, void* sums) {
  using Acc = accumulator_t<T>;
  const Geometry& g = heads.geometry;
  const std::int64_t taps = g.taps();
  const int outputs = static_cast<int>(tensors.outputs);
  const Image<const T> image(static_cast<const T*>(tensors.image), tensors.format, g, slice, tensors.channels);
  const auto at_weight = [&](std::int64_t group, std::int64_t output) {
    return at<Acc>(sums, ((group * outputs + output) * tensors.channels + slice.member) * taps);
  };
  for (std::int64_t c = 0; c < slice.channels; ++c) {
    for (int j = 0; j < outputs; ++j) std::fill_n(at_weight(slice.channel(g) + c, j), taps, Acc(0));
  }
  const Tiling tiling(g);
  for (std::int64_t index = run.first; index < run.last; ++index) {
    const Tile<Acc> tile(g, tensors.map, map_type, g.map_offset(slice.image, slice.group), tiling.region(index), scratch.tile);
    Acc nan = 0;  // where a rate is not finite, its samples are not
    for (int n = 0; !tile.all_finite && n < tile.count; ++n) nan += tile.nan[n];
    for_each_vec(tile, heads, slice, [&](auto lanes, std::int64_t first, int used) {
      constexpr int N = std::max<int>(lanes, 1);
      using V = Vec<Acc, N>;
      const Image<const T> input = image.from(first);
      const std::int64_t group = slice.channel(g) + first;
      Factors<N, T, Acc> factors(heads, tile, tensors.mask, slice.image, group, used, scratch.factors, scratch.rows);
      load_gradients<N, T>(heads, tensors, slice, first, used, tile, scratch, true);
      const V* const values = static_cast<const V*>(scratch.values);
      Window<Acc, N> window(scratch.window, scratch.transfer);
      const bool finite = lanes == 0 || window.load(tile, input, used);
      if (!finite && !all_corners_serve(tile)) return false;
      for_each_tap(g, [&](std::int64_t tap_index, int ky, int kx) {
        factors.begin(tap_index);
        V of_output[kMostGroupOutputs] = {};
        if constexpr (lanes == 0) {
          Acc* const samples = Stage<Acc, 1>::in(scratch.transfer).row[0];
          sample_into(tile, ky, kx, input, factors.of_tap.row, samples);
          for (int j = 0; j < outputs; ++j) {
            for (int n = 0; n < tile.count; ++n) of_output[j] += samples[n] * values[j * tile.padded + n];
          }
        } else {
          Tap<Acc> tap(tile, ky, kx);
          if (!finite) tap.with_all_corners();
          add_over_positions<Acc, N>(tap, tile.count, tile.padded, window.pixel, factors.of_tap, values, outputs, of_output);
        }
        for (int j = 0; j < outputs; ++j) {
          Acc each[N];
          std::memcpy(each, &of_output[j], sizeof each);
          for (int c = 0; c < used; ++c) at_weight(group + c, j)[tap_index] += each[c] + nan;
        }
      });
      return true;
    });
  }
}

/// The weights times the gradients of a group's outputs, tap by tap: see core/scores.h.
template <int N, class T, class Acc>
class WeightedValues {
 public:
  using V = Vec<Acc, N>;

  WeightedValues(const HeadGeometry& heads, const Tile<Acc>& tile, const GroupedTensors& tensors, const Slice& slice,
                 std::int64_t first, int used, const Scratch& scratch)
      : values_(static_cast<V*>(scratch.values)),
        outputs_(static_cast<int>(tensors.outputs)),
        padded_(tile.padded),
        weights_(tensors, heads.geometry, slice, first, used) {
    load_gradients<N, T>(heads, tensors, slice, first, used, tile, scratch, true);
  }
  const V* of_tap(std::int64_t tap) {
    weights_.begin(tap);
    V* const weighted = values_ + outputs_ * padded_;
    for (int n = 0; n < padded_; n += kBlock<N>) {
      typename Stage<Acc, N>::Block block;
      load_weighted<Acc, N>(weights_.of_output, values_, outputs_, padded_, n, block);
      std::copy_n(block, kBlock<N>, weighted + n);
    }
    return weighted;
  }

 private:
  V* const values_;
  const int outputs_, padded_;
  GroupWeights<N, T, Acc> weights_;
};

template <class T>
void sum_channels(const HeadGeometry& heads, DType map_type, const GroupedTensors& tensors, const HeadRun& run,
                  const Region& region, const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  add_up_channels<T>(heads, {tensors.image, tensors.map, map_type, tensors.grad_mask, tensors.format, tensors.channels}, run,
                     region, scratch, [&](auto lanes, const Tile<Acc>& tile, const Slice& slice, std::int64_t first, int used) {
                       return WeightedValues<lanes, T, Acc>(heads, tile, tensors, slice, first, used, scratch);
                     });
}

template <class T>
constexpr GroupedKernels kernels_of() {
  using Acc = accumulator_t<T>;
  return {kLanes<Acc>, forward<T>, backward<T>, sum_positions<T>, sum_channels<T>, sum_map<Acc>};
}

}  // namespace

const GroupedKernels grouped_kernels[2] = {kernels_of<float>(), kernels_of<double>()};

}  // namespace ddu::cpu::DDU_TARGET
