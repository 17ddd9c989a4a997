#pragma once

// What one instruction set's kernels offer to the parallel loops of unfold.cpp, and how the work is cut. The same source,
// kernels.cpp, is compiled once per instruction set, into a namespace of its own; only these tables cross.

#include <algorithm>
#include <cstdint>

#include "ddu/dtype.h"
#include "ddu/geometry.h"
#include "ddu/unfold.h"

namespace ddu::cpu {

/// Bytes from which on an output is taken to fit no cache.
constexpr std::int64_t kLarge = std::int64_t{4} << 20;

/// A rectangle of output positions.
struct Region {
  std::int64_t first_row, first_column;
  std::int64_t rows, columns;
};

/// How the output positions are cut into tiles: compact, so that neighbours share the input they read, and with rows that
/// fill vectors. The same for every thread count, since the order of sums depends on it.
struct Tiling {
  static constexpr std::int64_t kEntries = 4096;   // taps of both axes * positions of a tile
  static constexpr std::int64_t kPositions = 256;  // of a tile

  std::int64_t height, width;  // of the output
  std::int64_t rows, columns;  // of a tile
  std::int64_t down, across;   // tiles

  explicit Tiling(const Geometry& g) : height(g.h.out_size), width(g.w.out_size) {
    const std::int64_t positions =
        std::clamp<std::int64_t>(kEntries / (g.h.kernel_size + g.w.kernel_size), 16, kPositions) / 16 * 16;
    columns = positions >= 96 ? 64 : positions >= 48 ? 32 : 8;
    // The last tile of a row takes what is left, if that is less than half a tile.
    across = std::max<std::int64_t>((width + columns / 2) / columns, 1);
    const std::int64_t widest = std::max(std::min(columns, width), width - (across - 1) * columns);
    rows = std::max<std::int64_t>(positions / widest, 1);
    down = (height + rows - 1) / rows;
    rows = (height + down - 1) / down;
  }

  std::int64_t count() const { return down * across; }
  Region region(std::int64_t tile) const {
    const std::int64_t row = tile / across * rows, column = tile % across * columns;
    const bool last = tile % across == across - 1;
    return {row, column, std::min(rows, height - row), last ? width - column : columns};
  }
};

/// Channels of one image and group.
struct Slice {
  std::int64_t image;
  std::int64_t group;
  std::int64_t first_channel;  // within the group
  std::int64_t channels;

  std::int64_t plane(const Geometry& g) const { return image * g.channels + group * g.group_channels() + first_channel; }
};

/// A share of a slice's backward: some rows of grad_input and some tiles of grad_map.
struct Band {
  std::int64_t first_row, last_row;
  std::int64_t first_tile, last_tile;
};

/// Memory of one window: a small part of a core's own cache, so that two fit beside what streams through.
constexpr std::size_t kWindowBytes = 160 * 1024;

/// The most that a window of pixels of some bytes takes: no tap reaches further than two pixels out of the image (see
/// Sampler::cell), and 16 are written past the end.
inline std::size_t window_bytes(const Geometry& g, std::size_t pixel) {
  const auto reach = [](const Axis& axis) { return std::min(static_cast<std::size_t>(axis.size) + 4, kWindowBytes); };
  return std::min(kWindowBytes, ((reach(g.h) * reach(g.w) + 16) * pixel + 63) / 64 * 64);
}

struct Scratch {
  void* values;    // a window
  void* grads;     // another
  float* sums;     // rows of the band for each channel of the slice, for half inputs
  void* map_sums;  // the slice's part of grad_map, a value of the accumulation
                   // type per position; null if not wanted
};

struct Kernels {
  /// Channels that are worked on together. Cuts between channels lie at multiples of it.
  int lanes;
  /// All taps of a slice at a region of positions.
  void (*forward)(const Geometry&, DType map_type, const Unfold&, const Slice&, const Region&);
  /// Both gradients of a slice of at most `lanes` channels, as far as the band goes.
  void (*backward)(const Geometry&, DType map_type, const UnfoldBackward&, const Slice&, const Band&, const Scratch&);
  /// map[0, count) = the sum over `parts` of map_sums, which lie `stride` values apart.
  void (*sum_map)(DType map_type, const void* map_sums, std::int64_t parts, std::int64_t stride, std::int64_t count, void* map);
};

namespace baseline {
extern const Kernels kernels[4];  // by input DType
}
namespace avx2 {
extern const Kernels kernels[4];
}
namespace avx512 {
extern const Kernels kernels[4];
}

}  // namespace ddu::cpu
