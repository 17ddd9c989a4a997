#pragma once

// How a channels-last call is cut into warps, and where its scratch memory lies.

#include <algorithm>

#include "../core/integer.h"
#include "../core/launch.h"
#include "../core/workspace.h"
#include "conversion.cuh"
#include "ordered_sums.cuh"

namespace ddu::cuda::channels_last {

inline int log2_at_least(std::int64_t n, int limit) {
  int log = 0;
  while (log < limit && (std::int64_t{1} << log) < n) ++log;
  return log;
}

/// Rows of a copy of ours: each group by itself, its channels padded to whole vectors.
inline RowLayout padded_rows(const Geometry& g, int vec) {
  const std::int64_t channels = ceil_div(g.group_channels(), vec) * vec;
  return {g.groups * g.pixels() * channels, g.pixels() * channels, channels};
}
inline std::int64_t numel(const Geometry& g, const RowLayout& rows) { return g.batch * rows.image; }
/// Rows of a channels_last tensor of the caller's.
inline RowLayout own_rows(const Geometry& g) { return {g.pixels() * g.channels, g.group_channels(), g.channels}; }

/// Whether all of a tensor's channel vectors are whole and aligned.
inline bool whole_vectors(const Geometry& g, const void* tensor, int vec) {
  return g.group_channels() % vec == 0 && is_aligned(tensor, 16);
}

/// What the sizes of a call say, whatever it is cut into.
template <class Acc>
RowParams<Acc> sizes_of(const Geometry& g, Types types, const RowLayout& rows) {
  if (g.channels > INT_MAX || g.taps() > INT_MAX / 64 || g.batch > INT_MAX) {
    throw invalid_argument("the tensors are too large for one launch: split them");
  }
  RowParams<Acc> p{};
  p.y = Sampler<Acc>(g.h, g.padding_mode);
  p.x = Sampler<Acc>(g.w, g.padding_mode);
  p.width = static_cast<int>(g.w.size);
  p.out_width = static_cast<int>(g.w.out_size);
  p.kernel_w = static_cast<int>(g.w.kernel_size);
  p.taps = static_cast<int>(g.taps());
  p.group_channels = static_cast<int>(g.group_channels());
  p.groups = static_cast<int>(g.groups);
  p.images = static_cast<int>(g.batch);
  p.shared_map = g.map_batch == 1;
  p.map_type = types.map;
  p.positions = g.positions();
  p.rows = rows;
  p.by_out_width = Divider(static_cast<unsigned>(p.out_width));
  p.by_kernel_w = Divider(static_cast<unsigned>(p.kernel_w));
  return p;
}

/// Cuts runs into blocks of block_columns columns of them.
template <class Acc>
void cut_blocks(const Geometry& g, RowParams<Acc>& p) {
  const std::int64_t runs = ceil_div(g.positions(), p.run);
  p.column_blocks = static_cast<int>(ceil_div(p.run_columns, p.block_columns));
  p.row_blocks = static_cast<int>(ceil_div(ceil_div(runs, p.run_columns), kRowWarps / p.block_columns));
  p.by_column_blocks = Divider(static_cast<unsigned>(p.column_blocks));
  p.by_row_blocks = Divider(static_cast<unsigned>(p.row_blocks));
}

/// Cuts the positions into runs, one for each warp, and runs into blocks of at most so many columns of them.
template <class Acc>
void cut_positions(const Geometry& g, int run, RowParams<Acc>& p, int most_columns = kRowWarps) {
  p.run = run;
  p.run_columns = static_cast<int>(std::max<std::int64_t>(1, (g.w.out_size + run / 2) / run));
  p.block_columns = 1;  // neighbours in a row complete each other's lines of the output
  while (p.block_columns * 2 <= std::min({p.run_columns, 32 / run, most_columns})) p.block_columns *= 2;
  cut_blocks(g, p);
}

/// A lane takes `channels` channels, and 2^most_log_lanes lanes share a position if there are so many.
template <class T>
RowParams<accumulator_t<T>> make_params(const Geometry& g, Types types, const RowLayout& rows, bool lines = false,
                                        int channels = kVec<T>, int most_log_lanes = 3) {
  auto p = sizes_of<accumulator_t<T>>(g, types, rows);
  const std::int64_t vectors = ceil_div(g.group_channels(), std::int64_t{channels});
  p.log_lanes = log2_at_least(vectors, most_log_lanes);
  p.slices = static_cast<int>(ceil_div(vectors, std::int64_t{1} << p.log_lanes));
  const int run = (lines ? 1 << TurnTile<T>::log_units_of(p.log_lanes) : 32 >> p.log_lanes) * kVec<T>;
  cut_positions(g, run, p);

  // Few positions and many taps: blocks share the taps out, so that the device is full.
  const std::int64_t blocks = std::int64_t{p.column_blocks} * p.row_blocks * p.slices * g.groups * g.batch;
  const std::int64_t wanted = std::int64_t{4} * current_device().multiprocessors;
  const std::int64_t at_once = std::max(1, 32 / run);
  const std::int64_t steps = ceil_div(g.taps(), at_once);
  const std::int64_t chunks = std::min(ceil_div(wanted, blocks), steps);
  p.tap_chunk = static_cast<int>(ceil_div(steps, chunks) * at_once);
  p.tap_chunks = static_cast<int>(ceil_div(g.taps(), p.tap_chunk));

  p.by_tap_chunks = Divider(static_cast<unsigned>(p.tap_chunks));
  p.by_slices = Divider(static_cast<unsigned>(p.slices));
  p.by_groups = Divider(static_cast<unsigned>(p.groups));
  return p;
}

/// Cuts a forward's work anew where the device's last round would be far from full: into blocks of other runs, and into runs of
/// taps. `resident` blocks run at once.
template <class Acc>
void fill_rounds(const Geometry& g, std::int64_t resident, RowParams<Acc>& p) {
  const auto blocks = [&](const RowParams<Acc>& cut) {
    return std::int64_t{cut.column_blocks} * cut.row_blocks * cut.slices * g.groups * g.batch *
           ceil_div(g.taps(), cut.tap_chunk);
  };
  const auto time = [&](const RowParams<Acc>& cut) {  // in taps of a block, whose start takes as long as half of one
    return static_cast<double>(ceil_div(blocks(cut), resident)) * (cut.tap_chunk + 0.5);
  };
  RowParams<Acc> best = p;
  for (int columns = 1; columns <= std::min(p.run_columns, kRowWarps); columns *= 2) {
    for (int chunks = 1; chunks <= 4; ++chunks) {
      RowParams<Acc> cut = p;
      cut.block_columns = columns;
      cut_blocks(g, cut);
      cut.tap_chunk = static_cast<int>(ceil_div(g.taps(), std::int64_t{chunks}));
      if (time(cut) < std::min(0.97 * time(best), 0.93 * time(p))) best = cut;  // else the fewer runs, and neighbours, stay
    }
  }
  // Blocks of many rounds drift apart, and the last ones run for half a block's time beside idle multiprocessors.
  if (best.tap_chunk >= p.taps && blocks(best) >= 4 * resident) best.tap_chunk = (p.taps + 1) / 2;
  p = best;
  p.tap_chunks = static_cast<int>(ceil_div(g.taps(), std::int64_t{p.tap_chunk}));
  p.by_tap_chunks = Divider(static_cast<unsigned>(p.tap_chunks));
}

/// Of so many pieces of work for marked tiles: most often there are none, and no more blocks than run at once end sooner.
inline unsigned few_blocks(unsigned pieces) {
  return std::min(pieces, static_cast<unsigned>(2 * current_device().multiprocessors));
}

template <class Acc>
unsigned blocks_of(const RowParams<Acc>& p, const Geometry& g) {
  return grid_size(std::int64_t{p.column_blocks} * p.row_blocks * p.tap_chunks * p.slices * g.groups * g.batch);
}

template <class T>
struct Conversion {
  ConversionParams params{};
  unsigned blocks, square_blocks;  // of planes_to_rows_kernel, and of rows_to_planes_kernel
  int image_blocks;                // of the first, for an image
  std::size_t shared;

