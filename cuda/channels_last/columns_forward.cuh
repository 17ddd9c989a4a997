#pragma once

// Columns from channels-last pixels, for any rates: nothing depends on how far the taps reach.
//
//   pixels --16 bytes of channels for each corner--> values, a square in registers --TurnTile--> whole lines of columns
//
// What bounds it is memory: every line of the columns is written whole, and only corners that weigh something are read. Pixels
// that are not finite make NaN of a tap that gives them no weight; so where there are any in the image, all corners are read.

#include "conversion.cuh"

namespace ddu::cuda {

template <class T>
struct ColumnsPointers {
  const T* input;  // channels-last
  const void* map;
  T* output;
  StrangePixels strange;
  bool whole_columns;  // whether columns start at multiples of 16 bytes
};

/// Blocks that share a multiprocessor: registers decide.
template <class T>
constexpr int kColumnsBlocks = sizeof(T) == 8 ? 3 : 2;

/// Whether squares go through shared memory, to be stored in whole lines. Those of half types would need twice the memory, and
/// 64 bytes of positions by 64 channels in registers are faster.
template <class T>
constexpr bool kTurnsInMemory = sizeof(T) > 2;

/// Stores a tap's values, a whole line or more of each channel. kAligned: its units are where 16 bytes are.
template <bool kAligned, class T>
__device__ __forceinline__ void store_lines(const TurnTile<T>& tile, T* out, std::int64_t from_channel, int channels,
                                            int positions) {
  constexpr int kN = kVec<T>;
  const int lane = int(threadIdx.x) % 32;
  if constexpr (kAligned) {
    const int unit = lane & ((1 << tile.log_units) - 1), rows = 32 >> tile.log_units;
    if (unit * kN >= positions) return;
    out += unit * kN + (lane >> tile.log_units) * from_channel;
#pragma unroll 4
    for (int c = lane >> tile.log_units; c < channels; c += rows, out += rows * from_channel) {
      Bits16<T> bits;
      bits.whole = tile.unit(c, unit);
      store_positions<true>(out, bits, kN);
    }
  } else {
    const int run = kN << tile.log_units;
    for (int i = lane; i < run && i < positions; i += 32) {
#pragma unroll 4
      for (int c = 0; c < channels; ++c) out[c * from_channel + i] = tile.element(c, i);
    }
  }
}

/// What a kernel is made for: whole vectors of channels, and columns whose vectors are whole or not; or any tensors at all. Or,
/// of half types, whole ones of a copy, whose conversion found out whether its pixels are finite.
enum class ForwardKind { whole, rows, any, copy };

/// Whether such a kernel may take what planar kernels leave: they are given planes, of which there is a copy; not of float64.
template <class T, ForwardKind kKind>
constexpr bool kMayFollowPlanar =
    kKind == ForwardKind::rows ? sizeof(T) < 8
                               : kKind == (sizeof(T) == 2 ? ForwardKind::copy : ForwardKind::whole) && sizeof(T) < 8;

/// Keeps values where they are until everything that was asked for ahead of this is on its way: a compiler takes the first
/// position's values, and waits for them, before it asks for the others'.
template <class T>
__device__ __forceinline__ void hold([[maybe_unused]] Bits16<T>& bits) {
#if defined(__CUDA_ARCH__)
#pragma unroll
  for (unsigned& word : bits.word) asm volatile("" : "+r"(word));
#endif
}

/// How a warp reads the corners of a tap.
template <class T, ForwardKind kKind>
struct TapReader {
  using Acc = accumulator_t<T>;
  using Table = TapTable<Acc, false>;
  static constexpr int kN = kVec<T>;
  static constexpr bool kRows = kKind != ForwardKind::any, kCopy = kKind == ForwardKind::copy;
  /// Whether the corners of several positions are asked for ahead of the first product; float64 and single elements take longer
  /// so (sample_in_turn).
  static constexpr bool kAhead = kRows && sizeof(T) < 8;

  const char* input;        // the lane's first channel of the image
  std::int64_t pixel, row;  // distances, in bytes: a compiler would work each corner's address out from the beginning
  std::int64_t second;      // of the corners of a pair
  unsigned mine;            // corners that this lane may read
  int shift;                // to the mask of corners, as in StrangePixels
  int channels;

  __device__ __forceinline__ void set_place(const RowParams<Acc>& p, const ColumnsPointers<T>& tensors,
                                            const WarpWork<T>& work) {
    input = reinterpret_cast<const char*>(tensors.input + work.pixels(p));
    pixel = p.rows.pixel * std::int64_t{sizeof(T)};
    row = p.width * pixel;
  }

