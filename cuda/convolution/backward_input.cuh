#pragma once

// The gradient of the input. A tap's gradient goes to four pixels; where many taps land on a pixel, adding them up in memory
// would write four times as many sums as there are columns. Here they meet in registers first: scattering is itself a product,
// whose other factor follows from the positions of taps, and is worked out where it is multiplied.
//
//     1  column gradients [channels, 16 positions] = weight^T x grad_output                      a unit: a tap of 16 positions
//     2  patch [channels, 4 x 4 pixels] += column gradients x S   for each unit that reaches the patch
//                                                               S [16 positions, pixels] = hat(y - row) * hat(x - column)
//     3  a patch's sums are added to those in L2                                       hat(d) = max(0, 1 - |d|)
//
//       tile: 8 x 8 positions      taps land within         patches of the window, one a warp at a time
//        ┌───┬───┐                 ┌──────────────────┐       ┌──────┬──────┬──────┐
//        │ 4 │ 4 │                 │    ╭───╮ unit    │       │      │  ╭──┼╮     │
//        ├───┼───┤  4 groups of 16 │    ╰───╯         │       ├──────┼──┴──┼┴─────┤
//        │ 4 │ 4 │                 │         window   │       │      │      │      │
//        └───┴───┘                 └──────────────────┘       └──────┴──────┴──────┘
//
// So L2 adds each pixel of a window once for a tile, instead of four times for each tap and position. Taps of smooth maps land
// side by side at any rate; where rates jump so much that the window is sparse, units are added to L2 tap by tap instead. Each
// tile chooses by what both ways would take. Gradients that are not finite go that way too: in a product, infinity times a
// weight of zero would be NaN all over the patch.
//
// Column gradients are kept in half precision, and S too: 11 bits, as TF32 has, with a power of two for each unit that makes
// the largest just fit. Sums are in float32.

#include "input_columns.cuh"

namespace ddu::cuda {

constexpr int kPatchSide = 4, kPatchProducts = 2;  // pixels; products of two rows each

/// What a tile's units reach together, and which way they go. A lane knows two units.
struct InputWindow {
  static constexpr int kOfLane = (kInputTaps * kTileGroups + 31) / 32;
  struct Unit {
    int2 y, x;    // the first and last pixel that it reaches; none if its gradients are zero
    unsigned at;  // its scale in a patch, in half precision, and where its coordinates lie: rows' group, columns' group
  };
  Unit units[kOfLane];
  int exponent;  // the largest
  int2 y, x;     // the first and last pixel of all
  int patch_columns, patches;
  bool scatters;  // tap by tap

  /// The same in all warps, but for the units.
  __device__ __forceinline__ InputWindow(const ConvInputParams& p, const InputMemory& memory) : exponent(0) {
    const int lane = int(threadIdx.x) % 32;
    int2 all_y = {INT_MAX, INT_MIN}, all_x = all_y;
    int pairs = 0, nonzero = 0;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
      const int unit = i * 32 + lane;
      Unit& of = units[i];
      of = {{INT_MAX, INT_MIN}, {INT_MAX, INT_MIN}, 0};
      if (unit >= p.chunk_units() || memory.exponents[unit] == 0) continue;
      unsigned column = unsigned(unit / kTileGroups);
      const int row = int(p.by_chunk_columns.take(column)), group = unit % kTileGroups;
      of = {memory.reach_y[row * kTileGroups + group], memory.reach_x[column * kTileGroups + group],
            unsigned(row * kTileGroups + group) << 8 | (column * kTileGroups + group)};
      if (of.y.x > of.y.y || of.x.x > of.x.y) continue;
      exponent = max(exponent, memory.exponents[unit]);
      all_y = {min(all_y.x, of.y.x), max(all_y.y, of.y.y)};
      all_x = {min(all_x.x, of.x.x), max(all_x.y, of.x.y)};
      // Of patches, wherever they start.
      pairs += min((of.y.y - of.y.x) / kPatchSide + 2, kMostPatches) * min((of.x.y - of.x.x) / kPatchSide + 2, kMostPatches);
      ++nonzero;
    }
    exponent = warp_max(exponent);
    y = {warp_min(all_y.x), warp_max(all_y.y)};
    x = {warp_min(all_x.x), warp_max(all_x.y)};
    for (int step = 1; step < 32; step *= 2) {
      pairs += __shfl_xor_sync(~0u, pairs, step);
      nonzero += __shfl_xor_sync(~0u, nonzero, step);
    }
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
      const int unit = min(i * 32 + lane, p.chunk_units() - 1);
      const __half scale = __float2half_rn(float_power_of_two(max(15 + memory.exponents[unit] - exponent, -126)));
      units[i].at |= unsigned{reinterpret_cast<const unsigned short&>(scale)} << 16;
    }
    patch_columns = exponent == 0 ? 0 : (x.y - x.x) / kPatchSide + 1;
    const std::int64_t all = exponent == 0 ? 0 : std::int64_t{patch_columns} * ((y.y - y.x) / kPatchSide + 1);
    const int written = int(min(all, std::int64_t{pairs}));
    scatters = *memory.strange || all > kMostPatches || written * kPatchCost + pairs > nonzero * kScatterCost;
    patches = int(min(all, std::int64_t{kMostPatches}));
  }

 private:
  static constexpr int kMostPatches = 4096;
  // In units of what a unit takes in a patch: a patch's sums in L2, and a unit's taps one by one.
  static constexpr int kPatchCost = 9, kScatterCost = 34;
};