  /// Of shares of tiles, where a tile has one.
  Conversion(const Geometry& g, const RowLayout& rows, const TileMarks& tiles = {}) {
    const std::int64_t vectors = ceil_div(g.group_channels(), kVec<T>);
    params.pixels = g.pixels();
    params.group_channels = static_cast<int>(g.group_channels());
    params.rows = rows;
    params.log_lanes = log2_at_least(vectors, 3);
    params.slices = static_cast<int>(ceil_div(vectors, std::int64_t{1} << params.log_lanes));
    params.groups = static_cast<int>(g.groups);
    // Blocks that are all resident at once: what follows them may start then.
    const std::int64_t planes = std::int64_t{params.slices} * g.groups * g.batch;
    const std::int64_t resident = std::max<std::int64_t>(1, std::int64_t{6} * current_device().multiprocessors / planes);
    const std::int64_t block_pixels = (std::int64_t{kRowWarps} * kVec<T>) << TurnTile<T>::log_units_of(params.log_lanes);
    params.share = tiles.share;
    const auto pixel_blocks =
        tiles.share != 0 ? tiles.tiles : grid_size(std::min(ceil_div(g.pixels(), block_pixels), resident));
    params.by_blocks = Divider(pixel_blocks);
    const auto square_blocks_of_plane = grid_size(ceil_div(g.pixels(), (kRowThreads >> params.log_lanes) * kVec<T>));
    params.by_pixel_blocks = Divider(square_blocks_of_plane);
    square_blocks = grid_size(square_blocks_of_plane * planes);
    shared = static_cast<std::size_t>(kRowWarps * TurnTile<T>::bytes(params.log_lanes));
    image_blocks = static_cast<int>(std::int64_t{pixel_blocks} * params.slices * g.groups);
    params.by_slices = Divider(static_cast<unsigned>(params.slices));
    params.by_groups = Divider(static_cast<unsigned>(params.groups));
    blocks = grid_size(std::int64_t{image_blocks} * g.batch);
  }
  /// Whether planes start and end with whole vectors of pixels.
  bool whole(const void* planes) const { return params.pixels % kVec<T> == 0 && is_aligned(planes, 16); }
  PlanesToRows<T> work(const void* planes, T* rows, const RowsToClear& sums, unsigned char* strange) const {
    return {params, static_cast<const T*>(planes), rows, sums, strange, blocks, whole(planes)};
  }
};

/// Turns planes into a copy of ours, and clears sums beside it; either may be null. Compiled once, in image_rows.cu.
void planes_to_rows(const Geometry& g, DType type, const RowLayout& rows, const TileMarks& tiles, const void* planes,
                    void* copy, const RowsToClear& sums, unsigned char* strange, Stream stream);

/// Turns pixels whose vectors of channels are whole to planes. There too.
void rows_to_planes(const Geometry& g, DType type, const RowLayout& rows, const void* pixels, void* planes, Stream stream);

/// Of `planes` planes of `count` gradients each; perhaps from a `sample` of those, where there are many.
template <class T>
LargestSearch<T> largest_search(const T* gradients, std::int64_t planes, std::int64_t count, unsigned long long* largest,
                                bool sample = false) {
  const std::int64_t enough = ceil_div(std::int64_t{16} * current_device().multiprocessors, planes);
  const auto of_plane = static_cast<unsigned>(std::min(enough, ceil_div(count, LargestSearch<T>::kThreads * kVec<T>)));
  return {gradients,
          count,
          largest,
          Divider(of_plane),
          grid_size(of_plane * planes),
          count % kVec<T> == 0 && is_aligned(gradients, 16),
          sample && count >= 4096};
}

/// Whether all of a tap's vectors of positions are whole and aligned.
inline bool whole_columns(const Geometry& g, const void* columns, int vec) {
  return g.positions() % vec == 0 && is_aligned(columns, 16);
}

}  // namespace ddu::cuda::channels_last
