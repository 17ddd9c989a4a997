#pragma once

// The gradient of the input, its first phase: gradients of a tile's columns, in shared memory as the factors of what follows
// (backward_input.cuh, which draws it).

#include "../channels_last/scatter.cuh"
#include "../core/reduce.cuh"
#include "backward_params.cuh"
#include "square.cuh"

namespace ddu::cuda {

constexpr int kInputWarps = 8, kInputThreads = 32 * kInputWarps;  // two warpgroups, which share the taps of a chunk
constexpr int kInputTile = 8, kInputPositions = kInputTile * kInputTile;
constexpr int kGroupSide = 4, kGroupPositions = kGroupSide * kGroupSide, kTileGroups = kInputPositions / kGroupPositions;
constexpr int kInputTaps = 9;                                            // of a chunk, at most
constexpr int kInputTiles = 4, kInputChannels = kInputTiles * kMmaRows;  // of a block, at most
constexpr int kInputDepths = 8;                                          // of 128 bytes of outputs, at once
constexpr float kNowhere = 1e9f;                                         // a coordinate that reaches no pixel

struct ConvInputParams : ConvBackwardParams {
  int out_height, kernel_h;
  int tiles;                      // products of 16 channels, one a warp: 2 or 4
  int depths, depths_at_once;     // of 128 bytes of outputs
  int chunk_rows, chunk_columns;  // taps at once
  Divider by_chunk_columns, by_tile_columns, by_tile_rows, by_channel_slices, by_all_units;

