// The CPU kernels, compiled once per instruction set into namespace DDU_TARGET. Loops over positions are plain, so that the
// compiler vectorises them; nothing here has external linkage but the table at the end.

#include "tile.h"

namespace ddu::cpu::DDU_TARGET {
namespace {

// How many corners of a cell carry weight: a tap that never leaves its row or column needs half of them (see Tile::still).
// The others would add 0 * value, which matters only where a value is not finite.
struct Corners {
  bool row_below;
  bool column_right;
};

/// One tap of a tile: where its cells are in the window, and their fractions.
template <class Acc>
struct Tap {
  const std::int32_t* row;
  const std::int32_t* column;
  const Acc* fy;
  const Acc* fx;
  Acc offset_y, offset_x;
  bool still_y, still_x;

  Tap(const Tile<Acc>& tile, std::int64_t ky, std::int64_t kx)
      : row(tile.y.offset + ky * tile.count),
        column(tile.x.offset + kx * tile.count),
        fy(tile.y.fraction + ky * tile.count),
        fx(tile.x.fraction + kx * tile.count),
        offset_y(tile.sample_y.offset(static_cast<int>(ky))),
        offset_x(tile.sample_x.offset(static_cast<int>(kx))),
        still_y(Tile<Acc>::still(tile.sample_y, ky)),
        still_x(Tile<Acc>::still(tile.sample_x, kx)) {}
};

template <class Acc, class Body>
void for_each_tap(const Tile<Acc>& tile, Body body) {
  const Geometry& g = tile.geometry;
  std::int64_t tap = 0;
  for (std::int64_t ky = 0; ky < g.h.kernel_size; ++ky) {
    for (std::int64_t kx = 0; kx < g.w.kernel_size; ++kx, ++tap) body(tap, ky, kx);
  }
}

/// The zero-extended image at (y, x).
template <class T>
accumulator_t<T> pixel(const Geometry& g, const T* plane, std::int32_t y, std::int32_t x) {
  const bool inside = y >= 0 && y < g.h.size && x >= 0 && x < g.w.size;
  return inside ? widen(plane[y * g.w.size + x]) : accumulator_t<T>(0);
}

/// One cell worked out on its own: the way of tiles whose window does not fit.
template <class Acc>
struct LoneCell {
  Cell<Acc> y, x;
  LoneCell(const Tile<Acc>& tile, int n, std::int64_t ky, std::int64_t kx) {
    const auto p = tile.position(n);
    y = tile.sample_y.cell(p.base_y, tile.sample_y.offset(static_cast<int>(ky)), tile.rate[n]);
    x = tile.sample_x.cell(p.base_x, tile.sample_x.offset(static_cast<int>(kx)), tile.rate[n]);
  }
};

template <class Acc>
void sample(const Tap<Acc>& tap, int count, const Acc* window, std::int32_t pitch, bool finite, Acc* values) {
  if (finite && tap.still_y && tap.still_x) {
    for (int n = 0; n < count; ++n) values[n] = window[tap.row[n] + tap.column[n]];
  } else if (finite && tap.still_y) {
    for (int n = 0; n < count; ++n) {
      const Acc* cell = window + (tap.row[n] + tap.column[n]);
      values[n] = (1 - tap.fx[n]) * cell[0] + tap.fx[n] * cell[1];
    }
  } else if (finite && tap.still_x) {
    for (int n = 0; n < count; ++n) {
      const Acc* cell = window + (tap.row[n] + tap.column[n]);
      values[n] = (1 - tap.fy[n]) * cell[0] + tap.fy[n] * cell[pitch];
    }
  } else {
    for (int n = 0; n < count; ++n) {
      const Acc* cell = window + (tap.row[n] + tap.column[n]);
      values[n] = interpolate(cell[0], cell[1], cell[pitch], cell[pitch + 1], tap.fy[n], tap.fx[n]);
    }
  }
}

template <class T>
void forward(const Geometry& g, DType map_type, const Forward& tensors, const Block& block) {
  using Acc = accumulator_t<T>;
  const Tile<Acc> tile(g, tensors.dilation_map, map_type, block);
  Acc window[Tile<Acc>::kWindow];
  Acc values[Tile<Acc>::kPositions];
  for (std::int64_t i = 0; i < block.channels; ++i) {
    const std::int64_t plane = block.image * g.channels + block.group * g.group_channels() + block.first_channel + i;
    const T* input = at<T>(tensors.input, plane * g.pixels());
    T* output = at<T>(tensors.output, plane * g.taps() * g.positions() + block.first_position);
    const bool finite = tile.fits && tile.load(input, window);
    for_each_tap(tile, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
      if (tile.fits) {
        sample(Tap<Acc>(tile, ky, kx), tile.count, window, tile.x.extent, finite, values);
      } else {
        for (int n = 0; n < tile.count; ++n) {
          const LoneCell<Acc> cell(tile, n, ky, kx);
          values[n] = interpolate(pixel(g, input, cell.y.index, cell.x.index), pixel(g, input, cell.y.index, cell.x.index + 1),
                                  pixel(g, input, cell.y.index + 1, cell.x.index),
                                  pixel(g, input, cell.y.index + 1, cell.x.index + 1), cell.y.fraction, cell.x.fraction);
        }
      }
      if (!tile.all_finite) {
        for (int n = 0; n < tile.count; ++n) values[n] += tile.rate[n] - tile.rate[n];  // NaN where the rate is not finite
      }
      T* column = output + tap * g.positions();
      for (int n = 0; n < tile.count; ++n) column[n] = narrow<T>(values[n]);
    });
  }
}

/// Adds the gradients of one tap onto the corners of its cells.
template <class Acc>
void scatter(const Tap<Acc>& tap, int count, const Acc* grad, std::int32_t pitch, Acc* window) {
  if (tap.still_y && tap.still_x) {
    for (int n = 0; n < count; ++n) window[tap.row[n] + tap.column[n]] += grad[n];
  } else if (tap.still_y || tap.still_x) {
    const Acc* fraction = tap.still_y ? tap.fx : tap.fy;
    const std::int32_t next = tap.still_y ? 1 : pitch;
    for (int n = 0; n < count; ++n) {
      Acc* cell = window + (tap.row[n] + tap.column[n]);
      cell[0] += (1 - fraction[n]) * grad[n];
      cell[next] += fraction[n] * grad[n];
    }
  } else {
    for (int n = 0; n < count; ++n) {
      Acc* cell = window + (tap.row[n] + tap.column[n]);
      const Acc upper = (1 - tap.fy[n]) * grad[n], lower = tap.fy[n] * grad[n];
      cell[0] += (1 - tap.fx[n]) * upper;
      cell[1] += tap.fx[n] * upper;
      cell[pitch] += (1 - tap.fx[n]) * lower;
      cell[pitch + 1] += tap.fx[n] * lower;
    }
  }
}

template <class T, class Acc>
void load_grad(const Tile<Acc>& tile, const T* column, Acc* grad) {
  for (int n = 0; n < tile.count; ++n) grad[n] = widen(column[n]);
  if (!tile.all_finite) {
    for (int n = 0; n < tile.count; ++n) grad[n] = is_finite(tile.rate[n]) ? grad[n] : Acc(0);
  }
}

template <class T>
void grad_input(const Geometry& g, DType map_type, const Backward& tensors, const Block& block, float* sums) {
  using Acc = accumulator_t<T>;
  Acc window[Tile<Acc>::kWindow];
  Acc grad[Tile<Acc>::kPositions];
  for (std::int64_t i = 0; i < block.channels; ++i) {
    const std::int64_t plane = block.image * g.channels + block.group * g.group_channels() + block.first_channel + i;
    const T* grad_output = at<T>(tensors.grad_output, plane * g.taps() * g.positions());
    T* grad_input = at<T>(tensors.grad_input, plane * g.pixels());
    Acc* total;
    if constexpr (sizeof(T) == 2) {
      total = sums;
    } else {
      total = grad_input;
    }
    std::fill_n(total, g.pixels(), Acc(0));
    for (std::int64_t first = 0; first < g.positions(); first += tile_positions(g)) {
      Block part = block;
      part.first_position = first;
      part.positions = std::min(tile_positions(g), g.positions() - first);
      const Tile<Acc> tile(g, tensors.dilation_map, map_type, part);
      if (tile.fits) std::fill_n(window, std::int64_t{tile.y.extent} * tile.x.extent, Acc(0));
      for_each_tap(tile, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
        load_grad(tile, grad_output + tap * g.positions() + first, grad);
        if (tile.fits) return scatter(Tap<Acc>(tile, ky, kx), tile.count, grad, tile.x.extent, window);
        for (int n = 0; n < tile.count; ++n) {
          const LoneCell<Acc> cell(tile, n, ky, kx);
          for (int corner = 0; corner < 4; ++corner) {
            const std::int32_t y = cell.y.index + corner / 2, x = cell.x.index + corner % 2;
            if (y < 0 || y >= g.h.size || x < 0 || x >= g.w.size) continue;
            const Acc fy = cell.y.fraction, fx = cell.x.fraction;
            total[y * g.w.size + x] += (corner / 2 ? fy : 1 - fy) * ((corner % 2 ? fx : 1 - fx) * grad[n]);
          }
        }
      });
      if (tile.fits) tile.add(window, total);
    }
    if constexpr (sizeof(T) == 2) {
      for (std::int64_t p = 0; p < g.pixels(); ++p) grad_input[p] = narrow<T>(total[p]);
    }
  }
}

