// The unfold's CPU kernels, compiled once per instruction set into namespace DDU_TARGET. Nothing here has external linkage but
// the table at the end. core/tiling.h has the words, and a drawing.

#include "unfold_kernels.h"

#include <algorithm>
#include <type_traits>

#include "core/backward.h"
#include "core/nontemporal.h"

namespace ddu::cpu::DDU_TARGET {
namespace {

template <class T>
void forward(const Geometry& g, DType map_type, const Unfold& tensors, const Slice& slice, const Region& region,
             const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_offset(slice.image, slice.group), region, scratch.tile);
  const Image<const T> image(static_cast<const T*>(tensors.input), tensors.input_format, g, slice);
  const std::int64_t column = g.positions(), channel = g.taps() * column;
  const bool nontemporal = exceeds_caches(g.columns_numel() * static_cast<std::int64_t>(sizeof(T)));
  for_each_vec<true>(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    constexpr bool alone = std::is_same_v<decltype(lanes), Alone>;
    const Image<const T> input = image.from(first);
    T* output = at<T>(tensors.output, (slice.plane(g) + first) * channel);
    auto& values = Stage<Acc, N>::in(scratch.rows);
    auto window = [&] {
      if constexpr (alone) {
        return ChannelWindow<Acc>(tile, scratch.window, nullptr, scratch.transfer);
      } else {
        return Window<Acc, N>(scratch.window, scratch.transfer);
      }
    }();
    const bool finite = [&] {
      if constexpr (alone) {
        return window.load(input);
      } else {
        return lanes == 0 || window.load(tile, input, used);
      }
    }();
    if (!finite && !all_corners_serve(tile)) return false;
    for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
      if constexpr (lanes == 0) {
        sample_scalar(tile, ky, kx, input, values.row[0]);
      } else {
        Tap<Acc> tap(tile, ky, kx);
        if (!finite) tap.with_all_corners();
        if constexpr (alone) {
          window.sample(tap, values.row[0]);
        } else {
          for (int n = 0; n < tile.padded; n += kBlock<N>) {
            typename Stage<Acc, N>::Block block;
            sample(tap, n, window.pixel, block);
            values.store(n, block);
          }
        }
      }
      for (int c = 0; c < used; ++c) {
        Acc* row = values.row[c];
        if (!tile.all_finite) {
          for (int n = 0; n < tile.count; ++n) row[n] += tile.nan[n];
        }
        tile.for_each_run([&](int n, std::int64_t position, int length) {
          T* target = output + c * channel + index * column + position;
          nontemporal ? store_nontemporal(row + n, target, length) : narrow(row + n, target, length);
        });
      }
    });
    return true;
  });
  if (nontemporal) finish_nontemporal();
}

/// A tap's gradients, as rows of a stage.
template <class Acc, int N>
struct LoadedRows {
  const Stage<Acc, N>* rows;

  void load(int n, typename Stage<Acc, N>::Block& block) const { rows->load(n, block); }
};

/// A source of the gradients that lie in memory: see backward.h.
template <int N, class T, class Acc>
class LoadedGrads {
 public:
  LoadedGrads(const Tile<Acc>& tile, const T* grad_output, int used, void* rows)
      : tile_(tile), grad_output_(grad_output), used_(used), grads_(Stage<Acc, N>::in(rows)) {
    for (int c = 0; c < N; ++c) std::fill(grads_.row[c] + (c < used ? tile.count : 0), grads_.row[c] + tile.padded, Acc(0));
  }

  /// Also asks for the gradients of the next tap.
  LoadedRows<Acc, N> gradients(std::int64_t tap) {
    const Geometry& g = tile_.geometry;
    const std::int64_t column = g.positions(), channel = g.taps() * column;
    for (int c = 0; c < used_; ++c) {
      Acc* row = grads_.row[c];
      tile_.for_each_run([&](int n, std::int64_t position, int length) {
        const T* source = grad_output_ + c * channel + tap * column + position;
        widen(source, row + n, length);
        if (tap + 1 < g.taps()) prefetch(source + column, length * static_cast<std::int64_t>(sizeof(T)));
      });
      if (!tile_.all_finite) {
        for (int n = 0; n < tile_.count; ++n) row[n] = is_finite(tile_.nan[n]) ? row[n] : Acc(0);
      }
    }
    return {&grads_};
  }
  /// Those of the first channel: as they lie in memory, where they can be read from there in whole vectors.
  GradRows<Acc> rows(std::int64_t tap) {
    const Geometry& g = tile_.geometry;
    if constexpr (std::is_same_v<T, Acc>) {
      if (tile_.all_finite && tile_.region.columns % kLanes<Acc> == 0) {
        const std::int64_t first = tile_.region.first_row * g.w.out_size + tile_.region.first_column;
        return {grad_output_ + tap * g.positions() + first, g.w.out_size, tap + 1 < g.taps() ? g.positions() : 0};
      }
    }
    gradients(tap);
    return {grads_.row[0], 0, 0};
  }

 private:
  const Tile<Acc>& tile_;
  const T* const grad_output_;
  const int used_;
  Stage<Acc, N>& grads_;
};

template <class T>
void backward(const Geometry& g, DType map_type, const UnfoldBackward& tensors, const Slice& slice, const Band& band,
              const Scratch& scratch, void* map_sums) {
  using Acc = accumulator_t<T>;
  const T* grad_output = at<T>(tensors.grad_output, slice.plane(g) * g.taps() * g.positions());
  backward_walk<T>(
      g, {tensors.input, tensors.dilation_map, map_type, tensors.grad_input, tensors.input_format}, slice, band, scratch,
      map_sums, [&](const Tile<Acc>& tile, auto body) { for_each_vec<true>(tile, slice.channels, body); },
      [&](auto lanes, const Tile<Acc>& tile, std::int64_t first, int used) {
        return LoadedGrads<lanes, T, Acc>(tile, grad_output + first * g.taps() * g.positions(), used, scratch.rows);
      });
}

template <class T>
constexpr UnfoldKernels kernels_of() {
  using Acc = accumulator_t<T>;
  return {kLanes<Acc>, forward<T>, backward<T>, sum_map<Acc>};
}

}  // namespace

const UnfoldKernels unfold_kernels[4] = {kernels_of<float16>(), kernels_of<bfloat16>(), kernels_of<float>(),
                                         kernels_of<double>()};

}  // namespace ddu::cpu::DDU_TARGET
