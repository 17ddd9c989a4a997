// The CPU kernels, compiled once per instruction set into namespace DDU_TARGET. Nothing here has external linkage but the
// table at the end.

#include "kernels.h"

#include "tile.h"

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

  Tap(const Tile<Acc>& tile, std::int64_t ky, std::int64_t kx, bool finite)
      : row(tile.y.offset + ky * tile.count),
        column(tile.x.offset + kx * tile.count),
        fy(tile.y.fraction + ky * tile.count),
        fx(tile.x.fraction + kx * tile.count),
        offset_y(tile.sample_y.offset(static_cast<int>(ky))),
        offset_x(tile.sample_x.offset(static_cast<int>(kx))),
        pitch(tile.x.extent),
        still_y(finite && Tile<Acc>::still(tile.sample_y, ky)),
        still_x(finite && Tile<Acc>::still(tile.sample_x, kx)) {}

  std::int32_t cell(int n) const { return row[n] + column[n]; }
};

/// body(tap, ky, kx) for all taps, in the order of the output.
template <class Body>
void for_each_tap(const Geometry& g, Body body) {
  std::int64_t tap = 0;
  for (std::int64_t ky = 0; ky < g.h.kernel_size; ++ky) {
    for (std::int64_t kx = 0; kx < g.w.kernel_size; ++kx, ++tap) body(tap, ky, kx);
  }
}

/// Hands the channels of a slice to body(lanes, first, used) in packs: the widest whose window fits, none wider than needed.
/// Lanes are 0 where no window fits.
template <class Acc, class Body>
void for_each_pack(const Tile<Acc>& tile, std::int64_t channels, Body body) {
  constexpr int wide = kLanes<Acc>, narrow = std::min(wide, 4);
  const auto run = [&](auto lanes, std::int64_t first) {
    const std::int64_t used = std::min<std::int64_t>(std::max<int>(lanes, 1), channels - first);
    body(lanes, first, static_cast<int>(used));
    return first + used;
  };
  for (std::int64_t first = 0; first < channels;) {
    const std::int64_t left = channels - first;
    if (left > narrow && tile.window_fits(kWindow<Pack<Acc, wide>>)) {
      first = run(std::integral_constant<int, wide>{}, first);
    } else if (left > 1 && tile.window_fits(kWindow<Pack<Acc, narrow>>)) {
      first = run(std::integral_constant<int, narrow>{}, first);
    } else if (tile.window_fits(kWindow<Acc>)) {
      first = run(std::integral_constant<int, 1>{}, first);
    } else {
      first = run(std::integral_constant<int, 0>{}, first);
    }
  }
}

/// One cell worked out on its own: the way of tiles whose window does not fit.
template <class Acc>
struct LoneCell {
  Cell<Acc> y, x;
  std::int64_t height, width;

  LoneCell(const Tile<Acc>& tile, int n, std::int64_t ky, std::int64_t kx)
      : height(tile.sample_y.size), width(tile.sample_x.size) {
    const auto p = tile.position(n);
    y = tile.sample_y.cell(tile.sample_y.base(p.y), tile.sample_y.offset(static_cast<int>(ky)), tile.rate[n]);
    x = tile.sample_x.cell(tile.sample_x.base(p.x), tile.sample_x.offset(static_cast<int>(kx)), tile.rate[n]);
  }

  /// Index of a corner, or -1 outside the image.
  std::int64_t pixel(int down, int right) const {
    const std::int64_t iy = y.index + down, ix = x.index + right;
    return iy >= 0 && iy < height && ix >= 0 && ix < width ? iy * width + ix : -1;
  }
  template <class T>
  Acc corner(const T* plane, int down, int right) const {
    const std::int64_t p = pixel(down, right);
    return p < 0 ? Acc(0) : widen(plane[p]);
  }
};

/// values[i] of the positions n + i.
template <class P, class Acc>
void sample(const Tap<Acc>& tap, int n, int count, const P* window, P* values) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.still_y && tap.still_x) {
    for (int i = 0; i < count; ++i) values[i] = window[tap.cell(n + i)];
  } else if (tap.still_y || tap.still_x) {
    const Acc* fraction = tap.still_y ? fx : fy;
    const std::int32_t next = tap.still_y ? 1 : tap.pitch;
    for (int i = 0; i < count; ++i) {
      const P* cell = window + tap.cell(n + i);
      values[i] = (1 - fraction[i]) * cell[0] + fraction[i] * cell[next];
    }
  } else {
    for (int i = 0; i < count; ++i) {
      const P* cell = window + tap.cell(n + i);
      values[i] = interpolate(cell[0], cell[1], cell[tap.pitch], cell[tap.pitch + 1], fy[i], fx[i]);
    }
  }
}