/// Adds grad * d(value)/d(rate) of one tap.
template <class Acc>
void add_slopes(const Tap<Acc>& tap, int count, const Acc* grad, const Acc* window, std::int32_t pitch, bool finite, Acc* sums) {
  if (finite && tap.still_y && tap.still_x) return;  // the tap does not move
  if (finite && tap.still_y) {
    for (int n = 0; n < count; ++n) {
      const Acc* cell = window + (tap.row[n] + tap.column[n]);
      sums[n] += grad[n] * ((cell[1] - cell[0]) * tap.offset_x);
    }
  } else if (finite && tap.still_x) {
    for (int n = 0; n < count; ++n) {
      const Acc* cell = window + (tap.row[n] + tap.column[n]);
      sums[n] += grad[n] * ((cell[pitch] - cell[0]) * tap.offset_y);
    }
  } else {
    for (int n = 0; n < count; ++n) {
      const Acc* cell = window + (tap.row[n] + tap.column[n]);
      sums[n] += grad[n] * slope(cell[0], cell[1], cell[pitch], cell[pitch + 1], tap.fy[n], tap.fx[n], tap.offset_y, tap.offset_x);
    }
  }
}

template <class T>
void grad_map(const Geometry& g, DType map_type, const Backward& tensors, const Block& block) {
  using Acc = accumulator_t<T>;
  const Tile<Acc> tile(g, tensors.dilation_map, map_type, block);
  Acc window[Tile<Acc>::kWindow];
  Acc grad[Tile<Acc>::kPositions];
  Acc sums[Tile<Acc>::kPositions] = {};
  const std::int64_t images = g.map_batch == 1 ? g.batch : 1;
  for (std::int64_t image = block.image; image < block.image + images; ++image) {
    for (std::int64_t i = 0; i < g.group_channels(); ++i) {
      const std::int64_t plane = image * g.channels + block.group * g.group_channels() + i;
      const T* input = at<T>(tensors.input, plane * g.pixels());
      const T* grad_output = at<T>(tensors.grad_output, plane * g.taps() * g.positions() + block.first_position);
      const bool finite = tile.fits && tile.load(input, window);
      for_each_tap(tile, [&](std::int64_t tap, std::int64_t ky, std::int64_t kx) {
        load_grad(tile, grad_output + tap * g.positions(), grad);
        const Tap<Acc> t(tile, ky, kx);
        if (tile.fits) return add_slopes(t, tile.count, grad, window, tile.x.extent, finite, sums);
        for (int n = 0; n < tile.count; ++n) {
          const LoneCell<Acc> cell(tile, n, ky, kx);
          sums[n] += grad[n] * slope(pixel(g, input, cell.y.index, cell.x.index), pixel(g, input, cell.y.index, cell.x.index + 1),
                                     pixel(g, input, cell.y.index + 1, cell.x.index),
                                     pixel(g, input, cell.y.index + 1, cell.x.index + 1), cell.y.fraction, cell.x.fraction,
                                     t.offset_y, t.offset_x);
        }
      });
    }
  }
  const std::int64_t target = g.map_plane(block.image, block.group) + block.first_position;
  const auto store = [&](auto* map) {
    using M = std::remove_pointer_t<decltype(map)>;
    for (int n = 0; n < tile.count; ++n) {
      map[target + n] = narrow<M>(static_cast<accumulator_t<M>>(sums[n] + (tile.rate[n] - tile.rate[n])));
    }
  };
  if (map_type == DType::float16) return store(static_cast<float16*>(tensors.grad_map));
  if (map_type == DType::bfloat16) return store(static_cast<bfloat16*>(tensors.grad_map));
  store(static_cast<Acc*>(tensors.grad_map));
}

}  // namespace

const Kernels kernels[4] = {
    {forward<float16>, grad_input<float16>, grad_map<float16>},
    {forward<bfloat16>, grad_input<bfloat16>, grad_map<bfloat16>},
    {forward<float>, grad_input<float>, grad_map<float>},
    {forward<double>, grad_input<double>, grad_map<double>},
};

}  // namespace ddu::cpu::DDU_TARGET
