// The CPU kernels, compiled once per instruction set into namespace DDU_TARGET. Nothing here has external linkage but the
// table at the end.

#include "kernels.h"

#include "lone.h"
#include "stream.h"
#include "tile.h"
#include "window.h"

namespace ddu::cpu::DDU_TARGET {
namespace {

/// One tap of a tile: where its cells are in the window, and their fractions.
template <class Acc>
struct Tap {
  const std::int32_t* row;
  const std::int32_t* column;
  const Acc* fy;
  const Acc* fx;
  Acc offset_y, offset_x;
  std::int32_t pitch;  // from a pixel of the window to the one below
  // Taps that stay in their row or column need half of the corners. The others would add 0 * value, which matters only where
  // a value is not finite.
  bool still_y, still_x;

  Tap(const Tile<Acc>& tile, int ky, int kx, bool finite)
      : row(tile.y.offset + ky * tile.padded),
        column(tile.x.offset + kx * tile.padded),
        fy(tile.y.fraction + ky * tile.padded),
        fx(tile.x.fraction + kx * tile.padded),
        offset_y(tile.sample_y.offset(ky)),
        offset_x(tile.sample_x.offset(kx)),
        pitch(tile.x.extent),
        still_y(finite && tile.sample_y.centered(ky)),
        still_x(finite && tile.sample_x.centered(kx)) {}

  std::int32_t cell(int n) const { return row[n] + column[n]; }
};

/// body(tap, ky, kx) for all taps, in the order of the output.
template <class Body>
void for_each_tap(const Geometry& g, Body body) {
  std::int64_t tap = 0;
  for (int ky = 0; ky < g.h.kernel_size; ++ky) {
    for (int kx = 0; kx < g.w.kernel_size; ++kx, ++tap) body(tap, ky, kx);
  }
}

/// Hands the channels of a slice to body(lanes, first, used) in packs: the widest whose window fits, none wider than needed.
/// Lanes are 0 where no window fits.
template <class Acc, class Body>
void for_each_pack(const Tile<Acc>& tile, std::int64_t channels, Body body) {
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

/// The values of a tap at a block of positions.
template <class P, int M, class Acc>
void sample(const Tap<Acc>& tap, int n, const P* window, P (&values)[M]) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.still_y && tap.still_x) {
    for (int i = 0; i < M; ++i) values[i] = window[tap.cell(n + i)];
  } else if (tap.still_y || tap.still_x) {
    const Acc* fraction = tap.still_y ? fx : fy;
    const std::int32_t next = tap.still_y ? 1 : tap.pitch;
    for (int i = 0; i < M; ++i) {
      const P* cell = window + tap.cell(n + i);
      values[i] = interpolate(cell[0], cell[next], fraction[i]);
    }
  } else {
    for (int i = 0; i < M; ++i) {
      const P* cell = window + tap.cell(n + i);
      values[i] = interpolate(cell[0], cell[1], cell[tap.pitch], cell[tap.pitch + 1], fy[i], fx[i]);
    }
  }
}

template <class T>
void forward(const Geometry& g, DType map_type, const Unfold& tensors, const Slice& slice, const Region& region) {
  using Acc = accumulator_t<T>;
  const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_plane(slice.image, slice.group), region);
  const std::int64_t column = g.positions(), channel = g.taps() * column;
  const bool streams = g.columns_numel() * static_cast<std::int64_t>(sizeof(T)) >= kLarge;
  alignas(64) unsigned char memory[kWindowBytes];
  for_each_pack(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = std::max<int>(lanes, 1);
    const T* input = at<T>(tensors.input, (slice.plane(g) + first) * g.pixels());
    T* output = at<T>(tensors.output, (slice.plane(g) + first) * channel);
    Stage<Acc, N> values;
    Window<Acc, N> window(memory);
    const bool finite = lanes == 0 || window.load(tile, input, used);
    for_each_tap(g, [&](std::int64_t index, int ky, int kx) {
      if constexpr (lanes == 0) {
        sample_alone(tile, ky, kx, input, values.row[0]);
      } else {
        const Tap<Acc> tap(tile, ky, kx, finite);
        for (int n = 0; n < tile.padded; n += kBlock<N>) {
          typename Stage<Acc, N>::Block block;
          sample(tap, n, window.pixel, block);
          values.put(n, block);
        }
      }
      for (int c = 0; c < used; ++c) {
        Acc* row = values.row[c];
        if (!tile.all_finite) {
          for (int n = 0; n < tile.count; ++n) row[n] += tile.poison[n];
        }
        tile.for_each_run([&](int n, std::int64_t position, int length) {
          T* target = output + c * channel + index * column + position;
          streams ? stream(row + n, target, length) : narrow(row + n, target, length);
        });
      }
    });
  });
  if (streams) finish_streams();
}

