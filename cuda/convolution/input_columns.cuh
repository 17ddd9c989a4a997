#pragma once

// The gradient of the input, its first phase: gradients of a tile's columns, in shared memory as the factors of what follows
// (backward_input.cuh, which draws it).

#include "../channels_last/scatter.cuh"
#include "../core/reduce.cuh"
#include "backward_product.cuh"

namespace ddu::cuda {

constexpr int kInputWarps = 8, kInputThreads = 32 * kInputWarps;
constexpr int kInputTile = 8, kInputPositions = kInputTile * kInputTile;
constexpr int kGroupSide = 4, kGroupPositions = kGroupSide * kGroupSide, kTileGroups = kInputPositions / kGroupPositions;
constexpr int kInputTaps = 9;                                            // of a chunk, at most
constexpr int kInputTiles = 4, kInputChannels = kInputTiles * kMmaRows;  // of a block, at most
constexpr float kNowhere = 1e9f;                                         // a coordinate that reaches no pixel

struct ConvInputParams : ConvBackwardParams {
  int out_height, kernel_h;
  int tiles;                      // products of 16 channels, side by side: 2 or 4
  int steps;                      // of the depth, kDepthStep outputs each
  int chunk_rows, chunk_columns;  // taps at once
  Divider by_chunk_columns, by_tile_columns, by_tile_rows, by_channel_slices, by_all_units;

  __host__ __device__ int slice_channels() const { return tiles * kMmaRows; }
  __host__ __device__ int chunk_units() const { return chunk_rows * chunk_columns * kTileGroups; }
  /// Vectors of packed weights for a tap of a slice.
  __host__ __device__ int packed_tap() const { return steps * tiles * 2 * 32; }
};

template <class T>
struct ConvInputPointers {
  const T* grad_output;  // rows
  const uint4* weights;  // packed
  const T* mask;         // null for ones
  const void* map;
  FloatingSums<T> sums;
};

/// Which channel of a slice is row `row` of product `tile`: a lane that has rows g and g + 8 of two products so has four
/// neighbours, and lanes beside it the next.
__host__ __device__ constexpr int channel_of_row(int tile, int row) {
  return tile / 2 * 32 + row % 8 * 4 + tile % 2 * 2 + row / 8;
}

/// Packs weights, [unit][slice][tap][step][product of 16 channels][half of the step][lane]: a lane's fragment of A. Words of
/// the depth are in the order in which a lane's 16 bytes of grad_output bring them.
template <class T>
__global__ void __launch_bounds__(256)
    pack_for_input_kernel(const ConvInputParams p, const T* weight, uint4* to, std::int64_t count) {
  wait_for_previous();
  const std::int64_t index = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (index >= count) return;
  constexpr int kOfWord = 4 / int(sizeof(T));
  const int lane = int(index % 32), half = int(index / 32 % 2), g = lane / 4, q = lane % 4;
  std::int64_t rest = index / 64;
  const int tile = int(rest % p.tiles);
  rest /= p.tiles;
  const int step = int(rest % p.steps);
  rest /= p.steps;
  const int tap = int(rest % p.taps);
  rest /= p.taps;
  const int slice = int(rest % p.by_channel_slices.divisor);
  const ConvUnit unit(p, int(rest / p.by_channel_slices.divisor));
  const std::int64_t channels = std::int64_t{p.weight_units} * p.unit_channels;  // of a weight group
  Bits16<T> bits;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const int channel = slice * p.slice_channels() + channel_of_row(tile, g + word % 2 * 8);
    const int output = step * kDepthStep<T> + q * kVec<T> + (half * 2 + word / 2) * kOfWord;
    const T* from = weight +
                    ((std::int64_t{unit.weight_group} * p.group_outputs + output) * channels +
                     std::int64_t{unit.of_weight_group} * p.unit_channels + channel) *
                        p.taps +
                    tap;
#pragma unroll
    for (int e = 0; e < kOfWord; ++e) {
      if (channel < p.unit_channels && output + e < p.group_outputs)
        bits.set(word * kOfWord + e, __ldg(from + e * channels * p.taps));
    }
  }
  to[index] = as_factor(bits).whole;
}