__device__ __forceinline__ void add_input(const ConvInputParams& p, float* to, const float (&value)[4], int channels) {
  p.image_vectors ? add_channels<true>(to, value, channels) : add_channels<false>(to, value, channels);
}

/// Phases 2 and 3 of a warp: a patch of pixels.
struct InputPatch {
  const ConvInputParams& p;
  const InputMemory& memory;
  int y, x;                                         // its first pixel
  float row, column;                                // of a lane's pixel of the first product, as taps' coordinates have them
  float sums[kInputTiles][kPatchProducts][4] = {};  // products are one below the other

  __device__ __forceinline__ InputPatch(const ConvInputParams& p, const ConvInputWork& work, const InputMemory& memory, int y,
                                        int x)
      : p(p), memory(memory), y(y), x(x) {
    const int g = int(threadIdx.x) % 32 / 4;
    row = float(y - p.y.base(work.tile_y) + g / 4);
    column = float(x - p.x.base(work.tile_x) + g % 4);
  }
  __device__ __forceinline__ bool meets(const InputWindow::Unit& unit) const {
    return unit.y.x < y + kPatchSide && unit.y.y >= y && unit.x.x < x + kPatchSide && unit.x.y >= x;
  }
  /// Hats of two positions at a pixel.
  __device__ __forceinline__ static __half2 hats(const float2& at, float pixel) {
    return positive_halves(1 - fabsf(at.x - pixel), 1 - fabsf(at.y - pixel));
  }
  /// `at` as the window has it.
  __device__ __forceinline__ void add(int unit, unsigned at) {
    const int lane = int(threadIdx.x) % 32, q = lane % 4;
    const float2* const rows = reinterpret_cast<const float2*>(memory.y + (at >> 8 & 255) * kGroupPositions) + q;
    const float2* const columns = reinterpret_cast<const float2*>(memory.x + (at & 255) * kGroupPositions) + q;
    const unsigned scale = at >> 16 | (at & 0xffff0000u);
    __half2 of_columns[2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      of_columns[pair] = __hmul2(hats(columns[4 * pair], column), reinterpret_cast<const __half2&>(scale));
    }
    const float2 two[2] = {rows[0], rows[4]};
    unsigned b[kPatchProducts][2];
    bool any[kPatchProducts];
#pragma unroll
    for (int n = 0; n < kPatchProducts; ++n) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) b[n][pair] = bits_of(__hmul2(hats(two[pair], row + 2 * n), of_columns[pair]));
      any[n] = __any_sync(~0u, (b[n][0] | b[n][1]) != 0);
    }
    if (!any[0] && !any[1]) return;
    const uint4* const fragments = memory.fragments + unit * p.tiles * 32 + lane;
#pragma unroll
    for (int m = 0; m < kInputTiles; m += 2) {
      if (m == 2 && p.tiles == 2) break;
      const uint4 first = fragments[m * 32], second = fragments[m * 32 + 32];
#pragma unroll
      for (int n = 0; n < kPatchProducts; ++n) {
        if (!any[n]) continue;
        mma<__half>(sums[m][n], {first.x, first.y, first.z, first.w}, b[n]);
        mma<__half>(sums[m + 1][n], {second.x, second.y, second.z, second.w}, b[n]);
      }
    }
  }
  /// Adds the sums to those of the image, of which `count` channels are there; `back` is what they are multiples of.
  __device__ __forceinline__ void store(float* image, int count, float back) const {
    const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int n = 0; n < kPatchProducts; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int py = y + n * 2 + q / 2, px = x + q % 2 * 2 + e;
        if (py >= p.y.size || px >= p.x.size) continue;
        float* const pixel = image + (std::int64_t{py} * p.width + px) * p.rows.pixel + g * 4;
#pragma unroll
        for (int m = 0; m < kInputTiles; m += 2) {
          const int channels = count - (m * kMmaRows + g * 4);
          if (m >= p.tiles || channels <= 0) continue;
          const float value[4] = {sums[m][n][e] * back, sums[m][n][2 + e] * back, sums[m + 1][n][e] * back,
                                  sums[m + 1][n][2 + e] * back};
          if (value[0] == 0 && value[1] == 0 && value[2] == 0 && value[3] == 0) continue;
          add_input(p, pixel + m * kMmaRows, value, channels);
        }
      }
    }
  }
};

