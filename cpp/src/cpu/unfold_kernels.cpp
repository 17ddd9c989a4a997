// The unfold's CPU kernels, compiled once per instruction set into namespace DDU_TARGET. Nothing here has external linkage but
// the table at the end. core/tiling.h has the words, and a drawing.

#include "unfold_kernels.h"

#include <algorithm>
#include <type_traits>

#include "core/nontemporal.h"
#include "core/taps.h"
#include "core/window.h"
#include "core/without_window.h"

namespace ddu::cpu::DDU_TARGET {
namespace {

/// Hands the channels of a slice to body(lanes, first, used) in Vecs: the widest whose window fits, none wider than needed.
/// Lanes are 0 where no window fits: see without_window.h.
template <class Acc, class Body>
void for_each_vec(const Tile<Acc>& tile, std::int64_t channels, Body body) {
  constexpr int wide = kLanes<Acc>, narrow = std::min(wide, 4);
  for (std::int64_t first = 0, used; first < channels; first += used) {
    const std::int64_t left = channels - first;
    const auto run = [&](auto lanes) {
      used = std::min<std::int64_t>(std::max<int>(lanes, 1), left);
      body(lanes, first, static_cast<int>(used));
    };
    if (left > narrow && Window<Acc, wide>::fits(tile)) {
      run(std::integral_constant<int, wide>{});
    } else if (left > 1 && Window<Acc, narrow>::fits(tile)) {
      run(std::integral_constant<int, narrow>{});
    } else if (Window<Acc, 1>::fits(tile)) {
      run(std::integral_constant<int, 1>{});
    } else {
      run(std::integral_constant<int, 0>{});
    }
  }
}

template <class T>
void forward(const Geometry& g, DType map_type, const Unfold& tensors, const Slice& slice, const Region& region,
             const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_offset(slice.image, slice.group), region, scratch.tile);
  const Image<const T> image(static_cast<const T*>(tensors.input), tensors.input_format, g, slice);
  const std::int64_t column = g.positions(), channel = g.taps() * column;
  const bool nontemporal = g.columns_numel() * static_cast<std::int64_t>(sizeof(T)) >= kLarge;
  for_each_vec(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    const Image<const T> input = image.from(first);
    T* output = at<T>(tensors.output, (slice.plane(g) + first) * channel);
    auto& values = Stage<Acc, N>::in(scratch.rows);
    Window<Acc, N> window(scratch.window, scratch.transfer);
    const bool finite = lanes == 0 || window.load(tile, input, used);
    for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
      if constexpr (lanes == 0) {
        sample_scalar(tile, ky, kx, input, values.row[0]);
      } else {
        Tap<Acc> tap(tile, ky, kx);
        if (!finite) tap.with_all_corners();
        for (int n = 0; n < tile.padded; n += kBlock<N>) {
          typename Stage<Acc, N>::Block block;
          sample(tap, n, window.pixel, block);
          values.store(n, block);
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
  });
  if (nontemporal) finish_nontemporal();
}

/// Reads the gradients of one tap of a tile, zero where the rate is not finite, and asks for those of the next tap.
template <int N, class T, class Acc>
void load_grads(const Tile<Acc>& tile, const T* grad_output, std::int64_t tap, int used, Stage<Acc, N>& grads) {
  const Geometry& g = tile.geometry;
  const std::int64_t column = g.positions(), channel = g.taps() * column;
  for (int c = 0; c < used; ++c) {
    Acc* row = grads.row[c];
    tile.for_each_run([&](int n, std::int64_t position, int length) {
      const T* source = grad_output + c * channel + tap * column + position;
      widen(source, row + n, length);
      if (tap + 1 < g.taps()) prefetch(source + column, length * static_cast<std::int64_t>(sizeof(T)));
    });
    if (!tile.all_finite) {
      for (int n = 0; n < tile.count; ++n) row[n] = is_finite(tile.nan[n]) ? row[n] : Acc(0);
    }
  }
}

/// Adds the gradients of one tile and up to N channels to `sums` and, per position, to `rate_sums`. Either may be null.
template <int N, class T, class Acc>
void backward_vec(const Tile<Acc>& tile, const Image<const T>& input, const T* grad_output, int used, const Sums<Acc>* sums,
                  Acc* rate_sums, const Scratch& scratch) {
  using V = Vec<Acc, N>;
  using Block = typename Stage<Acc, N>::Block;
  auto& grads = Stage<Acc, N>::in(scratch.rows);
  for (int c = 0; c < N; ++c) std::fill(grads.row[c] + (c < used ? tile.count : 0), grads.row[c] + tile.padded, Acc(0));
  Window<Acc, N> values(scratch.window, scratch.transfer), grad_sums(scratch.grad_window, scratch.transfer);
  V* vec_sums = static_cast<V*>(scratch.vec_sums);
  if (sums) grad_sums.clear(tile);
  if (rate_sums) std::fill_n(vec_sums, tile.padded, V{});
  const bool finite = !rate_sums || values.load(tile, input, used);
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    load_grads(tile, grad_output, index, used, grads);
    const Tap<Acc> target(tile, ky, kx);
    Tap<Acc> source = target;
    if (!finite) source.with_all_corners();
    for (int n = 0; n < tile.padded; n += kBlock<N>) {
      Block grad;
      grads.load(n, grad);
      if (sums) scatter(target, n, grad, grad_sums.pixel);
      if (rate_sums) add_derivatives(source, n, grad, values.pixel, vec_sums + n);
    }
  });
  if (sums) grad_sums.add_to(*sums, tile, used);
  for (int n = 0; rate_sums && n < tile.padded; n += kBlock<N>) {
    Block block;
    std::copy_n(vec_sums + n, kBlock<N>, block);
    add_lanes<Acc, N>(block, rate_sums + n);
  }
}