template <class T>
void forward(const Geometry& g, DType map_type, const Forward& tensors, const Slice& slice, const Region& region) {
  using Acc = accumulator_t<T>;
  const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_plane(slice.image, slice.group), region);
  const std::int64_t column = g.positions(), channel = g.taps() * column;
  for_each_pack(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
    constexpr int N = lanes;
    const T* input = at<T>(tensors.input, (slice.plane(g) + first) * g.pixels());
    T* output = at<T>(tensors.output, (slice.plane(g) + first) * channel);
    if constexpr (N == 0) {
      for_each_tap(g, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
        tile.for_each_run([&](int n, std::int64_t position, int length) {
          for (int i = 0; i < length; ++i) {
            const LoneCell<Acc> cell(tile, n + i, ky, kx);
            const Acc value = interpolate(cell.corner(input, 0, 0), cell.corner(input, 0, 1), cell.corner(input, 1, 0),
                                          cell.corner(input, 1, 1), cell.y.fraction, cell.x.fraction);
            output[tap * column + position + i] = narrow<T>(value + tile.poison[n + i]);
          }
        });
      });
    } else {
      using P = Pack<Acc, N>;
      P window[kWindow<P>];
      const bool finite = tile.template load<N>(input, used, window);
      for_each_tap(g, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
        const Tap<Acc> t(tile, ky, kx, finite);
        tile.for_each_run([&](int n, std::int64_t position, int length) {
          for_each_block<N>(length, [&](int start, int, int count) {
            P values[kBlock<N>];
            sample(t, n + start, count, window, values);
            if (!tile.all_finite) {
              for (int i = 0; i < count; ++i) values[i] += tile.poison[n + start + i];
            }
            store_block<N>(values, output + tap * column + position + start, channel, used, count);
          });
        });
      });
    }
  });
}

/// Adds the gradients of the positions n + i onto the corners of their cells.
template <class P, class Acc>
void scatter(const Tap<Acc>& tap, int n, int done, int count, const P* grad, P* window) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.still_y && tap.still_x) {
    for (int i = done; i < count; ++i) window[tap.cell(n + i)] += grad[i];
  } else if (tap.still_y || tap.still_x) {
    const Acc* fraction = tap.still_y ? fx : fy;
    const std::int32_t next = tap.still_y ? 1 : tap.pitch;
    for (int i = done; i < count; ++i) {
      P* cell = window + tap.cell(n + i);
      cell[0] += (1 - fraction[i]) * grad[i];
      cell[next] += fraction[i] * grad[i];
    }
  } else {
    for (int i = done; i < count; ++i) {
      P* cell = window + tap.cell(n + i);
      const P upper = (1 - fy[i]) * grad[i], lower = fy[i] * grad[i];
      cell[0] += (1 - fx[i]) * upper;
      cell[1] += fx[i] * upper;
      cell[tap.pitch] += (1 - fx[i]) * lower;
      cell[tap.pitch + 1] += fx[i] * lower;
    }
  }
}

/// sums[i] += grad * d(value)/d(rate) of the positions n + i.
template <class P, class Acc>
void add_slopes(const Tap<Acc>& tap, int n, int done, int count, const P* grad, const P* window, P* sums) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  if (tap.still_y && tap.still_x) return;  // the tap does not move
  if (tap.still_y || tap.still_x) {
    const Acc offset = tap.still_y ? tap.offset_x : tap.offset_y;
    const std::int32_t next = tap.still_y ? 1 : tap.pitch;
    for (int i = done; i < count; ++i) {
      const P* cell = window + tap.cell(n + i);
      sums[i] += grad[i] * ((cell[next] - cell[0]) * offset);
    }
  } else {
    for (int i = done; i < count; ++i) {
      const P* cell = window + tap.cell(n + i);
      sums[i] +=
          grad[i] * slope(cell[0], cell[1], cell[tap.pitch], cell[tap.pitch + 1], fy[i], fx[i], tap.offset_y, tap.offset_x);
    }
  }
}

template <class P>
auto sum_lanes(const P& pack) {
  if constexpr (sizeof(P) <= sizeof(double)) {
    return pack;
  } else {
    auto sum = pack[0];
    for (std::size_t c = 1; c < sizeof(P) / sizeof sum; ++c) sum += pack[c];
    return sum;
  }
}