/// Two halves from floats, what is negative as zero.
__device__ __forceinline__ __half2 positive_halves(float low, float high) {
#if __CUDA_ARCH__ >= 800
  unsigned two;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return reinterpret_cast<const __half2&>(two);
#else
  return __floats2half2_rn(low > 0 ? low : 0.f, high > 0 ? high : 0.f);
#endif
}
__device__ __forceinline__ unsigned bits_of(const __half2& two) { return reinterpret_cast<const unsigned&>(two); }

/// What one block does.
struct ConvInputWork {
  unsigned rest;
  int tile_x, tile_y;  // the tile's first position
  int slice;           // of the unit's channels
  ConvUnit unit;
  int image;

  __device__ __forceinline__ ConvInputWork(const ConvInputParams& p, unsigned block)
      : rest(block),
        tile_x(take(p.by_tile_columns) * kInputTile),
        tile_y(take(p.by_tile_rows) * kInputTile),
        slice(take(p.by_channel_slices)),
        unit(p, take(p.by_all_units)),
        image(int(rest)) {}

  // Positions are counted by groups, two side by side, and within a group by rows.
  __device__ __forceinline__ int oy(int position) const {
    return tile_y + position / (2 * kGroupPositions) * kGroupSide + position % kGroupPositions / kGroupSide;
  }
  __device__ __forceinline__ int ox(int position) const {
    return tile_x + position / kGroupPositions % 2 * kGroupSide + position % kGroupSide;
  }

 private:
  __device__ __forceinline__ int take(const Divider& by) {
    unsigned remainder = rest;
    rest = by.take(remainder);
    return int(remainder);
  }
};

/// A block's shared memory. Coordinates are counted from the base of the tile's first position.
struct InputMemory {
  uint4* fragments;  // [unit][product of 16 channels][lane]: of A, column gradients in half precision
  // Of a row of taps, and of a column: [group][position] of the tile, kNowhere for those that have no rate; and the pixels
  // of the image that each group reaches, the first and the last.
  float *y, *x;
  int2 *reach_y, *reach_x;
  int* exponents;  // of each unit's largest gradient; 0 where all are zero
  int* strange;    // whether any gradient is not finite
  int* next;       // how many patches warps have taken

  __host__ __device__ static int bytes(const ConvInputParams& p) {
    return p.chunk_units() * (p.tiles * 512 + 4) + (p.chunk_rows + p.chunk_columns) * (kInputPositions * 4 + kTileGroups * 8) +
           16;
  }
  __device__ __forceinline__ InputMemory(const ConvInputParams& p, char* shared) {
    fragments = reinterpret_cast<uint4*>(shared);
    y = reinterpret_cast<float*>(fragments + p.chunk_units() * p.tiles * 32);
    x = y + p.chunk_rows * kInputPositions;
    reach_y = reinterpret_cast<int2*>(x + p.chunk_columns * kInputPositions);
    reach_x = reach_y + p.chunk_rows * kTileGroups;
    exponents = reinterpret_cast<int*>(reach_x + p.chunk_columns * kTileGroups);
    strange = exponents + p.chunk_units();
    next = strange + 1;
  }
};

/// A position's rate, which must be there.
__device__ __forceinline__ float rate_of(const ConvInputParams& p, const ConvInputWork& work, const void* map, int oy, int ox) {
  const std::int64_t plane = std::int64_t{p.shared_map ? 0 : work.image} * p.groups + work.unit.group;
  return load_rate<float>(map, p.map_type, plane * p.positions + std::int64_t{oy} * p.out_width + ox);
}