/// Adds the gradients of a block of positions onto the corners of their cells.
template <class P, int M, class Acc>
void scatter(const Tap<Acc>& tap, int n, const P (&grad)[M], P* window) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.still_y && tap.still_x) {
    for (int i = 0; i < M; ++i) window[tap.cell(n + i)] += grad[i];
  } else if (tap.still_y || tap.still_x) {
    const Acc* fraction = tap.still_y ? fx : fy;
    const std::int32_t next = tap.still_y ? 1 : tap.pitch;
    for (int i = 0; i < M; ++i) {
      P* cell = window + tap.cell(n + i);
      cell[0] += (1 - fraction[i]) * grad[i];
      cell[next] += fraction[i] * grad[i];
    }
  } else {
    for (int i = 0; i < M; ++i) {
      P* cell = window + tap.cell(n + i);
      const Weights<Acc> weights(fy[i], fx[i]);
      cell[0] += weights.a() * grad[i];
      cell[1] += weights.b() * grad[i];
      cell[tap.pitch] += weights.c() * grad[i];
      cell[tap.pitch + 1] += weights.d() * grad[i];
    }
  }
}

/// sums += grad * d(value)/d(rate) at a block of positions.
template <class P, int M, class Acc>
void add_slopes(const Tap<Acc>& tap, int n, const P (&grad)[M], const P* window, P* sums) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.still_y && tap.still_x) return;  // the tap does not move
  if (tap.still_y || tap.still_x) {
    const Acc offset = tap.still_y ? tap.offset_x : tap.offset_y;
    const std::int32_t next = tap.still_y ? 1 : tap.pitch;
    for (int i = 0; i < M; ++i) {
      const P* cell = window + tap.cell(n + i);
      sums[i] += grad[i] * ((cell[next] - cell[0]) * offset);
    }
  } else {
    for (int i = 0; i < M; ++i) {
      const P* cell = window + tap.cell(n + i);
      sums[i] +=
          grad[i] * slope(cell[0], cell[1], cell[tap.pitch], cell[tap.pitch + 1], fy[i], fx[i], tap.offset_y, tap.offset_x);
    }
  }
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
      for (int n = 0; n < tile.count; ++n) row[n] = is_finite(tile.poison[n]) ? row[n] : Acc(0);
    }
  }
}

/// Adds the gradients of one tile and up to N channels to `sums` and, per position, to `slopes`. Either may be null.
template <int N, class T, class Acc>
void backward_pack(const Tile<Acc>& tile, const T* input, const T* grad_output, int used, const Sums<Acc>* sums, Acc* slopes,
                   const Scratch& scratch) {
  using P = Pack<Acc, N>;
  using Block = typename Stage<Acc, N>::Block;
  Stage<Acc, N> grads{};  // idle lanes and padding are zero
  Window<Acc, N> values(scratch.values), grad_sums(scratch.grads);
  P slope_sums[Tile<Acc>::kPositions];
  if (sums) grad_sums.clear(tile);
  if (slopes) std::fill_n(slope_sums, tile.padded, P{});
  const bool finite = !slopes || values.load(tile, input, used);
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    load_grads(tile, grad_output, index, used, grads);
    const Tap<Acc> target(tile, ky, kx, true), source(tile, ky, kx, finite);
    for (int n = 0; n < tile.padded; n += kBlock<N>) {
      Block grad;
      grads.get(n, grad);
      if (sums) scatter(target, n, grad, grad_sums.pixel);
      if (slopes) add_slopes(source, n, grad, values.pixel, slope_sums + n);
    }
  });
  if (sums) grad_sums.add_to(*sums, tile, used);
  for (int n = 0; slopes && n < tile.padded; n += kBlock<N>) {
    Block block;
    std::copy_n(slope_sums + n, kBlock<N>, block);
    add_lanes<Acc, N>(block, slopes + n);
  }
}

