#pragma once

// What one position's column gradients of a tap make of the four corners of its cell, where both lie in the same lanes:
//
//     dot of a corner   =  sum over channels  grad_column x pixel            a  b
//     mask's gradient   =  dots, by what the corners weigh                   c  d
//     map's gradient    =  dots, by how that changes with the rate
//
// So neither a sampled value nor its slope is ever rounded. In half types dots are products of tensor cores, for which column
// gradients are rounded; of TF32 nothing is. Rows and columns of taps have tables of their own, as in axes.cuh.
// All four corners are read, also where they weigh nothing, since an image may have pixels that are not finite: dots then are
// not, and are summed again in a way that minds what there is.

#include "axes.cuh"
#include "backward_params.cuh"

namespace ddu::cuda {

struct CornersParams : ConvBackwardParams {
  int out_height, kernel_h;
  int unit_blocks, unit_vectors;        // of a unit: steps of its channels, 16-byte vectors
  unsigned row_vectors, pixel_vectors;  // 16-byte vectors from one pixel to the one below, and to its neighbour
  int block_columns;                    // warpgroups of a block side by side
  unsigned tiles;                       // of all images
  bool finite;                          // whether images are taken to be so (CornersMode)
  bool in_order;                        // of outputs, in the packed weights (pack_for_corners)
  Divider by_tile_columns, by_tiles, by_output_blocks, by_weight_groups;

  static constexpr int kTableBytes = kWarpRun * 32;  // of a tap's row or column
  __host__ __device__ int table_bytes() const { return (kernel_h + kernel_w) * kTableBytes; }
};

/// Two pixels of an axis, one after the other, for a tap.
struct alignas(16) CornerAxis {
  float near, far;              // what they weigh: nothing outside
  float slope_near, slope_far;  // how that changes with the rate
  unsigned first, second;       // their offsets in vectors; of those that there are none, of the nearest one inside
  bool has_first, has_second;   // whether they are in the image
};

/// A warp's table: [rows of taps, columns of taps][16 positions].
struct CornerTable {
  CornerAxis *rows, *columns;

  __device__ __forceinline__ CornerTable(CornerAxis* rows, CornerAxis* columns) : rows(rows), columns(columns) {}
  /// Of so many rows of taps.
  __device__ __forceinline__ CornerTable(int tap_rows, char* shared)
      : rows(reinterpret_cast<CornerAxis*>(shared)), columns(rows + tap_rows * kWarpRun) {}

  /// The rate of the position of which a lane works out an axis.
  __device__ __forceinline__ static float load_rate(const CornersParams& p, const WarpPlace& place, const void* map,
                                                    int group) {
    const int position = int(threadIdx.x) % kWarpRun;
    const std::int64_t plane = std::int64_t{p.shared_map ? 0 : place.image} * p.groups + group;
    const std::int64_t row = std::int64_t{place.row(p, position / 8)} * p.out_width;
    return cuda::load_rate<float>(map, p.map_type, plane * p.positions + row + place.column(p, position % 8));
  }
  /// A lane works out one axis of one position, whose rate it has.
  __device__ __forceinline__ void fill(const CornersParams& p, const WarpPlace& place, float rate) const {
    fill(p, place, rate, 0, p.kernel_h, [&](bool across, int k) { return (across ? columns : rows) + k * kWarpRun; });
  }
  /// The same of rows of taps from `first_row` to `last_row` - 1; to(across, k) is where entries of a row or column of taps go.
  template <class To>
  __device__ __forceinline__ static void fill(const CornersParams& p, const WarpPlace& place, float rate, int first_row,
                                              int last_row, To to) {
    const int lane = int(threadIdx.x) % 32, position = lane % kWarpRun;
    const bool across = lane >= kWarpRun;
    const int oy = place.row(p, position / 8), ox = place.column(p, position % 8);
    Sampler<float> axis = p.y;
    if (across) axis = p.x;
    const unsigned step = across ? p.pixel_vectors : p.row_vectors;
    const int first = across ? 0 : first_row, end = across ? p.kernel_w : last_row, last = axis.size - 1;
    const float strange = nan_unless_finite(rate);
    __syncwarp();  // the entries before have been read
#pragma unroll 1
    for (int k = first; k < end; ++k) {
      const Pixels<float> pixels = axis.pixels(axis.base(across ? ox : oy), axis.offset(k), rate);
      to(across, k)[position] = {(pixels.first ? 1 - pixels.fraction : 0) + strange,
                                 (pixels.second ? pixels.fraction : 0) + strange,
                                 pixels.first ? -pixels.offset : 0,
                                 pixels.second ? pixels.offset : 0,
                                 unsigned(min(max(pixels.index, 0), last)) * step,
                                 unsigned(min(max(pixels.index + 1, 0), last)) * step,
                                 pixels.first,
                                 pixels.second};
    }
    __syncwarp();
  }
};

/// Which corners of a tap are read where images are finite: of one that stays in the middle row or column only the two between
/// which it moves, of the middle one that it lies on. Of others all four.
struct CornerChoice {
  bool finite;
  int count;
  bool below;  // of two corners the second is c, and not b

