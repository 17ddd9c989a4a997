#pragma once

// The window of a tile (see tiling.h). Cells are read and written there without asking where the image ends. Internal linkage:
// compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "image.h"
#include "nontemporal.h"
#include "tile.h"
#include "vec.h"

namespace ddu::cpu {
namespace {

template <class Acc, int N>
class Window {
 public:
  using V = Vec<Acc, N>;

  /// `memory` has window_bytes(), `transfer` a Stage.
  Window(void* memory, void* transfer) : pixel(static_cast<V*>(memory)), stage_(Stage<Acc, N>::in(transfer)) {}

  V* const pixel;

  static bool fits(const Tile<Acc>& tile) {
    return tile.fits && tile.extent() + kBlock<N> <= static_cast<std::int64_t>(kWindowBytes / sizeof(V));
  }

  void clear(const Tile<Acc>& tile) { std::fill_n(pixel, tile.extent(), V{}); }

  /// Copies `used` channels, outside the image zeros or, with padding_mode border, its nearest pixels. Returns whether all of
  /// it is finite.
  template <class T>
  bool load(const Tile<Acc>& tile, const Image<const T>& input, int used) {
    if constexpr (N == 1) {
      std::int32_t nonfinite = 0;  // a truth, in a type that compilers vectorise
      load_plane(tile, input, [&](std::int64_t first, std::int64_t end) {
        for (std::int64_t i = first; i < end; ++i) nonfinite |= nan_unless_finite(pixel[i]) == 0 ? 0 : 1;
      });
      return nonfinite == 0;
    }
    V nan = input.is_channels_last() && N > 1 ? load_rows(tile, input, used) : load_planes(tile, input, used);
    Acc lanes[N];
    std::memcpy(lanes, &nan, sizeof nan);
    return std::all_of(lanes, lanes + N, [](Acc lane) { return lane == 0; });
  }

  /// The same of one channel, which needs no stage: rows go where they belong. loaded(first, end) is called with pixels that
  /// are there, one run after the other.
  template <class T, class Loaded>
  void load_plane(const Tile<Acc>& tile, const Image<const T>& input, Loaded loaded) {
    static_assert(N == 1);
    for_each_piece(tile, [&](const Piece& piece) {
      piece.read(tile, input, 0, piece.source(tile, input), pixel + piece.first);
      loaded(piece.first, piece.first + piece.length);
    });
  }

  /// Adds to `used` channels: what lies outside the image is nobody's or, with padding_mode border, its nearest pixel's.
  DDU_ONE_COPY void add_to(const Sums<Acc>& sums, const Tile<Acc>& tile, int used) {
    constexpr int kAhead = 2;  // rows of the image that are asked for while one is added to
    const Sampler<Acc>& columns = tile.sample_x;
    for_each_piece(tile, [&](const Piece& piece) {
      const int first = piece.first, length = piece.length, y = piece.y, x = piece.x, left = piece.left, right = piece.right;
      if ((left == right && !columns.border) || !sums.has(y)) return;
      if (sums.image.is_channels_last() && N > 1) {
        const int start = columns.border ? 0 : left, end = columns.border ? length : right;
        for (int i = start; i < end; ++i) {
          Acc values[N];
          std::memcpy(values, pixel + first + i, sizeof values);
          Acc* target = sums.at(0, y, columns.pixel(x + i));
          for (int c = 0; c < used; ++c) target[c] += values[c];
        }
        return;
      }
      if (N > 1) stage_.store_all(length, pixel + first);
      const std::int64_t step = sums.image.pixel_stride;
      for (int c = 0; c < used; ++c) {
        const Acc* __restrict values = stage_.row[c];
        if constexpr (N == 1) values = pixel + first;
        Acc* __restrict target = sums.at(c, y, x);
        if (step == 1 && sums.has(y + kAhead)) {  // its lines lie apart, where the processor does not look ahead
          prefetch(target + left + kAhead * sums.width, (right - left) * static_cast<std::int64_t>(sizeof(Acc)));
        }
        for (int i = 0; columns.border && i < left; ++i) target[-x * step] += values[i];
        if (step == 1) {
          for (int i = left; i < right; ++i) target[i] += values[i];
        } else {
          for (int i = left; i < right; ++i) target[i * step] += values[i];
        }
        for (int i = right; columns.border && i < length; ++i) target[(columns.size - 1 - x) * step] += values[i];
      }
    });
  }

