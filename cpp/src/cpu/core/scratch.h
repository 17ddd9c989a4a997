#pragma once

// Scratch memory of one thread, in the caller's workspace: kernels run on stacks of 64 KiB. Its layout is stated here alone, by
// constructors over a Workspace; run from null, they tell the size.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../workspace.h"
#include "caches.h"
#include "tiling.h"

namespace ddu::cpu {

/// Arrays of a Tile.
template <class Acc>
struct TileArrays {
  std::int32_t* base_y;  // of each position
  std::int32_t* base_x;
  Acc* rate;             // 0 where it is not finite
  Acc* nan;              // NaN where the rate is not finite, else 0
  std::int32_t* offset;  // of each tap and position: of all rows of taps, then of all columns
  Acc* fraction;
  bool* whole;  // of each tap: whether all its fractions are 0
  std::size_t bytes;

  TileArrays(void* memory, const Geometry& g, std::int64_t positions) {
    // Beyond kEntries, taps are worked out one by one.
    const std::int64_t taps = g.h.kernel_size + g.w.kernel_size, entries = std::min(taps * positions, Tiling::kEntries);
    Workspace workspace(memory);
    base_y = workspace.take<std::int32_t>(positions);
    base_x = workspace.take<std::int32_t>(positions);
    rate = workspace.take<Acc>(positions);
    nan = workspace.take<Acc>(positions);
    offset = workspace.take<std::int32_t>(entries);
    fraction = workspace.take<Acc>(entries);
    whole = workspace.take<bool>(std::min(taps, Tiling::kEntries));
    bytes = workspace.bytes();
  }
};

/// Memory of one window: a small part of a core's own cache, so that two fit beside what streams through.
constexpr std::size_t kWindowBytes = 160 * 1024;

/// The most that a window of pixels of some bytes takes: no tap reaches further than two pixels out of the image (see
/// Sampler::cell), and a block is written past the end.
inline std::size_t window_bytes(const Geometry& g, std::size_t pixel) {
  const auto reach = [](const Axis& axis) { return std::min(static_cast<std::size_t>(axis.size) + 4, kWindowBytes); };
  return std::min(kWindowBytes, round_up((reach(g.h) * reach(g.w) + Tiling::kBlock) * pixel, kLine));
}

/// What a kernel needs of Scratch. What it does not need is null.
struct ScratchSizes {
  std::size_t value = sizeof(float);  // bytes of a sum
  int lanes = 1;                      // of a Vec
  bool backward = false;
  std::int64_t values = 0;  // Vecs for each position, of tensors that have channels and positions; 0 without heads
  std::int64_t sums = 0;    // numbers
};

struct Scratch {
  void* tile;         // TileArrays
  void* rows;         // a Stage for the columns of a tile
  void* transfer;     // a Stage for pieces of a window
  void* window;       // values of the input
  void* grad_window;  // sums of gradients of the input; only a backward has it, and the next two
  void* vec_sums;     // gradients of the rates, a Vec for each position
  void* rate_sums;    // the same, a number for each
  void* values;       // Vecs for each position, of tensors that have channels and positions; only with heads, and the next
  void* factors;      // a number for each position
  void* sums;         // in a backward of half inputs the band's rows for each channel of the slice, else scores of a tile
  std::size_t bytes;

  Scratch(void* memory, const Geometry& g, const ScratchSizes& sizes) {
    const Tiling tiling(g);
    const std::size_t vec = static_cast<std::size_t>(sizes.lanes) * sizes.value;
    const auto few = std::min<std::int64_t>(sizes.lanes, Tiling::kFew);
    const auto stage = static_cast<std::int64_t>(sizes.value) *
                       std::max(Tiling::kFewPositions * few, Tiling::kPositions * std::int64_t{sizes.lanes});
    const auto pixels = static_cast<std::int64_t>(window_bytes(g, vec));
    const auto vecs = static_cast<std::int64_t>(vec) * tiling.most, numbers = static_cast<std::int64_t>(sizes.value);
    const std::size_t of_tile = sizes.value == sizeof(double) ? TileArrays<double>(nullptr, g, tiling.most).bytes
                                                              : TileArrays<float>(nullptr, g, tiling.most).bytes;
    Workspace workspace(memory);
    tile = workspace.take<char>(static_cast<std::int64_t>(of_tile));
    rows = workspace.take<char>(stage);
    transfer = workspace.take<char>(stage);
    window = workspace.take<char>(pixels);
    grad_window = workspace.take<char>(sizes.backward ? pixels : 0);
    vec_sums = workspace.take<char>(sizes.backward ? vecs : 0);
    rate_sums = workspace.take<char>(sizes.backward ? numbers * tiling.most : 0);
    values = workspace.take<char>(sizes.values * vecs);
    factors = workspace.take<char>(sizes.values > 0 ? numbers * tiling.most : 0);
    sums = workspace.take<char>(numbers * sizes.sums);
    bytes = workspace.bytes();
  }
};

}  // namespace ddu::cpu
