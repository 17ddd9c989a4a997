#pragma once

// How the work of a call is cut. Tiles, and the slices of a backward, are the same for every thread count, since the order of
// sums depends on them. Bands, and the slices of a forward, may follow it.
//
//   Tiling   cuts the output positions of one image and group into tiles      Region    the positions of one tile
//   Slice    channels of one image and group: they share the map              Band      a share of a slice's backward
//
//        output positions (Ho x Wo)                      input, zero-extended (H x W)
//      +--------+--------+-----------+                  . . . . . . . . . . . . . . . . .
//      | tile 0 | tile 1 |  tile 2   |                  . +---------------------------+ .
//      |        |        |           |      reads       . |    +===============+      | .
//      +--------+--------+-----------+   ----------->   . |    | window of     |      | .
//      | tile 3 | Region |           |                  . |    | the Region    |      | .
//      |        |        |           |                  . |    +===============+      | .
//      +--------+--------+-----------+                  . +---------------------------+ .
//
//   Tile     where the taps of a Region lie: for each axis, tap and position an offset in the window and a fraction, worked out
//            once and used for all channels of a slice
//   Window   the least rectangle of the zero-extended input that holds all taps of the tile, with a Vec (one value of each of a
//            few channels) for each pixel: a corner of a tap is then one vector load, wherever it lies
//   Stage    rows of values, one for each of those channels: what turns channels in memory into Vecs and back

#include <algorithm>
#include <cstdint>

#include "../../integer.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"

namespace ddu::cpu {

/// A rectangle of output positions.
struct Region {
  std::int64_t first_row, first_column;
  std::int64_t rows, columns;

  /// Runs of positions that are contiguous in an output `width` wide: body(first of the region, first of the output, length).
  template <class Body>
  void for_each_run(std::int64_t width, Body body) const {
    const bool all = columns == width;
    const std::int64_t runs = all ? 1 : rows, length = rows * columns / runs;
    for (std::int64_t r = 0; r < runs; ++r) {
      body(static_cast<int>(r * length), (first_row + r) * width + first_column, static_cast<int>(length));
    }
  }
};

/// Tiles are compact, so that neighbours share the input they read, and have rows that fill vectors. The larger they are, the
/// less of a window lies around what a tile itself covers, which is most of it where rates are wide; but windows must stay in a
/// core's own cache. Where channels are few, a pixel of a window takes less, and a tile more positions.
struct Tiling {
  static constexpr std::int64_t kEntries = 8192;       // taps of both axes * positions of a tile
  static constexpr std::int64_t kPositions = 512;      // of a tile
  static constexpr std::int64_t kFewPositions = 1024;  // where a group has at most kFew channels
  static constexpr std::int64_t kFew = 4;
  static constexpr std::int64_t kBlock = 16;  // positions that kernels take at once, at most

  std::int64_t height, width;  // of the output
  std::int64_t rows, columns;  // of a tile
  std::int64_t down, across;   // tiles
  std::int64_t most;           // positions of the largest tile, in whole blocks

  explicit Tiling(const Geometry& g) : height(g.h.out_size), width(g.w.out_size) {
    const std::int64_t limit = g.group_channels() <= kFew ? kFewPositions : kPositions;
    // Where taps are many, so are the terms of a sum in a window: smaller tiles cut it into more parts, which round less.
    const std::int64_t entries = g.taps() > 100 ? kEntries / 2 : kEntries;
    const std::int64_t positions =
        std::clamp<std::int64_t>(entries / (g.h.kernel_size + g.w.kernel_size), kBlock, limit) / kBlock * kBlock;
    columns = positions >= 96 ? 64 : positions >= 48 ? 32 : 8;
    // The last tile of a row takes what is left, if that is less than half a tile.
    across = std::max<std::int64_t>((width + columns / 2) / columns, 1);
    const std::int64_t widest = std::max(std::min(columns, width), width - (across - 1) * columns);
    rows = std::max<std::int64_t>(positions / widest, 1);
    down = ceil_div(height, rows);
    rows = ceil_div(height, down);
    most = round_up(rows * widest, kBlock);
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
  std::int64_t member = 0;  // where each of the geometry's channels is several in memory (see Image): which of them

  std::int64_t channel(const Geometry& g) const { return group * g.group_channels() + first_channel; }
  std::int64_t plane(const Geometry& g) const { return image * g.channels + channel(g); }
};

/// Whether Vecs of `lanes` channels are cut where heads end, so that they have one factor: unless that leaves more than half of
/// their lanes idle.
inline bool has_own_vecs(const HeadGeometry& heads, int lanes) { return 2 * heads.head_channels() >= lanes; }

/// Heads whose scores a task of sum_channels works out.
struct HeadRun {
  std::int64_t image;  // of the result
  std::int64_t first, last;
};

/// A share of a slice's backward: some rows of grad_input and some tiles of grad_map.
struct Band {
  std::int64_t first_row, last_row;
  std::int64_t first_tile, last_tile;
};

/// Adds up a part of the map's gradient: map[0, count) = the sum over `slices` of map_sums, which lie `stride` values apart.
using SumMap = void (*)(DType map_type, const void* map_sums, std::int64_t slices, std::int64_t stride, std::int64_t count,
                        void* map);

}  // namespace ddu::cpu