  __host__ __device__ int slice_channels() const { return tiles * kMmaRows; }
  __host__ __device__ int chunk_units() const { return chunk_rows * chunk_columns * kTileGroups; }
  /// Vectors of packed weights for a tap of a slice.
  __host__ __device__ int packed_tap() const { return depths * packed_depth(); }
  __host__ __device__ int packed_depth() const { return tiles * kDepthsOfColumn * 32; }
};

template <class T>
struct ConvInputPointers {
  const T* grad_output;  // rows
  const uint4* weights;  // packed
  const T* weight;
  const T* mask;  // null for ones
  const void* map;
  FloatingSums<T> sums;
};

/// Which channel of a slice is row `row` of product `tile`: a lane that has rows g and g + 8 of two products so has four
/// neighbours, and lanes beside it the next.
__host__ __device__ constexpr int channel_of_row(int tile, int row) {
  return tile / 2 * 32 + row % 8 * 4 + tile % 2 * 2 + row / 8;
}

/// Packs vector `index` of the weights, [unit][slice][tap][128 bytes of outputs][product of 16 channels][depth][lane]: a lane's
/// fragment of A.
template <class T>
__device__ __forceinline__ void pack_for_input(const ConvInputParams& p, const T* weight, uint4* to, std::int64_t index) {
  constexpr int kOfWord = 4 / int(sizeof(T));
  const int lane = int(index % 32), depth = int(index / 32 % kDepthsOfColumn), g = lane / 4, q = lane % 4;
  std::int64_t rest = index / (32 * kDepthsOfColumn);
  const int tile = int(rest % p.tiles);
  rest /= p.tiles;
  const int block = int(rest % p.depths);
  rest /= p.depths;
  const int tap = int(rest % p.taps);
  rest /= p.taps;
  const int slice = int(rest % p.by_channel_slices.divisor);
  const ConvUnit unit(p, int(rest / p.by_channel_slices.divisor));
  Bits16<T> bits;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const int channel = slice * p.slice_channels() + channel_of_row(tile, g + word % 2 * 8);
    const int output = ((block * kDepthsOfColumn + depth) * kMmaWords + word / 2 * 4 + q) * kOfWord;
#pragma unroll
    for (int e = 0; e < kOfWord; ++e) {
      const std::int64_t at = p.weight(unit.weight_group, output + e, unit.of_weight_group * p.unit_channels + channel);
      if (channel < p.unit_channels && output + e < p.group_outputs && at >= 0)
        bits.set(word * kOfWord + e, __ldg(weight + at + tap));
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
  char* outputs;     // [128 bytes of outputs][position][16-byte piece ^ position % 8]: factor B, as load_columns() wants it
  uint4* fragments;  // [unit][product of 16 channels][lane]: of A, column gradients in half precision
  // Of a row of taps, and of a column: [group][position] of the tile, kNowhere for those that have no rate; and the pixels
  // of the image that each group reaches, the first and the last.
  float *y, *x;
  int2 *reach_y, *reach_x;
  float* factors;  // [tap][position], of the mask, if there is one
  int* largest;    // of each unit, bits of the largest gradient that is finite
  int* exponents;  // of that; 0 where all are zero
  int* strange;    // whether any gradient is not finite
  int* next;       // how many patches warps have taken

  __host__ __device__ static int bytes(const ConvInputParams& p, bool masked) {
    return p.depths_at_once * kInputPositions * kStepBytes + p.chunk_units() * (p.tiles * 512 + 8) +
           (p.chunk_rows + p.chunk_columns) * (kInputPositions * 4 + kTileGroups * 8) +
           (masked ? p.chunk_rows * p.chunk_columns * kInputPositions * 4 : 0) + 16;
  }
  __device__ __forceinline__ InputMemory(const ConvInputParams& p, bool masked, char* shared) {
    outputs = shared;
    fragments = reinterpret_cast<uint4*>(outputs + p.depths_at_once * kInputPositions * kStepBytes);
    y = reinterpret_cast<float*>(fragments + p.chunk_units() * p.tiles * 32);
    x = y + p.chunk_rows * kInputPositions;
    reach_y = reinterpret_cast<int2*>(x + p.chunk_columns * kInputPositions);
    reach_x = reach_y + p.chunk_rows * kTileGroups;
    factors = reinterpret_cast<float*>(reach_x + p.chunk_columns * kTileGroups);
    largest = reinterpret_cast<int*>(factors + (masked ? p.chunk_rows * p.chunk_columns * kInputPositions : 0));
    exponents = largest + p.chunk_units();
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

/// grad_output of the tile's positions to shared memory, from `first` times 128 bytes of outputs on; zero where there is no
/// rate.
template <class T>
__device__ __forceinline__ void copy_outputs(const ConvInputParams& p, const ConvInputWork& work,
                                             const ConvInputPointers<T>& tensors, int first, const InputMemory& memory) {
  constexpr int kPieces = kStepBytes / 16;
  const int piece = int(threadIdx.x) % kPieces;
#pragma unroll 1
  for (int position = int(threadIdx.x) / kPieces; position < kInputPositions; position += kInputThreads / kPieces) {
    const int oy = work.oy(position), ox = work.ox(position);
    const bool there = oy < p.out_height && ox < p.out_width && is_finite(rate_of(p, work, tensors.map, oy, ox));
    const T* row =
        tensors.grad_output + work.unit.outputs(p, work.image) + (std::int64_t{oy} * p.out_width + ox) * p.outputs.pixel;
    char* const to = memory.outputs + position * kStepBytes + (piece ^ position % kPieces) * 16;
#pragma unroll 4
    for (int depth = 0; depth < p.depths_at_once; ++depth) {
      const int output = ((first + depth) * kPieces + piece) * kVec<T>;
      const int count = there ? p.group_outputs - output : 0;
      *reinterpret_cast<uint4*>(to + depth * (kInputPositions * kStepBytes)) =
          as_factor(load_outputs(p.output_vectors, row + output, count)).whole;
    }
  }
}

/// The mask's factors of taps from (ky, kx) on.
template <class T>
__device__ __forceinline__ void copy_factors(const ConvInputParams& p, const ConvInputWork& work, const T* mask, int ky, int kx,
                                             const InputMemory& memory) {
  mask += work.unit.mask(p, work.image);
#pragma unroll 1
  for (int e = int(threadIdx.x); e < p.chunk_rows * p.chunk_columns * kInputPositions; e += kInputThreads) {
    unsigned column = unsigned(e / kInputPositions);
    const int y = ky + int(p.by_chunk_columns.take(column)), x = kx + int(column), position = e % kInputPositions;
    const int oy = work.oy(position), ox = work.ox(position);
    const bool there = y < p.kernel_h && x < p.kernel_w && oy < p.out_height && ox < p.out_width;
    const std::int64_t at = (y * p.kernel_w + x) * p.positions + std::int64_t{oy} * p.out_width + ox;
    memory.factors[e] = there && memory.y[position] < kNowhere ? widen(__ldg(mask + at)) : 0;
  }
}

/// A warp's gradients of a tap's columns: 16 channels by the tile's positions.
template <class T, bool kWarpgroup>
struct ColumnGradients {
  float d[kInputPositions / 2];

  /// `weights` are the lane's, of the first depth.
  __device__ __forceinline__ void multiply(const ConvInputParams& p, const uint4* weights, int depths, const char* outputs) {
    StepRow rows[2][2];
#pragma unroll 1
    for (int depth = 0; depth < depths; depth += 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (depth + i >= depths) break;
        wait_for_products<1>();  // what was multiplied the time before the last
        load(rows[i], weights + (depth + i) * p.packed_depth());
        ddu::cuda::multiply<T, kInputPositions, kWarpgroup>(d, rows[i], outputs + (depth + i) * (kInputPositions * kStepBytes),
                                                            depth + i > 0);
      }
    }
    finish_products(d);
  }
  /// Times the mask's values of the tap.
  __device__ __forceinline__ void scale(const float* factors) {
    const int q = int(threadIdx.x) % 4;
#pragma unroll
    for (int n = 0; n < kInputPositions / 8; ++n) {
      const float2 two = reinterpret_cast<const float2*>(factors)[n * 4 + q];
      d[n * 4] *= two.x;
      d[n * 4 + 1] *= two.y;
      d[n * 4 + 2] *= two.x;
      d[n * 4 + 3] *= two.y;
    }
  }
  /// Bits of the largest magnitude of a group's; kFinite: of those that are finite.
  template <bool kFinite>
  __device__ __forceinline__ int largest(int group) const {
    float magnitude = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) magnitude = larger(magnitude, kFinite && !is_finite(d[group * 8 + e]) ? 0 : d[group * 8 + e]);
    return warp_max(__float_as_int(magnitude));
  }
  /// Finds the largest of four units, from `unit` on, among all warps that call this.
  __device__ __forceinline__ void compare(const InputMemory& memory, int unit) const {
#pragma unroll
    for (int group = 0; group < kTileGroups; ++group) {
      int magnitude = largest<false>(group);
      if (magnitude >= 0x7f800000) {
        *memory.strange = 1;
        magnitude = max(largest<true>(group), 1);
      }
      if (threadIdx.x % 32 == 0 && magnitude > 0) atomicMax(memory.largest + unit + group, magnitude);
    }
  }
  /// Once all have been compared: stores them as fragments.
  __device__ __forceinline__ void store(const ConvInputParams& p, const InputMemory& memory, int unit) const {
    const int lane = int(threadIdx.x) % 32, tile = int(threadIdx.x) / 32 % kInputTiles;
#pragma unroll
    for (int group = 0; group < kTileGroups; ++group) {
      const int magnitude = memory.largest[unit + group];
      // A biased exponent that leaves room for the powers that follow from it.
      const int exponent = magnitude == 0 ? 0 : max(magnitude >> 23, 30);
      if (tile == 0 && lane == 0) memory.exponents[unit + group] = exponent;
      if (exponent == 0) continue;
      const float scale = float_power_of_two(14 + 127 - exponent);  // below 2^15
      const auto pair = [&](int n, int row) {
        const float* of = d + group * 8 + n * 4 + row * 2;
        return bits_of(__floats2half2_rn(of[0] * scale, of[1] * scale));
      };
      memory.fragments[((unit + group) * p.tiles + tile) * 32 + lane] = {pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1)};
    }
  }

 private:
  __device__ __forceinline__ static void load(StepRow (&rows)[2], const uint4* weights) {
#pragma unroll
    for (int k = 0; k < kDepthsOfColumn; ++k) {
      const uint4 of = __ldg(weights + k * 32);
      rows[0].word[2 * k] = of.x;
      rows[1].word[2 * k] = of.y;
      rows[0].word[2 * k + 1] = of.z;
      rows[1].word[2 * k + 1] = of.w;
    }
  }
};

/// Phase 1: gradients of the columns of taps from (ky, kx) on, of outputs from `first` times 128 bytes on.
template <class T, bool kWarpgroup>
__device__ __forceinline__ void column_gradients(const ConvInputParams& p, const ConvInputWork& work,
                                                 const ConvInputPointers<T>& tensors, int first, int ky, int kx,
                                                 const InputMemory& memory) {
  const int lane = int(threadIdx.x) % 32, tile = int(threadIdx.x) / 32 % kInputTiles;
  const bool stores = tile < p.tiles;
  const uint4* const weights =
      tensors.weights + (std::int64_t{work.unit.index} * p.by_channel_slices.divisor + work.slice) * p.taps * p.packed_tap() +
      first * p.packed_depth() + (stores ? tile : 0) * (kDepthsOfColumn * 32) + lane;
  const int taps = p.chunk_rows * p.chunk_columns, depths = min(p.depths - first, p.depths_at_once);
#pragma unroll 1
  for (int n = 0; n < taps; n += 2) {
    const int of_chunk = n + int(threadIdx.x) / kWarpgroupThreads;  // a warpgroup each
    unsigned column = unsigned(of_chunk);
    const int y = ky + int(p.by_chunk_columns.take(column)), x = kx + int(column), unit = of_chunk * kTileGroups;
    const bool any = of_chunk < taps && y < p.kernel_h && x < p.kernel_w;
    ColumnGradients<T, kWarpgroup> gradients;
    if (any) {
      gradients.multiply(p, weights + std::int64_t{y * p.kernel_w + x} * p.packed_tap(), depths, memory.outputs);
      if (tensors.mask) gradients.scale(memory.factors + of_chunk * kInputPositions);
      if (stores) gradients.compare(memory, unit);
    }
    __syncthreads();
    if (any && stores) gradients.store(p, memory, unit);
  }
}

}  // namespace ddu::cuda