template <class T>
void backward(const Geometry& g, DType map_type, const Backward& tensors, const Slice& slice, float* sums, void* map_sums) {
  using Acc = accumulator_t<T>;
  const std::int64_t column = g.positions(), channel = g.taps() * column;
  T* grad_input = tensors.grad_input ? at<T>(tensors.grad_input, slice.plane(g) * g.pixels()) : nullptr;
  Acc* totals = nullptr;
  if (grad_input) {
    if constexpr (sizeof(T) == 2) {
      totals = sums;
    } else {
      totals = grad_input;
    }
    std::fill_n(totals, slice.channels * g.pixels(), Acc(0));
  }
  const Tiling tiling(g);
  for (std::int64_t index = 0; index < tiling.count(); ++index) {
    const Tile<Acc> tile(g, tensors.dilation_map, map_type, g.map_plane(slice.image, slice.group), tiling.region(index));
    Acc slopes[Tile<Acc>::kPositions] = {};  // summed over taps and channels
    for_each_pack(tile, slice.channels, [&](auto lanes, std::int64_t first, int used) {
      constexpr int N = lanes;
      const T* input = at<T>(tensors.input, (slice.plane(g) + first) * g.pixels());
      const T* grad_output = at<T>(tensors.grad_output, (slice.plane(g) + first) * channel);
      Acc* total = grad_input ? totals + first * g.pixels() : nullptr;
      if constexpr (N == 0) {
        for_each_tap(g, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
          const Acc offset_y = tile.sample_y.offset(static_cast<int>(ky)),
                    offset_x = tile.sample_x.offset(static_cast<int>(kx));
          tile.for_each_run([&](int n, std::int64_t position, int length) {
            for (int i = n; i < n + length; ++i) {
              if (!is_finite(tile.poison[i])) continue;
              const Acc grad = widen(grad_output[tap * column + position + i - n]);
              const LoneCell<Acc> cell(tile, i, ky, kx);
              const Acc fy = cell.y.fraction, fx = cell.x.fraction;
              if (map_sums) {
                slopes[i] += grad * slope(cell.corner(input, 0, 0), cell.corner(input, 0, 1), cell.corner(input, 1, 0),
                                          cell.corner(input, 1, 1), fy, fx, offset_y, offset_x);
              }
              for (int corner = 0; total && corner < 4; ++corner) {
                const int down = corner / 2, right = corner % 2;
                const std::int64_t p = cell.pixel(down, right);
                if (p >= 0) total[p] += (right ? fx : 1 - fx) * ((down ? fy : 1 - fy) * grad);
              }
            }
          });
        });
      } else {
        using P = Pack<Acc, N>;
        P window[kWindow<P>], sums_window[kWindow<P>];
        P slope_sums[Tile<Acc>::kPositions];
        bool finite = true;
        if (map_sums) {
          finite = tile.template load<N>(input, used, window);
          std::fill_n(slope_sums, tile.count, P{});
        }
        if (total) std::fill_n(sums_window, std::int64_t{tile.y.extent} * tile.x.extent, P{});
        for_each_tap(g, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
          const Tap<Acc> moved(tile, ky, kx, finite), t(tile, ky, kx, true);
          tile.for_each_run([&](int n, std::int64_t position, int length) {
            for_each_block<N>(length, [&](int start, int done, int count) {
              P grad[kBlock<N>];
              load_block<N>(grad_output + tap * column + position + start, channel, used, count, grad);
              const int m = n + start;
              if (!tile.all_finite) {
                for (int i = 0; i < count; ++i) grad[i] = is_finite(tile.poison[m + i]) ? grad[i] : P{};
              }
              if (total) scatter(t, m, done, count, grad, sums_window);
              if (map_sums) add_slopes(moved, m, done, count, grad, window, slope_sums + m);
            });
          });
        });
        if (total) tile.template add<N>(sums_window, used, total);
        if (map_sums) {
          for (int n = 0; n < tile.count; ++n) slopes[n] += sum_lanes(slope_sums[n]);
        }
      }
    });
    if (map_sums) {
      tile.for_each_run([&](int n, std::int64_t position, int length) {
        for (int i = 0; i < length; ++i) static_cast<Acc*>(map_sums)[position + i] = slopes[n + i] + tile.poison[n + i];
      });
    }
  }
  if constexpr (sizeof(T) == 2) {
    if (grad_input) {
      for (std::int64_t p = 0; p < slice.channels * g.pixels(); ++p) grad_input[p] = narrow<T>(totals[p]);
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