/// Works out where rows and columns of taps land, from (ky, kx) on.
__device__ __forceinline__ void place_taps(const ConvInputParams& p, const ConvInputWork& work, const void* map, int ky, int kx,
                                           const InputMemory& memory) {
#pragma unroll 1
  for (int e = int(threadIdx.x); e < (p.chunk_rows + p.chunk_columns) * kInputPositions; e += kInputThreads) {  // whole warps
    const int line = e / kInputPositions, position = e % kInputPositions, oy = work.oy(position), ox = work.ox(position);
    const bool is_row = line < p.chunk_rows;
    const Sampler<float>& axis = is_row ? p.y : p.x;
    float at = kNowhere;
    int first = INT_MAX, last = INT_MIN;
    if (oy < p.out_height && ox < p.out_width) {
      const float rate = rate_of(p, work, map, oy, ox);
      const int k = is_row ? ky + line : kx + line - p.chunk_rows;
      const Pixels<float> of = axis.pixels(axis.base(is_row ? oy : ox), axis.offset(k), rate);
      if (is_finite(rate)) {
        at = float(of.index - axis.base(is_row ? work.tile_y : work.tile_x)) + of.fraction;
        first = max(of.index, 0);
        last = min(of.index + (of.fraction > 0), axis.size - 1);
        if (first > last) {  // outside
          first = INT_MAX;
          last = INT_MIN;
        }
      }
    }
    memory.y[e] = at;  // those of columns lie behind
#pragma unroll
    for (int step = 1; step < kGroupPositions; step *= 2) {
      first = min(first, __shfl_xor_sync(~0u, first, step));
      last = max(last, __shfl_xor_sync(~0u, last, step));
    }
    if (e % kGroupPositions == 0) memory.reach_y[e / kGroupPositions] = {first, last};
  }
}

/// The larger of a and |b|; NaN if one of them is.
__device__ __forceinline__ float larger(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(fabsf(b)));
  return larger;
#else
  return !(fabsf(b) <= a) ? (a != a ? a : fabsf(b)) : a;
#endif
}

/// 2^power, of powers from -126 to 127.
__device__ __forceinline__ float float_power_of_two(int power) { return __int_as_float((power + 127) << 23); }

/// 16 bytes of a position's outputs, `count` of which are there. Not by __ldg, which might move before wait_for_previous().
template <class T>
__device__ __forceinline__ Bits16<T> load_outputs(bool vectors, const T* from, int count) {
  Bits16<T> bits;
  if (vectors) {
    if (count > 0) bits.whole = *reinterpret_cast<const uint4*>(from);
    return bits;
  }
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) {
    if (i < count) bits.set(i, from[i]);
  }
  return bits;
}

/// A warp's gradients of a unit's columns: products of 16 channels by 8 positions.
template <class T>
struct ColumnGradients {
  float d[kInputTiles][2][4] = {};

