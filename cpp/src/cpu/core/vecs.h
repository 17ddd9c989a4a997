#pragma once

// How the channels of a slice are handed out to Vecs. Internal linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ddu/head_geometry.h"
#include "quads.h"
#include "window.h"

namespace ddu::cpu {
namespace {

/// Whether a window with values that are not finite serves a tile, by all corners of its taps. Not with padding_mode border: a
/// cell at the edge has one pixel twice there, and the second, which weighs 0, makes NaN of an infinite value.
template <class Acc>
bool all_corners_serve(const Tile<Acc>& tile) {
  return !tile.sample_x.border;
}

/// Hands channels to body(lanes, first, used) in Vecs: the widest whose window fits, none wider than needed. Lanes are 0 where
/// no window fits: see without_window.h. Where body returns false, a window does not serve them, and they are handed out again
/// with no lanes, one by one. With `kFew`, channels too few for any are handed out one by one, with Alone for their lanes: see
/// quads.h.
template <bool kFew = false, class Acc, class Body>
void for_each_vec(const Tile<Acc>& tile, std::int64_t channels, Body body) {
  constexpr int wide = kLanes<Acc>, narrow = std::min(wide, 4);
  for (std::int64_t first = 0, used; first < channels; first += used) {
    const std::int64_t left = channels - first;
    const auto run = [&](auto lanes) {
      used = std::min<std::int64_t>(std::max<int>(lanes, 1), left);
      if (body(lanes, first, static_cast<int>(used))) return;
      for (std::int64_t c = 0; c < used; ++c) body(std::integral_constant<int, 0>{}, first + c, 1);
    };
    if constexpr (kFew && kHasChannelWindow<Acc>) {
      if (left < narrow && ChannelWindow<Acc>::fits(tile)) {
        run(Alone{});
        continue;
      }
    }
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

/// The same where heads matter: no Vec crosses from one head to the next, unless heads have too few channels for a Vec of their
/// own (see has_own_vecs).
template <class Acc, class Body>
void for_each_vec(const Tile<Acc>& tile, const HeadGeometry& heads, const Slice& slice, Body body) {
  const std::int64_t of_head = heads.head_channels();
  for (std::int64_t start = 0, length; start < slice.channels; start += length) {
    const std::int64_t left = slice.channels - start, channel = slice.channel(heads.geometry) + start;
    length = has_own_vecs(heads, kLanes<Acc>) ? std::min(left, of_head - channel % of_head) : left;
    for_each_vec(tile, length, [&](auto lanes, std::int64_t first, int used) { return body(lanes, start + first, used); });
  }
}

}  // namespace
}  // namespace ddu::cpu
