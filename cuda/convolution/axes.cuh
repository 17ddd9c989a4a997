#pragma once

// Samples of 3x3 taps where no pixel is NaN or infinite. Position and weights of a tap come apart into those of its row and its
// column, worked out once for each position:
//
//   table of a warp     [row, column][first tap, last tap][16 positions]     two pixels of an axis, and what they weigh
//
// Taps of the middle row or column stay on a pixel: they read one or two corners, 25 instead of 36 for nine taps. Pixels
// outside weigh nothing, and the nearest one inside is read in their place, so nothing is asked on the way.

#include "../core/memory.cuh"
#include "samples.cuh"

namespace ddu::cuda {

constexpr int kSquare = 3;    // taps of a row, and of a column
constexpr int kWarpRun = 16;  // positions of a warp: the rows of a product, two rows of 8

struct alignas(16) AxisPixels {
  unsigned first, second;  // offsets in vectors of 16 bytes, as an address takes them in one instruction
  float near, far;         // weights
};

/// What sampling needs to know of a call.
struct SquareParams : ConvolutionParams {
  unsigned row_vectors, pixel_vectors;  // of 16 bytes, from one pixel to the one below, and to its neighbour
  int block_columns;                    // warpgroups of a block side by side
  unsigned tiles;                       // of all images
  bool masked;
};

/// A warp's positions: 8 side by side in each of two rows.
struct WarpPlace {
  int image, y, x;

  /// Of a tile of the block, whose warpgroups lie in `rows` rows; or of one that is the warpgroup's own: `group` 0 of one row.
  template <class Params>
  __device__ __forceinline__ WarpPlace(const Params& p, unsigned tile, int group, int rows) {
    image = int(p.by_tiles.take(tile));
    const int tile_y = int(p.by_tile_columns.take(tile));
    x = (int(tile) * p.block_columns + group % p.block_columns) * 8;
    y = (tile_y * rows + group / p.block_columns) * 8 + int(threadIdx.x) / 32 % 4 * 2;
  }
  template <class Params>
  __device__ __forceinline__ WarpPlace(const Params& p, unsigned tile)
      : WarpPlace(p, tile, int(threadIdx.x) / 128, int(blockDim.x) / 128 / p.block_columns) {}
  template <class Params>
  __device__ __forceinline__ int row(const Params& p, int r) const {
    return min(y + r, p.out_height - 1);
  }
  template <class Params>
  __device__ __forceinline__ int column(const Params& p, int c) const {
    return min(x + c, p.out_width - 1);
  }
};

struct AxisTable {
  static constexpr int kEntries = 4 * kWarpRun, kBytes = kEntries * int(sizeof(AxisPixels));
  static constexpr int kFactorBytes = kSquare * kSquare * kWarpRun * int(sizeof(float));
  AxisPixels* of;

  __device__ __forceinline__ const AxisPixels& row(int ky, int position) const { return of[ky / 2 * kWarpRun + position]; }
  __device__ __forceinline__ const AxisPixels& column(int kx, int position) const {
    return of[(2 + kx / 2) * kWarpRun + position];
  }
  /// The mask's factors, where there are any: [tap][position], behind the entries.
  __device__ __forceinline__ float* factors() const { return reinterpret_cast<float*>(of + kEntries); }
  template <class T>
  __device__ __forceinline__ void fill_factors(const SquareParams& p, const WarpPlace& place, const T* mask, int head) const {
    const T* const first = factors_of_position(p, place, mask, head, int(threadIdx.x) % kWarpRun);
    const int tap = int(threadIdx.x) % 32 / kWarpRun;
    constexpr int kTaps = kSquare * kSquare;
    float factor[kTaps / 2 + 1];  // of all of the lane's taps at once: a warp waits for them only once
#pragma unroll
    for (int i = 0; i <= kTaps / 2; ++i) factor[i] = widen(__ldg(first + min(2 * i + tap, kTaps - 1) * p.positions));
    __syncwarp();
#pragma unroll
    for (int i = 0; i <= kTaps / 2; ++i)
      factors()[min(2 * i + tap, kTaps - 1) * kWarpRun + int(threadIdx.x) % kWarpRun] = factor[i];
    __syncwarp();
  }
  /// Asks L2 for them.
  template <class T>
  __device__ __forceinline__ static void ask_factors(const SquareParams& p, const WarpPlace& place, const T* mask, int head) {
    const int lane = int(threadIdx.x) % 32, tap = lane / 2;
    if (tap < kSquare * kSquare) prefetch_line(factors_of_position(p, place, mask, head, lane % 2 * 8) + tap * p.positions);
  }
  /// The factor of the first tap of one of a warp's positions; those of the others follow `positions` apart.
  template <class T>
  __device__ __forceinline__ static const T* factors_of_position(const SquareParams& p, const WarpPlace& place, const T* mask,
                                                                 int head, int position) {
    const std::int64_t plane = (std::int64_t{p.shared_mask ? 0 : place.image} * p.heads + head) * p.taps;
    const int oy = place.row(p, position / 8), ox = place.column(p, position % 8);
    return mask + plane * p.positions + std::int64_t{oy} * p.out_width + ox;
  }
  /// The rate of the position of which a lane works out an axis.
  __device__ __forceinline__ static float load_rate(const SquareParams& p, const WarpPlace& place, const void* map, int group) {
    const int position = int(threadIdx.x) % kWarpRun;
    const std::int64_t plane = std::int64_t{p.shared_map ? 0 : place.image} * p.groups + group;
    const std::int64_t row = std::int64_t{place.row(p, position / 8)} * p.out_width;
    return cuda::load_rate<float>(map, p.map_type, plane * p.positions + row + place.column(p, position % 8));
  }
  /// A lane works out one axis of one position, whose rate it has.
  __device__ __forceinline__ void fill(const SquareParams& p, const WarpPlace& place, float rate) const {
    const int lane = int(threadIdx.x) % 32, position = lane % kWarpRun;
    const bool across = lane >= kWarpRun;
    const int oy = place.row(p, position / 8), ox = place.column(p, position % 8);
    Sampler<float> axis = p.y;
    if (across) axis = p.x;
    const unsigned step = across ? p.pixel_vectors : p.row_vectors;
    __syncwarp();  // the entries before have been read
#pragma unroll
    for (int k = 0; k < kSquare; k += 2) {
      const Pixels<float> pixels = axis.pixels(axis.base(across ? ox : oy), axis.offset(k), rate);
      const int last = axis.size - 1;
      const float strange = nan_unless_finite(rate);
      of[(across * 2 + k / 2) * kWarpRun + position] = {unsigned(min(max(pixels.index, 0), last)) * step,
                                                        unsigned(min(max(pixels.index + 1, 0), last)) * step,
                                                        pixels.first_weight() + strange, pixels.second_weight() + strange};
    }
    __syncwarp();
  }
};

/// What a lane reads from: its 16-byte pieces of each half of a step's channels. Lanes of odd columns take the upper half
/// first: two positions that a quarter of a warp reads at once then meet in no bank of L1.
struct LanePieces {
  const uint4* taken[2];    // of the image's first pixel, in the order in which they are read
  unsigned column, row[2];  // offsets, as AxisPixels has them, of the pixels on which the lane's positions lie
  bool odd;
};

/// A lane's samples of one of its two positions.
template <class T>
struct PositionSamples {
  unsigned offset[4];
  float weight[4];
  Bits16<T> corner[4][2];