  __device__ __forceinline__ CornerChoice(const CornersParams& p, bool finite, int ky, int kx) : finite(finite) {
    const bool middle_row = finite && 2 * ky + 1 == p.kernel_h, middle_column = finite && 2 * kx + 1 == p.kernel_w;
    count = (middle_row ? 1 : 2) * (middle_column ? 1 : 2);
    below = middle_column;
  }
};

/// What a lane reads from: its 16-byte pieces of each half of a step's channels, those of odd columns in the other order
/// (LanePieces).
struct CornerPieces {
  const char* taken[2];  // of the image's first pixel
  bool there[2], odd;

  CornerPieces() = default;
  /// Of a block of channels that has so many vectors from its first one on.
  template <class T>
  __device__ __forceinline__ CornerPieces(const T* pixels, int vectors) : odd(threadIdx.x % 8 >= 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int piece = (i ^ int(odd)) * 4 + int(threadIdx.x) % 4;
      there[i] = piece < vectors;
      taken[i] = reinterpret_cast<const char*>(pixels + (there[i] ? piece : 0) * kVec<T>);
    }
  }
};

/// Where a tap of a position lies.
struct CornerCell {
  const CornerAxis &y, &x;

  __device__ __forceinline__ CornerCell(const CornerTable& table, int position, int ky, int kx)
      : y(table.rows[ky * kWarpRun + position]), x(table.columns[kx * kWarpRun + position]) {}
  /// What a lane reads of corner k, in their order a b / c d.
  __device__ __forceinline__ const uint4* corner(const char* taken, int k) const {
    return reinterpret_cast<const uint4*>(taken) + ((k / 2 ? y.second : y.first) + (k % 2 ? x.second : x.first));
  }
  __device__ __forceinline__ bool there(int k) const {
    return (k / 2 ? y.has_second : y.has_first) && (k % 2 ? x.has_second : x.has_first);
  }
};

/// A sum of column gradients times sampled values, and its derivative in the rate.
struct CornerSums {
  float value = 0, slope = 0;

  CornerSums() = default;
  __device__ __forceinline__ float sum() const { return value + slope; }
  /// `dot` are sums of column gradients times values of corners.
  __device__ __forceinline__ CornerSums(const CornerCell& cell, const float (&dot)[4]) {
    const float above = cell.x.near * dot[0] + cell.x.far * dot[1], below = cell.x.near * dot[2] + cell.x.far * dot[3];
    value = cell.y.near * above + cell.y.far * below;
    slope = cell.y.slope_near * above + cell.y.slope_far * below +
            cell.x.slope_near * (cell.y.near * dot[0] + cell.y.far * dot[2]) +
            cell.x.slope_far * (cell.y.near * dot[1] + cell.y.far * dot[3]);
  }
};

/// Adds over a quad: in all of its lanes.
__device__ __forceinline__ float add_over_quad(float sum) {
  sum += __shfl_xor_sync(~0u, sum, 1);
  return sum + __shfl_xor_sync(~0u, sum, 2);
}

/// Whether dots are products of matrices: of half types, which need not be widened then.
template <class T>
constexpr bool kDotsByProducts = sizeof(T) == 2;

/// A tap's column gradients of a lane's two positions, its channels in the order in which it takes corners. As factors of
/// products they are rounded to T.
template <class T>
struct TapGradients {
  using Word = std::conditional_t<kDotsByProducts<T>, unsigned, float>;
  static constexpr int kWords = 4;  // of 16 bytes
  Word word[2][kWords][2];          // [taken][word][position]