/// The same for one channel of a tile whose window does not fit.
template <class T, class Acc>
void backward_alone(const Tile<Acc>& tile, const T* input, const T* grad_output, const Sums<Acc>* sums, Acc* slopes) {
  Stage<Acc, 1> grads;
  for_each_tap(tile.geometry, [&](std::int64_t index, int ky, int kx) {
    load_grads(tile, grad_output, index, 1, grads);
    if (sums) scatter_alone(tile, ky, kx, input, grads.row[0], *sums);
    if (slopes) add_slopes_alone(tile, ky, kx, input, grads.row[0], slopes);
  });
}

template <class T>
void backward(const Geometry& g, DType map_type, const UnfoldBackward& tensors, const Slice& slice, const Band& band,
              const Scratch& scratch) {
  using Acc = accumulator_t<T>;
  constexpr bool kApart = sizeof(T) < sizeof(Acc);  // sums are rounded at the end
  const std::int64_t pixels = (band.last_row - band.first_row) * g.w.size;
  T* grad_input = tensors.grad_input ? at<T>(tensors.grad_input, slice.plane(g) * g.pixels()) : nullptr;
  Sums<Acc> sums{nullptr, g.pixels(), 0, band.first_row, band.last_row, g.w.size};
  if constexpr (kApart) {
    sums.channel_0 = scratch.sums;
    sums.stride = pixels;
    sums.origin = band.first_row;
  } else {
    sums.channel_0 = grad_input;
  }
  for (std::int64_t c = 0; grad_input && c < slice.channels; ++c) std::fill_n(sums.row(c, band.first_row), pixels, Acc(0));

  const Tiling tiling(g);
  for (std::int64_t index = 0; index < tiling.count(); ++index) {
    const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_plane(slice.image, slice.group), tiling.region(index));
    const bool to_input = grad_input && tile.reaches(band.first_row, band.last_row);
    const bool to_map = scratch.map_sums && index >= band.first_tile && index < band.last_tile;
    if (!to_input && !to_map) continue;
    Acc slopes[Tile<Acc>::kPositions] = {};  // summed over taps and channels
    for_each_pack(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
      const T* input = at<T>(tensors.input, (slice.plane(g) + first) * g.pixels());
      const T* grad_output = at<T>(tensors.grad_output, (slice.plane(g) + first) * g.taps() * g.positions());
      const Sums<Acc> pack_sums = sums.from(first);
      const Sums<Acc>* input_sums = to_input ? &pack_sums : nullptr;
      if constexpr (lanes == 0) {
        backward_alone(tile, input, grad_output, input_sums, to_map ? slopes : nullptr);
      } else {
        backward_pack<lanes>(tile, input, grad_output, used, input_sums, to_map ? slopes : nullptr, scratch);
      }
    });
    if (to_map) {
      tile.for_each_run([&](int n, std::int64_t position, int length) {
        Acc* map_sums = at<Acc>(scratch.map_sums, position);
        for (int i = 0; i < length; ++i) map_sums[i] = slopes[n + i] + tile.poison[n + i];
      });
    }
  }

  if constexpr (kApart) {
    for (std::int64_t c = 0; grad_input && c < slice.channels; ++c) {
      T* rows = grad_input + c * g.pixels() + band.first_row * g.w.size;
      const Acc* sum = sums.row(c, band.first_row);
      for (std::int64_t p = 0; p < pixels; ++p) rows[p] = narrow<T>(sum[p]);
    }
  }
}

template <class Acc>
void sum_map(DType map_type, const void* map_sums, std::int64_t parts, std::int64_t stride, std::int64_t count, void* map) {
  const auto store = [&](auto* target) {
    using M = std::remove_pointer_t<decltype(target)>;
    for (std::int64_t n = 0; n < count; ++n) {
      Acc sum = 0;
      for (std::int64_t part = 0; part < parts; ++part) sum += static_cast<const Acc*>(map_sums)[part * stride + n];
      target[n] = narrow<M>(static_cast<accumulator_t<M>>(sum));
    }
  };
  if (map_type == DType::float16) return store(static_cast<float16*>(map));
  if (map_type == DType::bfloat16) return store(static_cast<bfloat16*>(map));
  store(static_cast<Acc*>(map));
}

template <class T>
constexpr Kernels kernels_of() {
  using Acc = accumulator_t<T>;
  return {kLanes<Acc>, forward<T>, backward<T>, sum_map<Acc>};
}

}  // namespace

const Kernels kernels[4] = {kernels_of<float16>(), kernels_of<bfloat16>(), kernels_of<float>(), kernels_of<double>()};

}  // namespace ddu::cpu::DDU_TARGET