  /// Where the middle tap is read.
  __device__ __forceinline__ void aim(const LanePieces& lane, int r) { offset[0] = lane.row[r] + lane.column; }
  __device__ __forceinline__ void locate(const LanePieces& lane, const AxisTable& table, int r, int ky, int kx, bool masked) {
    const int position = int(threadIdx.x) % 32 / 4 + 8 * r;
    AxisPixels y = ky == 1 ? AxisPixels{lane.row[r], 0, 1, 0} : table.row(ky, position);
    const AxisPixels x = kx == 1 ? AxisPixels{lane.column, 0, 1, 0} : table.column(kx, position);
    if (masked) {
      const float factor = table.factors()[(ky * kSquare + kx) * kWarpRun + position];
      y.near *= factor;
      y.far *= factor;
    }
    offset[0] = y.first + x.first;
    weight[0] = y.near * x.near;
    if (kx != 1) {
      offset[1] = y.first + x.second;
      weight[1] = y.near * x.far;
    }
    if (ky != 1) {
      offset[2] = y.second + x.first;
      weight[2] = y.far * x.near;
    }
    if (kx != 1 && ky != 1) {
      offset[3] = y.second + x.second;
      weight[3] = y.far * x.far;
    }
  }
  __device__ __forceinline__ void load(const LanePieces& lane, int ky, int kx, int taken) {
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      if ((a % 2 && kx == 1) || (a / 2 && ky == 1)) continue;
      corner[a][taken].whole = __ldg(lane.taken[taken] + offset[a]);
    }
  }
  __device__ __forceinline__ uint4 blend(int ky, int kx, int taken, bool masked) const {
    if (ky == 1 && kx == 1 && sizeof(T) == 2 && !masked) return corner[0][taken].whole;
    float value[kVec<T>];
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) {
      value[c] = weight[0] * corner[0][taken].get(c);
      if (kx != 1) value[c] += weight[1] * corner[1][taken].get(c);
      if (ky != 1) value[c] += weight[2] * corner[2][taken].get(c);
      if (kx != 1 && ky != 1) value[c] += weight[3] * corner[3][taken].get(c);
    }
    return factors_of<T>(value);
  }
};

/// A lane's samples of a position, of both halves of a step: words in the order of the halves.
struct StepRow {
  unsigned word[8];

  __device__ __forceinline__ void store_half(int taken, const uint4& of) {
    word[taken * 4] = of.x;
    word[taken * 4 + 1] = of.y;
    word[taken * 4 + 2] = of.z;
    word[taken * 4 + 3] = of.w;
  }
  /// Halves that were taken in the other order change places.
  __device__ __forceinline__ void sort(bool odd) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const unsigned first = word[k], second = word[4 + k];
      word[k] = odd ? second : first;
      word[4 + k] = odd ? first : second;
    }
  }
  /// Keeps the words in their registers from here on.
  __device__ __forceinline__ void pin() {
#if defined(__CUDA_ARCH__)
#pragma unroll
    for (int k = 0; k < 8; ++k) asm volatile("" : "+r"(word[k]));
#endif
  }
};

/// What a block does in all of its tiles, of which SquareParams or CornersParams tell.
struct TileWork {
  static constexpr bool kDivides = false;  // ChannelBlock
  int weight_group, output_block;
  unsigned tile, stride;  // the first of its tiles, and from one to the next

  template <class Params>
  __device__ __forceinline__ explicit TileWork(const Params& p) {
    const unsigned outputs = p.by_output_blocks.divisor;
    const unsigned blocks_of_tile = outputs * p.by_weight_groups.divisor;  // each has other outputs
    tile = blockIdx.x / blocks_of_tile;
    stride = gridDim.x / blocks_of_tile;
    const unsigned block = blockIdx.x % blocks_of_tile;
    weight_group = int(block / outputs);
    output_block = int(block % outputs);
  }
  template <class Params>
  __device__ __forceinline__ int tiles(const Params& p) const {
    return int((p.tiles - tile + stride - 1) / stride);
  }
};

}  // namespace ddu::cuda