/// A unit's gradients of a tap, tap by tap to the sums. A lane has four of its positions.
template <class T>
__device__ __forceinline__ void scatter_unit(const ConvInputParams& p, const ConvInputWork& work,
                                             const ConvInputPointers<T>& tensors, const InputMemory& memory, int ky, int kx,
                                             int unit, float* image, int count) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const float back = float_power_of_two(memory.exponents[unit] - (14 + 127));
  const float offset_y = p.y.offset(ky), offset_x = p.x.offset(kx);
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const int position = unit % kTileGroups * kGroupPositions + i / 2 * 8 + 2 * q + i % 2;
    if (memory.y[position] == kNowhere) continue;
    const int oy = work.oy(position), ox = work.ox(position);
    const float rate = rate_of(p, work, tensors.map, oy, ox);
    const Pixels<float> at_y = p.y.pixels(p.y.base(oy), offset_y, rate), at_x = p.x.pixels(p.x.base(ox), offset_x, rate);
    float value[kInputTiles / 2][4];
    float check = 0;
#pragma unroll
    for (int m = 0; m < kInputTiles; ++m) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const uint4* const fragment = memory.fragments + (unit * p.tiles + min(m, p.tiles - 1)) * 32 + lane;
        const float of = __half2float(reinterpret_cast<const __half*>(fragment)[(i / 2 * 2 + row) * 2 + i % 2]) * back;
        value[m / 2][m % 2 * 2 + row] = of;
        check += of * 0;
      }
    }
    if (check != 0 && p.own.outputs() < p.group_outputs) {  // NaN in all groups that were multiplied at once
      const std::int64_t of_image = std::int64_t{oy} * p.out_width + ox;
      const T* const outputs = tensors.grad_output + work.unit.outputs(p, work.image) + of_image * p.outputs.pixel;
      const int tap = ky * p.kernel_w + kx;
      const float factor = tensors.mask ? widen(tensors.mask[work.unit.mask(p, work.image) + tap * p.positions + of_image]) : 1;
#pragma unroll 1
      for (int c = 0; c < 2 * kInputTiles; ++c) {
        const int channel = work.slice * p.slice_channels() + c / 4 * 32 + g * 4 + c % 4;
        if (channel >= p.unit_channels) break;
        const float of_channel = factor * column_gradient(p, work.unit, outputs, tensors.weight, channel, tap);
#pragma unroll
        for (int i = 0; i < 2 * kInputTiles; ++i) value[i / 4][i % 4] = i == c ? of_channel : value[i / 4][i % 4];
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int down = corner / 2, right = corner % 2;
      const float weight = corner_weight(down, right, at_y.fraction, at_x.fraction);
      const bool inside = (down ? at_y.second : at_y.first) && (right ? at_x.second : at_x.first);
      if (!inside || (weight == 0 && check == 0)) continue;  // infinity times 0 is NaN
      float* const pixel = image + (std::int64_t{at_y.index + down} * p.width + at_x.index + right) * p.rows.pixel + g * 4;
#pragma unroll
      for (int m = 0; m < kInputTiles; m += 2) {
        const int channels = count - (m * kMmaRows + g * 4);
        if (m >= p.tiles || channels <= 0) continue;
        const auto& of = value[m / 2];
        const float term[4] = {weight * of[0], weight * of[1], weight * of[2], weight * of[3]};
        add_input(p, pixel + m * kMmaRows, term, channels);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void scatter_units(const ConvInputParams& p, const ConvInputWork& work,
                                              const ConvInputPointers<T>& tensors, const InputMemory& memory, int ky, int kx,
                                              float* image, int count) {
#pragma unroll 1
  for (int unit = int(threadIdx.x) / 32; unit < p.chunk_units(); unit += kInputWarps) {
    if (memory.exponents[unit] == 0) continue;
    unsigned column = unsigned(unit / kTileGroups);
    const int row = int(p.by_chunk_columns.take(column));
    scatter_unit<T>(p, work, tensors, memory, ky + row, kx + int(column), unit, image, count);
  }
}

/// A patch that no other warp takes.
__device__ __forceinline__ int next_patch(const InputMemory& memory) {
  const int taken = threadIdx.x % 32 == 0 ? atomicAdd(memory.next, 1) : 0;
  return int(__shfl_sync(~0u, unsigned(taken), 0));
}

/// Phases 2 and 3: the window, patch by patch.
__device__ __forceinline__ void add_patches(const ConvInputParams& p, const ConvInputWork& work, const InputMemory& memory,
                                            const InputWindow& window, float* image, int count) {
  const float back = float_power_of_two(max(window.exponent - (14 + 15 + 127), -126));
  // Those in the middle, where most units meet, come first.
#pragma unroll 1
  for (int n = next_patch(memory); n < window.patches; n = next_patch(memory)) {
    const int from_middle = (n + 1) / 2, index = window.patches / 2 + (n % 2 ? -from_middle : from_middle);
    const int row = index / window.patch_columns, column = index - row * window.patch_columns;
    InputPatch patch(p, work, memory, window.y.x + row * kPatchSide, window.x.x + column * kPatchSide);
    bool any = false;
#pragma unroll
    for (int i = 0; i < InputWindow::kOfLane; ++i) {
      unsigned meeting = __ballot_sync(~0u, patch.meets(window.units[i]));
      any = any || meeting != 0;
#pragma unroll 1
      for (; meeting != 0; meeting &= meeting - 1) {
        const int lane = __ffs(int(meeting)) - 1;
        patch.add(i * 32 + lane, __shfl_sync(~0u, window.units[i].at, lane));
      }
    }
    if (any) patch.store(image, count, back);
  }
}

/// The column gradients of taps from (ky, kx) on, to the sums.
template <class T>
__device__ __forceinline__ void add_columns(const ConvInputParams& p, const ConvInputWork& work,
                                            const ConvInputPointers<T>& tensors, int ky, int kx, const InputMemory& memory) {
  float* const image = tensors.sums.words + work.unit.pixels(p, work.image) + work.slice * p.slice_channels();
  const int count = p.unit_channels - work.slice * p.slice_channels();
  const InputWindow window(p, memory);
  if (window.scatters) {
    scatter_units<T>(p, work, tensors, memory, ky, kx, image, count);
  } else {
    add_patches(p, work, memory, window, image, count);
  }
}

template <class T, bool kWarpgroup>
__global__ void __launch_bounds__(kInputThreads, 2)
    conv_input_backward_kernel(const ConvInputParams p, const ConvInputPointers<T> tensors) {
  if constexpr (kHasSquareKernel<kWarpgroup>) {
    extern __shared__ char shared[];
    const InputMemory memory(p, tensors.mask != nullptr, shared);
    // Each phase works out anew what its block does: kept from one to the next, it would take registers from products.
    unsigned block = blockIdx.x;
    bool waited = false;
#pragma unroll 1
    for (int first = 0; first < p.depths; first += p.depths_at_once) {
#pragma unroll 1
      for (int ky = 0; ky < p.kernel_h; ky += p.chunk_rows) {
#pragma unroll 1
        for (int kx = 0; kx < p.kernel_w; kx += p.chunk_columns) {
          ask_in_loop(block);
          if (threadIdx.x == 0) *memory.strange = *memory.next = 0;
          for (int unit = int(threadIdx.x); unit < p.chunk_units(); unit += kInputThreads) {
            memory.largest[unit] = memory.exponents[unit] = 0;
          }
          place_taps(p, ConvInputWork(p, block), tensors.map, ky, kx, memory);
          if (!waited) wait_for_previous();
          waited = true;
          ask_in_loop(block);
          if (ky == 0 && kx == 0) copy_outputs(p, ConvInputWork(p, block), tensors, first, memory);
          if (tensors.mask) {
            __syncthreads();
            copy_factors(p, ConvInputWork(p, block), tensors.mask, ky, kx, memory);
          }
          show_to_products();
          __syncthreads();
          ask_in_loop(block);
          column_gradients<T, kWarpgroup>(p, ConvInputWork(p, block), tensors, first, ky, kx, memory);
          __syncthreads();
          ask_in_loop(block);
          add_columns<T>(p, ConvInputWork(p, block), tensors, ky, kx, memory);
          __syncthreads();
        }
      }
    }
  }
}

}  // namespace ddu::cuda
