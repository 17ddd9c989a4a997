#pragma once

// The window of a tile: the part of the zero-extended input that holds all its taps, a pack per pixel. Cells are read and
// written there without asking where the image ends. Internal linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "pack.h"
#include "tile.h"

namespace ddu::cpu {
namespace {

/// Where gradients of input planes are summed: of each channel, the rows [first, last).
template <class Acc>
struct Sums {
  Acc* channel_0;
  std::int64_t stride;  // from channel to channel
  std::int64_t origin;  // the row that is stored first
  std::int64_t first, last;
  std::int64_t width;

  bool has(std::int64_t y) const { return y >= first && y < last; }
  Acc* row(std::int64_t channel, std::int64_t y) const { return channel_0 + (channel * stride + (y - origin) * width); }
  Sums from(std::int64_t channel) const { return {channel_0 + channel * stride, stride, origin, first, last, width}; }
};

template <class Acc, int N>
class Window {
 public:
  using P = Pack<Acc, N>;

  /// `memory` has kWindowBytes, or all that the image can need.
  explicit Window(void* memory) : pixel(static_cast<P*>(memory)) {}

  P* const pixel;

  static bool fits(const Tile<Acc>& tile) {
    return tile.fits && std::int64_t{tile.y.extent} * tile.x.extent + kBlock<N> <= std::int64_t{kWindowBytes / sizeof(P)};
  }

  void clear(const Tile<Acc>& tile) { std::fill_n(pixel, std::int64_t{tile.y.extent} * tile.x.extent, P{}); }

  /// Copies from `used` planes, zeros outside the image. Returns whether all of it is finite.
  template <class T>
  bool load(const Tile<Acc>& tile, const T* planes, int used) {
    Stage<Acc, N> stage{};
    P poison{};
    for_each_piece(tile, [&](int first, int length, int y, int x, int left, int right) {
      const T* source = planes + (left < right ? std::int64_t{y} * tile.sample_x.size + x + left : 0);
      for (int c = 0; c < used; ++c) {
        std::fill_n(stage.row[c], left, Acc(0));
        widen(source + c * tile.geometry.pixels(), stage.row[c] + left, right - left);
        std::fill(stage.row[c] + right, stage.row[c] + length, Acc(0));
      }
      for (int i = 0; i < length; i += kBlock<N>) {  // the last block runs on into what is written
                                                     // next, or the spare end
        typename Stage<Acc, N>::Block block;
        stage.get(i, block);
        for (int k = 0; k < kBlock<N>; ++k) {
          pixel[first + i + k] = block[k];
          poison += nan_unless_finite(block[k]);
        }
      }
    });
    Acc lanes[N];
    std::memcpy(lanes, &poison, sizeof poison);
    return std::all_of(lanes, lanes + N, [](Acc lane) { return lane == 0; });
  }

  /// Adds to `used` planes.
  void add_to(const Sums<Acc>& sums, const Tile<Acc>& tile, int used) const {
    Stage<Acc, N> stage;
    for_each_piece(tile, [&](int first, int length, int y, int x, int left, int right) {
      if (left == right || !sums.has(y)) return;
      for (int i = 0; i < length; i += kBlock<N>) {
        typename Stage<Acc, N>::Block block;
        std::copy_n(pixel + first + i, kBlock<N>, block);
        stage.put(i, block);
      }
      for (int c = 0; c < used; ++c) {
        Acc* row = sums.row(c, y);
        for (int i = left; i < right; ++i) row[x + i] += stage.row[c][i];
      }
    });
  }

 private:
  /// body(first, length, y, x, left, right) for pieces of rows that fit a stage, starting at pixel `first` of the window and
  /// at (y, x) of the image, inside which lies [left, right) of the piece.
  template <class Body>
  static void for_each_piece(const Tile<Acc>& tile, Body body) {
    constexpr int kSize = Stage<Acc, N>::kSize;
    const int height = tile.sample_y.size, width = tile.sample_x.size, extent = tile.x.extent;
    for (int r = 0; r < tile.y.extent; ++r) {
      const int y = tile.y.first + r;
      for (int start = 0; start < extent; start += kSize) {
        const int length = std::min(kSize, extent - start), x = tile.x.first + start;
        const int left = y < 0 || y >= height ? length : std::clamp(-x, 0, length);
        body(r * extent + start, length, y, x, left, std::clamp(width - x, left, length));
      }
    }
  }
};

}  // namespace
}  // namespace ddu::cpu