 private:
  /// A piece of a row of the window, from pixel `first` of the window and from (y, x) of the image on: inside that lies
  /// [left, right) of the piece, nothing of a row that the extended image has not.
  struct Piece {
    int first, length, y, x, left, right;

    /// The first pixel of the image that it has.
    template <class T>
    const T* source(const Tile<Acc>& tile, const Image<const T>& input) const {
      return left < right ? input.at(0, std::int64_t{y} * tile.sample_x.size + x + left) : input.first;
    }
    /// Channel c of it; `from` is its source there.
    template <class T>
    void read(const Tile<Acc>& tile, const Image<const T>& input, int c, const T* from, Acc* row) const {
      const Sampler<Acc>& columns = tile.sample_x;
      const auto outside = [&](int i) {
        return columns.border ? widen(*input.at(c, std::int64_t{y} * columns.size + columns.pixel(x + i))) : Acc(0);
      };
      if (left > 0) std::fill_n(row, left, outside(0));
      if (input.pixel_stride == 1) {
        widen(from, row + left, right - left);
      } else {
        for (int i = left; i < right; ++i) row[i] = widen(from[(i - left) * input.pixel_stride]);
      }
      if (right < length) std::fill(row + right, row + length, outside(length - 1));
    }
  };

  /// From channels that lie apart. Returns 0 in each lane whose values are all finite, else NaN.
  template <class T>
  V load_planes(const Tile<Acc>& tile, const Image<const T>& input, int used) {
    V nan{};
    for (int c = used; c < N; ++c) std::fill_n(stage_.row[c], stage_.kSize, Acc(0));
    for_each_piece(tile, [&](const Piece& piece) {
      const T* source = piece.source(tile, input);
      for (int c = 0; c < used; ++c, source += input.channel_stride) {
        Acc* const row = stage_.row[c];
        piece.read(tile, input, c, source, row);
        std::fill(row + piece.length, row + round_up(piece.length, kBlock<N>), Acc(0));
      }
      nan += stage_.load_all(piece.length,
                             pixel + piece.first);  // the last block runs on into what is written next, or the spare end
    });
    return nan;
  }

  /// From pixels whose channels lie together.
  template <class T>
  V load_rows(const Tile<Acc>& tile, const Image<const T>& input, int used) {
    V nan{};
    const Sampler<Acc>& columns = tile.sample_x;
    const auto read = [&](const T* source) {
      Acc values[std::max(N, 8)] = {};  // conversions take eight at once
      used == N ? widen(source, values, N) : widen(source, values, used);
      V value;
      std::memcpy(&value, values, sizeof value);
      nan += nan_unless_finite(value);
      return value;
    };
    for_each_piece(tile, [&](const Piece& piece) {
      const auto outside = [&](int i) {
        return columns.border ? read(input.at(0, std::int64_t{piece.y} * columns.size + columns.pixel(piece.x + i))) : V{};
      };
      V* const row = pixel + piece.first;
      if (piece.left > 0) std::fill_n(row, piece.left, outside(0));
      const T* source = piece.source(tile, input);
      for (int i = piece.left; i < piece.right; ++i, source += input.pixel_stride) row[i] = read(source);
      if (piece.right < piece.length) std::fill(row + piece.right, row + piece.length, outside(piece.length - 1));
    });
    return nan;
  }

  /// body(piece) for pieces of rows that fit a stage.
  template <class Body>
  static void for_each_piece(const Tile<Acc>& tile, Body body) {
    constexpr int kSize = Stage<Acc, N>::kSize;
    const int height = tile.sample_y.size, width = tile.sample_x.size, extent = tile.x.extent;
    for (int r = 0; r < tile.y.extent; ++r) {
      const int y = tile.sample_y.pixel(tile.y.first + r);
      for (int start = 0; start < extent; start += kSize) {
        const int length = std::min(kSize, extent - start), x = tile.x.first + start;
        const int left = y < 0 || y >= height ? length : std::clamp(-x, 0, length);
        body(Piece{r * extent + start, length, y, x, left, std::clamp(width - x, left, length)});
      }
    }
  }

  Stage<Acc, N>& stage_;  // compilers cannot tell it from the window: loops say __restrict
};

}  // namespace
}  // namespace ddu::cpu
