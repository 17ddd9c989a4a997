#pragma once

// How a call without columns is divided among lanes, and how its image lies in the rows that they read.

#include <numeric>

#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"
#include "heads.cuh"
#include "plan.h"

namespace ddu::cuda::channels_last {

/// How the kernels read an image, and add to its gradient. A caller's channels_last tensor is read as it lies; planes are
/// turned to rows of our own, in which each unit is padded to whole vectors.
struct ImageRows {
  bool own;             // as the caller's tensor lies
  bool vectors;         // whether a lane takes 16 bytes of channels, or one channel
  std::int64_t stride;  // elements from one unit of a pixel to the next
  Geometry units;       // what the conversions take for a group: a unit, or the whole pixel where units have no padding
  RowLayout rows;

  /// `vec` channels are 16 bytes; `aligned` says that a caller's rows start at multiples of that.
  ImageRows(const HeadGeometry& h, MemoryFormat format, int vec, bool aligned) : units(h.geometry) {
    const std::int64_t channels = unit_channels(h), padded = ceil_div(channels, vec) * vec;
    own = format == MemoryFormat::channels_last;
    vectors = !own || (channels == padded && aligned);
    stride = own ? channels : padded;
    units.groups = own || channels == padded ? 1 : units.channels / channels;
    const std::int64_t pixel = units.channels / channels * stride;
    rows = {units.pixels() * pixel, units.groups == 1 ? pixel : stride, pixel};
  }
  std::int64_t numel() const { return units.batch * rows.image; }

  static std::int64_t unit_channels(const HeadGeometry& h) { return std::gcd(h.geometry.group_channels(), h.head_channels()); }
};

/// The format to read the tensors in: one channel lies alike in both, and is not worth a copy.
inline MemoryFormat format_of(const HeadGeometry& h, MemoryFormat given) {
  return h.geometry.channels == 1 ? MemoryFormat::channels_last : given;
}

/// Divides the channels: lanes that take `channels` of them each, in two pieces or one. A warp that `gathers` goes through all
/// channels of its heads.
template <class Acc>
void divide_channels(const HeadGeometry& h, int channels, bool gathers, HeadParams<Acc>& p, int pieces = 1) {
  const int most_log_lanes = pieces > 1 ? 3 : 4, line_log_lanes = most_log_lanes - 1;  // of a position; of a line of 128 bytes
  const std::int64_t unit = ImageRows::unit_channels(h), vectors = ceil_div(unit, channels);
  p.unit_channels = static_cast<int>(unit);
  p.units = static_cast<int>(h.geometry.group_channels() / unit);
  p.head_units = static_cast<int>(h.head_channels() / unit);
  p.log_unit_lanes = log2_at_least(vectors, most_log_lanes);
  const std::int64_t most = std::int64_t{1} << most_log_lanes, idle = ceil_div(vectors, most) * most - vectors;
  if (2 * idle >= most) p.log_unit_lanes = std::min(p.log_unit_lanes, line_log_lanes);
  p.unit_slices = static_cast<int>(ceil_div(vectors, std::int64_t{1} << p.log_unit_lanes));
  int log_units = 0;
  if (p.unit_slices == 1 && !(gathers && p.head_units > 1)) {
    // As many units as have room, unless some lanes would be idle and fewer fill a line too.
    for (log_units = most_log_lanes - p.log_unit_lanes; log_units > 0; --log_units) {
      if (1 << (log_units - 1) >= p.units) continue;
      if (p.units % (1 << log_units) == 0 || p.log_unit_lanes + log_units <= line_log_lanes) break;
    }
  }
  p.log_lanes = p.log_unit_lanes + log_units;
  const bool by_heads = gathers && p.head_units > 1;
  const int unit_blocks = by_heads ? 1 : static_cast<int>(ceil_div(p.units, 1 << log_units));
  p.slices = gathers ? unit_blocks : unit_blocks * p.unit_slices;
  p.rounds = gathers ? p.head_units * p.unit_slices : 0;
  p.by_unit_slices = Divider(static_cast<unsigned>(p.unit_slices));
  p.by_units = Divider(static_cast<unsigned>(p.units));
  p.by_head_units = Divider(static_cast<unsigned>(p.head_units));
  p.by_slices = Divider(static_cast<unsigned>(p.slices));
  p.by_groups = Divider(static_cast<unsigned>(by_heads ? h.heads : h.geometry.groups));
}

/// Positions of a warp, whose lanes take so many each.
template <class Acc>
int run_of(const HeadParams<Acc>& p, int lane_positions = kHeadPositions) {
  return (32 >> p.log_lanes) * lane_positions;
}

/// Of a forward call: two runs side by side and four deep read fewer pixels than four runs and two.
constexpr int kForwardColumns = 2;

/// All of a launch. `values` and `factors` are what lanes move all their positions of; a block has at most `most_columns` runs
/// side by side.
template <class T>
HeadParams<accumulator_t<T>> head_params(const HeadGeometry& h, Types types, const ImageRows& rows, int channels, bool gathers,
                                         bool values_aligned, bool factors_aligned, int most_columns = kRowWarps) {
  using Acc = accumulator_t<T>;
  const Geometry& g = h.geometry;
  HeadParams<Acc> p{};
  static_cast<RowParams<Acc>&>(p) = sizes_of<Acc>(g, types, rows.rows);
  p.heads = static_cast<int>(h.heads);
  p.shared_factors = h.factors_batch == 1;
  p.unit_stride = static_cast<int>(rows.stride);
  p.row = g.w.size * rows.rows.pixel;
  const int pieces = channels > kVec<T> ? 2 : 1;
  divide_channels(h, channels, gathers, p, pieces);
  cut_positions(g, run_of(p, kHeadPositions / pieces), p, most_columns);
  p.tap_chunk = p.taps;
  p.tap_chunks = 1;
  const bool whole = g.positions() % kHeadPositions == 0;
  p.factor_vectors = whole && factors_aligned;
  p.values = rows.own ? ValueLayout{g.positions() * g.channels, 1, g.channels, rows.vectors && values_aligned, false}
                      : ValueLayout{g.channels * g.positions(), g.positions(), 1, false, whole && values_aligned};
  return p;
}

/// How one of several outputs of each channel lies, and how far from the next, in a caller's tensor [batch, channels, outputs,
/// height, width] that starts with its planes or its channels and outputs.
struct OutputLayout {
  ValueLayout values;
  std::int64_t next;

  OutputLayout(const Geometry& g, std::int64_t outputs, MemoryFormat format) {
    const std::int64_t all = g.channels * outputs;
    const bool rows = format == MemoryFormat::channels_last;
    next = rows ? 1 : g.positions();
    values = {all * g.positions(), outputs * next, rows ? all : 1, false, false};
  }
};

template <class Acc>
unsigned blocks_of(const HeadParams<Acc>& p) {
  return grid_size(std::int64_t{p.column_blocks} * p.row_blocks * p.slices * p.by_groups.divisor * p.images);
}

/// Bytes that vectors of kHeadPositions elements, or of a lane's channels, start at multiples of.
template <class T>
constexpr std::size_t kVectorBytes = kHeadPositions * sizeof(T) < 16 ? kHeadPositions * sizeof(T) : 16;

/// Bytes of what a lane of kN channels moves at once of a tensor of values, which lies as the caller's image does.
template <class T, int kN>
std::size_t value_bytes(const ImageRows& image) {
  return image.own ? kN / kPieces<T, kN> * sizeof(T) : kVectorBytes<T>;
}

}  // namespace ddu::cuda::channels_last