  /// Loads a position's corners. Of a copy, those without weight are -0, whose product with the weight 0 leaves a zero its
  /// sign.
  template <bool kPair>
  __device__ __forceinline__ Corners<T> load(typename Table::Where where) const {
    const char* at = input + (where >> 8) * std::int64_t{sizeof(T)};
    const auto corner = [&](const char* of) { return load_channels<kRows, kN>(reinterpret_cast<const T*>(of), channels); };
    const unsigned needed = (unsigned(where) >> shift) & mine;
    Corners<T> of;
    if constexpr (kCopy) {
#pragma unroll
      for (int w = 0; w < 4; ++w) of.b.word[w] = of.c.word[w] = of.d.word[w] = 0x80008000;
    }
    if (needed & 1) of.a = corner(at);
    if (needed & (kPair ? 6 : 2)) of.b = corner(at + (kPair ? second : pixel));
    if (!kPair && (needed & 4)) of.c = corner(at + row);
    if (!kPair && (needed & 8)) of.d = corner(at + row + pixel);
    return of;
  }

  template <bool kPair>
  __device__ __forceinline__ void interpolate(const Corners<T>& of, const typename Table::CornerWeights& w,
                                              Acc (&value)[kN]) const {
    const Acc of_second = kPair ? w.corner[1] + w.corner[2] : w.corner[1];  // one of them is 0
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      value[c] = w.corner[0] * of.a.get(c) + of_second * of.b.get(c);
      if constexpr (!kPair) value[c] = value[c] + w.corner[2] * of.c.get(c) + w.corner[3] * of.d.get(c);
    }
    if constexpr (!kCopy || !kPair) {
      if (kCopy && shift == StrangePixels::kNeeded) return;
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (w.corner[0] == 1 && value[c] == 0) value[c] = of.a.get(c);  // a zero on a pixel keeps its sign
      }
    }
  }

  /// The values of kN positions from an entry of the table on, kAtOnce at a time. kPair: the tap is centered in one axis and
  /// all pixels are finite, so that two corners at most weigh anything.
  template <bool kPair, int kAtOnce>
  __device__ __forceinline__ void sample(const Table& table, int entry, Square<T>& square) const {
#pragma unroll 1
    for (int i0 = 0; i0 < kN; i0 += kAtOnce) {
      square.template skip<kAtOnce>();
      Corners<T> corners[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) corners[j] = load<kPair>(table.where[entry + i0 + j]);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        hold(corners[j].a);
        hold(corners[j].b);
        if constexpr (!kPair) hold(corners[j].c);
        if constexpr (!kPair) hold(corners[j].d);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        Acc value[kN];
        interpolate<kPair>(corners[j], table.weights[entry + i0 + j], value);
        square.set(kN - kAtOnce + j, value);
      }
    }
  }
};

/// What TapReader::sample does, but in a compiler's order: float64 has too few registers to keep more corners, and elements
/// that do not come in whole vectors are asked for one by one.
template <bool kRows, int kAtOnce, class T>
__device__ __forceinline__ void sample_in_turn(const TapTable<accumulator_t<T>, false>& table, int entry, const T* input,
                                               std::int64_t pixel, std::int64_t row, unsigned mine, int shift, int channels,
                                               Square<T>& square) {
  using Table = TapTable<accumulator_t<T>, false>;
  constexpr int kN = kVec<T>;
#pragma unroll 1
  for (int i0 = 0; i0 < kN; i0 += kAtOnce) {
    square.template skip<kAtOnce>();
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const typename Table::Where where = table.where[entry + i0 + j];
      const typename Table::CornerWeights w = table.weights[entry + i0 + j];
      const auto corners =
          Corners<T>::template load<kRows>(input + (where >> 8), pixel, row, (unsigned(where) >> shift) & mine, channels);
      accumulator_t<T> value[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        value[c] = w.corner[0] * corners.a.get(c) + w.corner[1] * corners.b.get(c) + w.corner[2] * corners.c.get(c) +
                   w.corner[3] * corners.d.get(c);
        if (w.corner[0] == 1 && value[c] == 0) value[c] = corners.a.get(c);  // a zero on a pixel keeps its sign
      }
      square.set(kN - kAtOnce + j, value);
    }
  }
}