/// The same for one channel of a tile whose window does not fit.
template <class T, class Acc>
void backward_scalar(const Tile<Acc>& tile, const Image<const T>& input, const T* grad_output, const Sums<Acc>* sums,
                     Acc* rate_sums, const Scratch& scratch) {
  auto& grads = Stage<Acc, 1>::in(scratch.rows);
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    load_grads(tile, grad_output, index, 1, grads);
    if (sums) scatter_scalar(tile, ky, kx, input, grads.row[0], *sums);
    if (rate_sums) add_derivatives_scalar(tile, ky, kx, input, grads.row[0], rate_sums);
  });
}

/// Sets some channels' sums to 0.
template <class Acc>
void clear(const Sums<Acc>& sums, std::int64_t channels) {
  const std::int64_t pixels = (sums.last_row - sums.first_row) * sums.width, step = sums.image.pixel_stride;
  if (sums.image.is_channels_last() && step != 1) {
    for (std::int64_t p = 0; p < pixels; ++p) std::fill_n(sums.at(0, sums.first_row, p), channels, Acc(0));
  } else {
    for (std::int64_t c = 0; c < channels; ++c) std::fill_n(sums.at(c, sums.first_row, 0), pixels, Acc(0));
  }
}

template <class T>
void backward(const Geometry& g, DType map_type, const UnfoldBackward& tensors, const Slice& slice, const Band& band,
              const Scratch& scratch, void* map_sums) {
  using Acc = accumulator_t<T>;
  constexpr bool kApart = sizeof(T) < sizeof(Acc);  // sums are rounded at the end
  const std::int64_t first_pixel = band.first_row * g.w.size, pixels = (band.last_row - band.first_row) * g.w.size;
  T* const grad_input = static_cast<T*>(tensors.grad_input);
  const Image<T> result(grad_input, tensors.input_format, g, slice);
  const Image<const T> image(static_cast<const T*>(tensors.input), tensors.input_format, g, slice);
  const auto sums = [&]() -> Sums<Acc> {
    if constexpr (kApart)
      return {{scratch.sums, pixels, 1}, band.first_row, band.first_row, band.last_row, g.w.size};
    else
      return {result, 0, band.first_row, band.last_row, g.w.size};
  }();
  if (grad_input) clear(sums, slice.channels);

  const Tiling tiling(g);
  for (std::int64_t index = 0; index < tiling.count(); ++index) {
    const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_offset(slice.image, slice.group), tiling.region(index),
                         scratch.tile);
    const bool to_input = grad_input && tile.reaches(band.first_row, band.last_row);
    const bool to_map = map_sums && index >= band.first_tile && index < band.last_tile;
    if (!to_input && !to_map) continue;
    Acc* const rate_sums = to_map ? static_cast<Acc*>(scratch.rate_sums) : nullptr;  // over taps and channels
    if (to_map) std::fill_n(rate_sums, tile.padded, Acc(0));
    for_each_vec(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
      const Image<const T> input = image.from(first);
      const T* grad_output = at<T>(tensors.grad_output, (slice.plane(g) + first) * g.taps() * g.positions());
      const Sums<Acc> vec_sums = sums.from(first);
      const Sums<Acc>* input_sums = to_input ? &vec_sums : nullptr;
      if constexpr (lanes == 0) {
        backward_scalar(tile, input, grad_output, input_sums, rate_sums, scratch);
      } else {
        backward_vec<lanes>(tile, input, grad_output, used, input_sums, rate_sums, scratch);
      }
    });
    if (to_map) {
      tile.for_each_run([&](int n, std::int64_t position, int length) {
        Acc* target = at<Acc>(map_sums, position);
        for (int i = 0; i < length; ++i) target[i] = rate_sums[n + i] + tile.nan[n + i];
      });
    }
  }

  if constexpr (kApart) {
    for (std::int64_t c = 0; grad_input && c < slice.channels; ++c) {
      T* rows = result.at(c, first_pixel);
      const Acc* sum = sums.at(c, band.first_row, 0);
      for (std::int64_t p = 0; p < pixels; ++p) rows[p * result.pixel_stride] = narrow<T>(sum[p]);
    }
  }
}

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

template <class T>
constexpr UnfoldKernels kernels_of() {
  using Acc = accumulator_t<T>;
  return {kLanes<Acc>, forward<T>, backward<T>, sum_map<Acc>};
}

}  // namespace

const UnfoldKernels unfold_kernels[4] = {kernels_of<float16>(), kernels_of<bfloat16>(), kernels_of<float>(),
                                         kernels_of<double>()};

}  // namespace ddu::cpu::DDU_TARGET
