#pragma once

// What operators with heads read and write beside the image: values, which have channels and positions, and factors, which have
// heads, taps and positions. Internal linkage: compiled once per instruction set.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "image.h"
#include "nontemporal.h"
#include "tile.h"
#include "vec.h"

namespace ddu::cpu {
namespace {

/// Reads a Vec of `used` channels for each position of a tile; 0 in idle lanes and beyond the tile.
template <int N, class T, class Acc>
void load_values(const Tile<Acc>& tile, const Image<const T>& values, int used, void* transfer, Vec<Acc, N>* vecs) {
  using V = Vec<Acc, N>;
  if (values.is_channels_last() && N > 1) {
    tile.for_each_run([&](int n, std::int64_t position, int length) {
      const T* source = values.at(0, position);
      for (int i = 0; i < length; ++i, source += values.pixel_stride) {
        Acc lanes[std::max(N, 8)] = {};  // conversions take eight at once
        used == N ? widen(source, lanes, N) : widen(source, lanes, used);
        std::memcpy(&vecs[n + i], lanes, sizeof(V));
      }
    });
    std::fill(vecs + tile.count, vecs + tile.padded, V{});
    return;
  }
  auto& stage = Stage<Acc, N>::in(transfer);
  for (int c = 0; c < N; ++c) {
    Acc* row = stage.row[c];
    if (c < used) {
      tile.for_each_run([&](int n, std::int64_t position, int length) {
        const T* source = values.at(c, position);
        if (values.pixel_stride == 1) return widen(source, row + n, length);
        for (int i = 0; i < length; ++i) row[n + i] = widen(source[i * values.pixel_stride]);
      });
    }
    std::fill(row + (c < used ? tile.count : 0), row + tile.padded, Acc(0));
  }
  stage.load_all(tile.padded, vecs);
}

/// Rounds and writes them.
template <int N, class T, class Acc>
void store_values(const Tile<Acc>& tile, const Vec<Acc, N>* vecs, const Image<T>& values, int used, void* transfer) {
  if (values.is_channels_last() && N > 1) {
    tile.for_each_run([&](int n, std::int64_t position, int length) {
      T* target = values.at(0, position);
      for (int i = 0; i < length; ++i, target += values.pixel_stride) {
        Acc lanes[std::max(N, 8)] = {};  // conversions take eight at once
        std::memcpy(lanes, &vecs[n + i], sizeof(Vec<Acc, N>));
        used == N ? narrow(lanes, target, N) : narrow(lanes, target, used);
      }
    });
    return;
  }
  auto& stage = Stage<Acc, N>::in(transfer);
  stage.store_all(tile.padded, vecs);
  for (int c = 0; c < used; ++c) {
    const Acc* row = stage.row[c];
    tile.for_each_run([&](int n, std::int64_t position, int length) {
      T* target = values.at(c, position);
      if (values.pixel_stride == 1) return narrow(row + n, target, length);
      for (int i = 0; i < length; ++i) target[i * values.pixel_stride] = narrow<T>(row[n + i]);
    });
  }
}

/// The factors of a tap for the channels of a Vec: one row for all of them if they have one head, else a row for each lane. 0
/// where the rate is not finite, and beyond the tile.
template <class Acc, int N>
struct FactorRows {
  bool shared;     // whether all lanes have the factors of `row`
  Acc* const row;  // with a number for each position
  Stage<Acc, N>& rows;

  /// Of a block of positions, where they are not shared.
  void load(int n, typename Stage<Acc, N>::Block& block) const { rows.load(n, block); }
  /// A block of positions times its factors.
  void multiply(int n, typename Stage<Acc, N>::Block& block) const {
    if (shared) {
#pragma GCC unroll 16
      for (int i = 0; i < kBlock<N>; ++i) block[i] *= row[n + i];
    } else {
      typename Stage<Acc, N>::Block factor;
      load(n, factor);
#pragma GCC unroll 16
      for (int i = 0; i < kBlock<N>; ++i) block[i] *= factor[i];
    }
  }
};

/// Reads them, tap by tap. Where there are none, they are ones.
template <int N, class T, class Acc>
class Factors {
 public:
  /// `row` has a number for each position, `rows` a Stage; only one of them is used. `channel` is the first of the `used`.
  Factors(const HeadGeometry& heads, const Tile<Acc>& tile, const void* factors, std::int64_t image, std::int64_t channel,
          int used, void* row, void* rows)
      : of_tap{false, static_cast<Acc*>(row), Stage<Acc, N>::in(rows)},
        tile_(tile),
        stride_(heads.geometry.taps() * heads.geometry.positions()),
        heads_(heads.head_channels()),
        channel_(channel),
        used_(used) {
    const std::int64_t first = channel / heads_;
    if (!factors) {
      source_ = nullptr;
      of_tap.shared = true;
      std::fill_n(of_tap.row, tile.padded, Acc(1));
      return;
    }
    source_ = static_cast<const T*>(factors) + heads.factors_offset(image, first);
    of_tap.shared = N == 1 || first == (channel + used - 1) / heads_;
    for (int c = used; !of_tap.shared && c < N; ++c) std::fill_n(of_tap.rows.row[c], tile.padded, Acc(0));
  }

  FactorRows<Acc, N> of_tap;  // that has begun

  void begin(std::int64_t tap) {
    if (!source_) return;
    if (of_tap.shared) return read(source_, tap, of_tap.row);
    for (int c = 0; c < used_; ++c) {
      const std::int64_t head = (channel_ + c) / heads_ - channel_ / heads_;
      const bool again = c > 0 && (channel_ + c) % heads_ != 0;
      again ? void(std::copy_n(of_tap.rows.row[c - 1], tile_.padded, of_tap.rows.row[c]))
            : read(source_ + head * stride_, tap, of_tap.rows.row[c]);
    }
  }

 private:
  void read(const T* factors, std::int64_t tap, Acc* target) const {
    const std::int64_t positions = tile_.geometry.positions();
    tile_.for_each_run([&](int n, std::int64_t position, int length) {
      const T* source = factors + tap * positions + position;
      widen(source, target + n, length);
      if (tap + 1 < tile_.geometry.taps()) prefetch(source + positions, length * static_cast<std::int64_t>(sizeof(T)));
    });
    std::fill(target + tile_.count, target + tile_.padded, Acc(0));
    if (tile_.all_finite) return;
    for (int n = 0; n < tile_.count; ++n) target[n] = is_finite(tile_.nan[n]) ? target[n] : Acc(0);
  }

  const Tile<Acc>& tile_;
  const std::int64_t stride_, heads_, channel_;
  const int used_;
  const T* source_;
};

}  // namespace
}  // namespace ddu::cpu