/// What one warp does.
template <class T, ForwardKind kKind>
__device__ __forceinline__ void store_columns(const RowParams<accumulator_t<T>>& p, const ColumnsPointers<T>& tensors,
                                              const WarpWork<T>& work, const TurnTile<T>& tile,
                                              const TapTable<accumulator_t<T>, false>& table, const StrangePixels& strange) {
  using Table = TapTable<accumulator_t<T>, false>;
  constexpr int kN = kVec<T>;
  __syncwarp();  // what was there before has been read
  table.load_rates(p, work, tensors.map);
  constexpr bool kAhead = TapReader<T, kKind>::kAhead;
  TapReader<T, kKind> reader{};
  [[maybe_unused]] const T* in_turn = nullptr;  // what sample_in_turn reads, and how far its rows are apart
  [[maybe_unused]] std::int64_t row = 0;
  if constexpr (!kAhead) in_turn = tensors.input + work.pixels(p), row = p.width * p.rows.pixel;
  const std::int64_t from_channel = p.taps * p.positions;
  const int first_channel = work.slice * (work.lanes * kN);
  const int channels = min(p.group_channels - first_channel, work.lanes * kN);
  const int positions = int(min(p.positions - work.first_position, std::int64_t{work.run}));
  const std::int64_t plane = (std::int64_t{work.image} * p.groups + work.group) * p.group_channels + first_channel;
  T* out = tensors.output + (plane * p.taps + work.first_tap) * p.positions + work.first_position;
  if (!kTurnsInMemory<T>) out += work.vector * kN * from_channel + work.quad * kN;
  const int there = positions - work.quad * kN;
  if constexpr (kAhead) reader.set_place(p, tensors, work);
  reader.mine = work.channels > 0 ? 15 : 0;
  reader.shift = strange.corner_shift(work.image);
  reader.channels = work.channels;
  const int at_once = Table::entries(work.run) / work.run;
  constexpr bool kAny = kKind == ForwardKind::any, kCopy = kKind == ForwardKind::copy;
  const bool columns = kAny ? tensors.whole_columns : kKind != ForwardKind::rows;
#pragma unroll 1
  for (int tap = work.first_tap; tap < work.last_tap; tap += at_once) {
    table.fill(p, work, tap);
#pragma unroll 1
    for (int t = 0; t < at_once && tap + t < work.last_tap; ++t, out += p.positions) {
      if (kTurnsInMemory<T> && t > 0) __syncwarp();  // the tile has been read
      bool pair = false;
      if constexpr (kCopy) {
        unsigned kx = unsigned(tap + t);
        const bool centered_y = p.y.centered(int(p.by_kernel_w.take(kx)));
        pair = (centered_y || p.x.centered(int(kx))) && reader.shift == StrangePixels::kNeeded;
        reader.second = centered_y ? reader.pixel : reader.row;
      }
      const auto store_unit = [&](int unit) {
        const int entry = t * work.run + unit * kN;
        Square<T> square;
        if constexpr (!kAhead) {
          sample_in_turn<!kAny, kAny ? 2 : kN>(table, entry, in_turn, p.rows.pixel, row, reader.mine, reader.shift,
                                               work.channels, square);
        } else if (kCopy && pair) {
          reader.template sample<true, kN>(table, entry, square);
        } else {
          reader.template sample<false, kCopy ? 2 : 4>(table, entry, square);
        }
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          if constexpr (kTurnsInMemory<T>) {
            tile.unit(work.vector * kN + c, unit) = square.channel[c].whole;
          } else if (c < work.channels && there > 0) {
            T* to = out + c * from_channel;
            columns ? store_positions<true>(to, square.channel[c], there)
                    : store_positions<false>(to, square.channel[c], there);
          }
        }
      };
      if constexpr (kTurnsInMemory<T>) {
#pragma unroll 1
        for (int unit = work.quad; unit * kN < work.run; unit += 32 >> p.log_lanes) store_unit(unit);
        __syncwarp();
        columns ? store_lines<true>(tile, out, from_channel, channels, positions)
                : store_lines<false>(tile, out, from_channel, channels, positions);
      } else {
        store_unit(work.quad);
      }
    }
  }
}

/// A few blocks, resident at once, share `blocks` blocks of work: most often no tile is marked, and all end at once. Where
/// there are marks, they come before the rows that their columns are made of.
template <class T, ForwardKind kKind>
__global__ void __launch_bounds__(kRowThreads, kColumnsBlocks<T>)
    columns_forward_kernel(const RowParams<accumulator_t<T>> p, const ColumnsPointers<T> tensors, unsigned blocks,
                           const PlanesToRows<T> conversion) {
  extern __shared__ char shared[];
  if (kMayFollowPlanar<T, kKind> && p.tiles.nothing_left()) return;
  wait_for_previous();
  const TurnTile<T> tile(shared, p.log_lanes);
  StrangePixels strange = tensors.strange;
  if constexpr (kMayFollowPlanar<T, kKind>) {
    if (p.tiles.marks) {
      // Planar blocks that have no window have turned their shares: most often there are no others.
      const bool turned = conversion.params.share != 0 && p.tiles.template every<TileMarks::kMarked>();
      if (turned) {
        strange = {conversion.turned_strange, p.groups * conversion.turned_blocks * int(p.tiles.tiles)};
      } else {
        turn_marked_planes(conversion, p.tiles, shared);
      }
    }
  }
  const TapTable<accumulator_t<T>, false> table(shared + (kTurnsInMemory<T> ? kRowWarps * TurnTile<T>::bytes(p.log_lanes) : 0),
                                                p.run);
#pragma unroll 1
  for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x) {
    const WarpWork<T> work(p, block);
    if (work.any && (!kMayFollowPlanar<T, kKind> || work.any_marked(p)))
      store_columns<T, kKind>(p, tensors, work, tile, table, strange);
  }
}

}  // namespace ddu::cuda