  /// `d` are sums of both halves of a step, columns in the order of output_of_column(); `odd` lanes take the second one first.
  template <int kN>
  __device__ __forceinline__ TapGradients(const float (&d)[kN], bool odd) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto of = [&](int half) {
          if constexpr (kDotsByProducts<T>) {
            const float* two = d + half * kN / 2 + w * 4 + r * 2;
            if constexpr (std::is_same_v<T, __half>) {
              const __half2 halves = __floats2half2_rn(two[0], two[1]);
              return reinterpret_cast<const unsigned&>(halves);
            } else {
              const __nv_bfloat162 halves = __floats2bfloat162_rn(two[0], two[1]);
              return reinterpret_cast<const unsigned&>(halves);
            }
          } else {
            return d[half * kN / 2 + w / 2 * 4 + r * 2 + w % 2];
          }
        };
        const Word low = of(0), high = of(1);
        word[0][w][r] = odd ? high : low;
        word[1][w][r] = odd ? low : high;
      }
    }
  }
  /// Of channel c of 16 bytes.
  __device__ __forceinline__ float get(bool second, int c, int r) const {
    if constexpr (kDotsByProducts<T>) {
      Bits16<T> bits;
      bits.word[0] = second ? word[1][c / 2][r] : word[0][c / 2][r];
      return bits.get(c % 2);
    } else {
      return second ? word[1][c][r] : word[0][c][r];
    }
  }
};

/// Corners of a tap: a lane's 16 bytes of channels of one half of a step.
template <class T>
struct CornerPiece {
  Bits16<T> corner[4];

  __device__ __forceinline__ void load(const char* taken, const CornerCell& cell) {
#pragma unroll
    for (int k = 0; k < 4; ++k) corner[k].whole = __ldg(cell.corner(taken, k));
  }
  /// Those that are chosen.
  __device__ __forceinline__ void load(const char* taken, const CornerCell& cell, CornerChoice choice) {
    if (!choice.finite) return load(taken, cell);
    corner[0].whole = __ldg(cell.corner(taken, 0));
    load_if(choice.count > 1, corner[1].whole, choice.below ? cell.corner(taken, 2) : cell.corner(taken, 1));
    load_if(choice.count > 2, corner[2].whole, cell.corner(taken, 2));
    load_if(choice.count > 2, corner[3].whole, cell.corner(taken, 3));
  }
  /// Adds what a channel after the other gives: pixels outside count as nothing, and no infinity meets a weight of zero but
  /// where the sampled value, or its slope, is zero.
  __device__ __forceinline__ void add_one_by_one(const CornerCell& cell, const TapGradients<T>& gradients, bool second, int r,
                                                 CornerSums& sums) const {
    const bool there[4] = {cell.there(0), cell.there(1), cell.there(2), cell.there(3)};
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) {
      float of[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) of[k] = there[k] ? corner[k].get(c) : 0;
      const CornerSums one(cell, of);
      const float grad = gradients.get(second, c, r);
      sums.value += grad * one.value;
      sums.slope += grad * one.slope;
    }
  }
};

/// Dots of the four corners of one of a lane's two positions. By products each position is a row of the column gradients and a
/// column of the corners: of what comes out the diagonal alone is wanted, and one lane of a quad has that of its position, for
/// all channels. Else each lane has its own channels' part.
template <class T>
struct CornerDots {
  float d[4][kDotsByProducts<T> ? 4 : 1] = {};

  /// Corners that were not read have dots of zero.
  __device__ __forceinline__ void add(const TapGradients<T>& gradients, const CornerPiece<T>& piece, int taken, int r,
                                      int count) {
    add_corner<0>(gradients, piece, taken, r);
    if (count > 1) add_corner<1>(gradients, piece, taken, r);
    if (count > 2) {
      add_corner<2>(gradients, piece, taken, r);
      add_corner<3>(gradients, piece, taken, r);
    }
  }
  template <int k>
  __device__ __forceinline__ void add_corner(const TapGradients<T>& gradients, const CornerPiece<T>& piece, int taken, int r) {
    if constexpr (kDotsByProducts<T>) {
      const auto& word = gradients.word[taken];
      const auto& corner = piece.corner[k].word;
#pragma unroll
      for (int w = 0; w < 4; w += 2) {
        mma<T>(d[k], {word[w][0], word[w][1], word[w + 1][0], word[w + 1][1]}, {corner[w], corner[w + 1]});
      }
    } else {
#pragma unroll
      for (int c = 0; c < kVec<T>; ++c) d[k][0] += gradients.word[taken][c][r] * piece.corner[k].get(c);
    }
  }
  __device__ __forceinline__ static bool is_owner() { return threadIdx.x % 4 == threadIdx.x % 32 / 8; }
  /// In the owner, or each lane's part.
  __device__ __forceinline__ CornerSums sums(const CornerCell& cell, int r, CornerChoice choice) const {
    float dot[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (kDotsByProducts<T>) {
        dot[k] = threadIdx.x % 8 >= 4 ? d[k][2 * r + 1] : d[k][2 * r];
      } else {
        dot[k] = d[k][0];
      }
    }
    if (choice.below) {
      dot[2] = dot[1];
      dot[1] = 0;
    }
    return {cell, dot};
  }
};

}  // namespace ddu::cuda