  /// `row` is that of the lane's position in the first two rows of the group, `below` the way to the next two; `at` are
  /// coordinates of the group's positions.
  __device__ __forceinline__ void multiply(const ConvInputParams& p, const T* row, std::int64_t below, const uint4* weights,
                                           const float* at) {
    const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
    int count[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) count[n] = at[n * 8 + g] < kNowhere ? p.group_outputs - q * kVec<T> : 0;
    weights += lane;
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step) {
      Bits16<T> b[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        b[n] = as_factor(load_outputs(p.output_vectors, row + n * below, count[n]));
        count[n] -= kDepthStep<T>;
      }
      row += kDepthStep<T>;
#pragma unroll
      for (int m = 0; m < kInputTiles; m += 2) {
        if (m == 2 && p.tiles == 2) break;
        uint4 a[2][2];  // on their way together
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i / 2][i % 2] = weights[(m * 2 + i) * 32];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint4& f = a[i / 2][i % 2];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            mma<T>(d[m + i / 2][n], {f.x, f.y, f.z, f.w}, {b[n].word[i % 2 * 2], b[n].word[i % 2 * 2 + 1]});
          }
        }
      }
      weights += p.tiles * 64;
    }
  }
  /// Times the mask's values of the tap, `mask`.
  __device__ __forceinline__ void scale(const ConvInputParams& p, const T* mask, int oy, int ox, const float* at) {
    const int q = int(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = i / 2, k = n * 8 + 2 * q + i % 2;
      const bool there = at[k] < kNowhere;
      const float factor = there ? widen(mask[std::int64_t{oy + k / kGroupSide} * p.out_width + ox + k % kGroupSide]) : 0.f;
#pragma unroll
      for (int m = 0; m < kInputTiles; ++m) {
        d[m][n][i % 2] *= factor;
        d[m][n][2 + i % 2] *= factor;
      }
    }
  }
  /// Bits of the largest magnitude; kFinite: of those that are finite.
  template <bool kFinite>
  __device__ __forceinline__ int largest() const {
    float most = 0;
#pragma unroll
    for (int m = 0; m < kInputTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (float v : d[m][n]) most = larger(most, kFinite && !is_finite(v) ? 0 : v);
      }
    }
    return warp_max(__float_as_int(most));
  }
  __device__ __forceinline__ void store(const ConvInputParams& p, const InputMemory& memory, int unit) const {
    const int lane = int(threadIdx.x) % 32;
    int most = largest<false>();
    if (most >= 0x7f800000) {
      *memory.strange = 1;
      most = max(largest<true>(), 1);
    }
    // A biased exponent that leaves room for the powers that follow from it.
    const int exponent = most == 0 ? 0 : max(most >> 23, 30);
    if (lane == 0) memory.exponents[unit] = exponent;
    if (exponent == 0) return;
    const float scale = float_power_of_two(14 + 127 - exponent);  // below 2^15
#pragma unroll
    for (int m = 0; m < kInputTiles; ++m) {
      if (m == 2 && p.tiles == 2) break;
      const auto pair = [&](int n, int row) {
        return bits_of(__floats2half2_rn(d[m][n][2 * row] * scale, d[m][n][2 * row + 1] * scale));
      };
      memory.fragments[(unit * p.tiles + m) * 32 + lane] = {pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)};
    }
  }
};

/// Phase 1: gradients of the columns of taps from (ky, kx) on.
template <class T>
__device__ __forceinline__ void column_gradients(const ConvInputParams& p, const ConvInputWork& work,
                                                 const ConvInputPointers<T>& tensors, int ky, int kx,
                                                 const InputMemory& memory) {
  const int lane = int(threadIdx.x) % 32;
  const T* const rows = tensors.grad_output + work.unit.outputs(p, work.image) +
                        (std::int64_t{work.tile_y + lane / 16} * p.out_width + work.tile_x + lane / 4 % 4) * p.outputs.pixel +
                        lane % 4 * kVec<T>;
  const std::int64_t beside = kGroupSide * p.outputs.pixel, below = 2 * p.outputs.pixel * p.out_width;
  const uint4* const weights =
      tensors.weights + (std::int64_t{work.unit.index} * p.by_channel_slices.divisor + work.slice) * p.taps * p.packed_tap();
#pragma unroll 1
  for (int unit = int(threadIdx.x) / 32; unit < p.chunk_units(); unit += kInputWarps) {
    unsigned column = unsigned(unit / kTileGroups);
    const int y = ky + int(p.by_chunk_columns.take(column)), x = kx + int(column), group = unit % kTileGroups;
    if (y >= p.kernel_h || x >= p.kernel_w) {
      if (threadIdx.x % 32 == 0) memory.exponents[unit] = 0;
      continue;
    }
    const int tap = y * p.kernel_w + x, oy = work.oy(group * kGroupPositions), ox = work.ox(group * kGroupPositions);
    const float* const at = memory.y + group * kGroupPositions;
    ColumnGradients<T> gradients;
    gradients.multiply(p, rows + (group % 2 ? beside : 0) + (group / 2 ? 2 * below : 0), below,
                       weights + std::int64_t{tap} * p.packed_tap(), at);
    if (tensors.mask) gradients.scale(p, tensors.mask + work.unit.mask(p, work.image) + tap * p.positions, oy, ox, at);
    gradients.store(p, memory, unit);
  }
}

}  // namespace ddu::cuda
