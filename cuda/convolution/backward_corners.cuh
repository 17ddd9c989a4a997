#pragma once

// Gradients of the map and the mask, of images in rows of whole vectors. A product of column gradients ends in registers, where
// each lane has of two positions the same channels that it reads of the image (corners.cuh):
//
//   a block: 2 or 4 warpgroups, 8 x 8 positions each, and 64 or 256 outputs; it stays for as many tiles as it gets
//
//   a lane   its grad_output in registers ──> product with the slice of a tap ──> column gradients   x   corners ──> sums
//                                             of weights in shared memory                          loaded meanwhile
//
// Weights are packed as factor B, whose columns are channels and whose depth are outputs.

#include "../channels_last/shared_gradient.cuh"
#include "corners.cuh"
#include "square.cuh"
#include "step_ring.cuh"

namespace ddu::cuda {

template <class T>
struct CornersPointers {
  const T *grad_output, *image;  // rows
  const char* slices;            // of weights
  const T* mask;                 // null for ones
  const void* map;
  // Gradients; if there are sums, all is added to those, as store_sum() has it. Null if they are not wanted.
  float *map_sums, *mask_sums;
  void* grad_map;  // of the map's type
  T* grad_mask;
  std::int64_t map_part, mask_part;
  uint4* zeros;  // what else is to be cleared: vectors
  std::int64_t zeros_count;
  unsigned* flags;  // of each block: whether it met what is not finite, where images are taken to be so; or null

  __device__ __forceinline__ bool of_map() const { return map_sums || grad_map; }
  __device__ __forceinline__ bool of_mask() const { return mask_sums || grad_mask; }
};

template <class T>
constexpr int kStepChannels = kStepBytes / int(sizeof(T));
/// 128 bytes each, of a block's outputs.
template <class T, int kOutputs>
constexpr int kDepthBlocks = kOutputs * int(sizeof(T)) / kStepBytes;
template <int kOutputs, bool kWarpgroup>
using CornersRing = StepRing<kOutputs * kStepBytes, kStages<kOutputs>, kWarpgroup>;

constexpr int corners_threads(int outputs) { return outputs > 64 ? 256 : 512; }

/// Packs vector n of the weights, [weight group][block of outputs][block of channels][tap][depth block]: columns of 128 bytes
/// each, as load_columns() in core/mma.cuh wants them. Words of the depth are in the order of weights.cuh.
/// Where grad_output is read from shared memory (`p.in_order`) they are in their own.
template <class T>
__device__ __forceinline__ void pack_for_corners(const CornersParams& p, int outputs, const T* weight, uint4* slices,
                                                 std::int64_t n) {
  constexpr int kOfWord = 4 / int(sizeof(T)), kPieces = kStepBytes / 16;
  const int piece = int(n % kPieces), column = int(n / kPieces % kStepChannels<T>);
  std::int64_t rest = n / kPieces / kStepChannels<T>;
  const int depths = outputs / kStepChannels<T>, depth = int(rest % depths);
  rest /= depths;
  const int tap = int(rest % p.taps);
  rest /= p.taps;
  const int blocks = p.weight_units * p.unit_blocks, block = int(rest % blocks);
  rest /= blocks;
  const int output_block = int(rest % p.by_output_blocks.divisor), weight_group = int(rest / p.by_output_blocks.divisor);
  const int channel =
      block % p.unit_blocks * kStepChannels<T> + output_of_column<T>(column / kMmaColumns, column % kMmaColumns);
  const int of_group = block / p.unit_blocks * p.unit_channels + channel;
  Bits16<T> packed;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int vector = depth * kPieces + (p.in_order ? piece : piece / 4 * 4 + q);  // of 16 bytes, that lane q has
    const int word = p.in_order ? q : piece % 4;
    const int first = output_block * outputs + vector * kVec<T> + word * kOfWord;  // of the word's outputs
    T element[kOfWord];
#pragma unroll
    for (int e = 0; e < kOfWord; ++e) {
      const std::int64_t at = p.weight(weight_group, first + e, of_group);
      const bool there = channel < p.unit_channels && first + e < p.group_outputs && at >= 0;
      element[e] = there ? __ldg(weight + at + tap) : T(0.f);
    }
    packed.word[q] = factor_word(element);
  }
  slices[n - piece + (piece ^ (column % kMmaColumns))] = packed.whole;
}

/// Whether images are taken to be finite: then corners that have no weight because a tap stays in its row or column are not
/// read, nothing is summed again, and a block sets its flag if it meets what is not finite, of which each pixel is looked at as
/// some position's middle. A second launch then does all of it exactly. `ask`: one kernel for both, as the parameters say.
enum class CornersMode { ask, finite, exact };

/// What a lane reads of its two positions of a tile.
template <class T>
struct CornersReader {
  CornerPieces pieces;
  CornerPiece<T> corners[2];  // of each half of a step's channels, those that come next
  float slope[2] = {};        // the map's gradient, of the unit's channels up to now
  unsigned strange = 0;       // whether it met what is not finite

  __device__ __forceinline__ static CornerCell cell(const CornerTable& table, int r, int ky, int kx) {
    return {table, int(threadIdx.x) % 32 / 4 + 8 * r, ky, kx};
  }
  __device__ __forceinline__ void load(const CornerCell& cell, int taken, CornerChoice choice) {
    corners[taken].load(pieces.taken[taken], cell, choice);
  }
  /// Looks at the pixels on which the positions' middles lie.
  __device__ __forceinline__ void look_at_middles(const CornersParams& p, const WarpPlace& place) {
    const auto clamped = [](int index, int size) { return unsigned(min(max(index, 0), size - 1)); };
    const unsigned x = clamped(p.x.base(place.column(p, int(threadIdx.x) % 32 / 4)), p.x.size) * p.pixel_vectors;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned y = clamped(p.y.base(place.row(p, i / 2)), p.y.size) * p.row_vectors;
      Bits16<T> pixel;
      pixel.whole = __ldg(reinterpret_cast<const uint4*>(pieces.taken[i % 2]) + (y + x));
      strange |= pixel.strange();
    }
  }
  /// Of a tap whose dots are complete. Where those are not finite all is summed again, in a way that minds what there is: then
  /// each lane has its channels' part.
  template <CornersMode kMode>
  __device__ __forceinline__ CornerSums sum(const CornerDots<T>& dots, const CornerCell& cell, const TapGradients<T>& gradients,
                                            int r, CornerChoice choice, bool taken_to_be_finite) {
    const CornerSums sums = dots.sums(cell, r, choice);
    const bool finite = is_finite(sums.value + sums.slope);
    if (kMode == CornersMode::finite || (kMode == CornersMode::ask && taken_to_be_finite)) {
      strange |= !finite && (!kDotsByProducts<T> || dots.is_owner());
      return sums;
    }
    if (kDotsByProducts<T> ? !__any_sync(~0u, dots.is_owner() && !finite) : finite) return sums;
    return sum_again(cell, gradients, r);
  }
  /// A tap's sums in a way that minds what there is.
  __device__ __forceinline__ CornerSums sum_again(const CornerCell& cell, const TapGradients<T>& gradients, int r) const {
    CornerSums sums;
#pragma unroll 1
    for (int taken = 0; taken < 2; ++taken) {
      if (!(taken ? pieces.there[1] : pieces.there[0])) continue;
      CornerPiece<T> piece;
      piece.load(taken ? pieces.taken[1] : pieces.taken[0], cell);
      piece.add_one_by_one(cell, gradients, taken == 1, r, sums);
    }
    if constexpr (kDotsByProducts<T>) {
      sums.value = add_over_quad(sums.value);
      sums.slope = add_over_quad(sums.slope);
    }
    return sums;
  }
};

/// The same, and what it multiplies.
template <class T, int kOutputs>
struct CornersLane : CornersReader<T> {
  static constexpr int kChannels = kStepChannels<T>;
  StepRow rows[kDepthBlocks<T, kOutputs>][2];  // of grad_output

  /// Turns to a tile.
  __device__ __forceinline__ void load_outputs(const CornersParams& p, const CornersPointers<T>& tensors,
                                               const WarpPlace& place, const TileWork& work) {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
    const auto each = [&](auto load) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::int64_t position = std::int64_t{place.row(p, r)} * p.out_width + place.column(p, g);
        const T* row = tensors.grad_output + place.image * p.outputs.image + work.weight_group * p.outputs.group +
                       position * p.outputs.pixel;
#pragma unroll
        for (int d = 0; d < kDepthBlocks<T, kOutputs>; ++d) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            rows[d][r].store_half(half, load(row, work.output_block * kOutputs + d * kChannels + (half * 4 + q) * kVec<T>));
          }
        }
      }
    };
    // Words of 32 bits either way: of halves of 64 bits, ptxas 13.0 takes one twice in products.
    if (p.output_vectors) {
      each([&](const T* row, int output) {
        return output < p.group_outputs ? *reinterpret_cast<const uint4*>(row + output) : uint4{0, 0, 0, 0};
      });
    } else {
      each([&](const T* row, int output) { return p.load_outputs(row, true, output).whole; });
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (auto& of_depth : rows) {
#pragma unroll
        for (StepRow& row : of_depth) {
#pragma unroll
          for (unsigned& word : row.word) word = to_tf32(__uint_as_float(word));
        }
      }
    }
  }
};

/// A block of channels of a unit, and where its positions' sums go.
template <class T>
struct CornersUnit {
  ConvUnit unit;
  bool first, last;              // of its unit's blocks
  std::int64_t at[2];            // positions of the lane
  bool there[2];                 // whether they are, and are this lane's to store
  std::int64_t of_mask, of_map;  // the first tap of an image's mask, and an image's map
  const T* factors;              // of the mask, or null

  __device__ __forceinline__ CornersUnit(const CornersParams& p, const CornersPointers<T>& tensors, const WarpPlace& place,
                                         const TileWork& work, int n)
      : unit(p, work.weight_group * p.weight_units + n / p.unit_blocks),
        first(n % p.unit_blocks == 0),
        last(n % p.unit_blocks == p.unit_blocks - 1),
        of_mask(unit.mask(p, place.image)),
        of_map((std::int64_t{p.shared_map ? 0 : place.image} * p.groups + unit.group) * p.positions),
        factors(tensors.mask ? tensors.mask + of_mask : nullptr) {
    const int g = int(threadIdx.x) % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      at[r] = std::int64_t{place.row(p, r)} * p.out_width + place.column(p, g);
      there[r] = CornerDots<T>::is_owner() && place.y + r < p.out_height && place.x + g < p.out_width;
    }
  }
  /// This lane's pieces of the image.
  __device__ __forceinline__ CornerPieces pieces(const CornersParams& p, const T* image, int batch, int n) const {
    const int block = n % p.unit_blocks;
    return {image + unit.pixels(p, batch) + block * kStepChannels<T>, p.unit_vectors - block * (kStepBytes / 16)};
  }
  /// Stores a tap's gradient of the mask; `sums` are those of its unit's blocks before.
  __device__ __forceinline__ void store_value(const CornersParams& p, const CornersPointers<T>& tensors, float value, int r,
                                              int tap, float* sums) const {
    if constexpr (!kDotsByProducts<T>) value = add_over_quad(value);
    if (!there[r]) return;
    float& sum = sums[tap * kWarpRun + threadIdx.x % 32 / 4 + 8 * r];
    if (!first) value += sum;
    if (last) {
      store_sum(tensors.mask_sums, tensors.grad_mask, 0, tensors.mask_part, of_mask + tap * p.positions + at[r], value);
    } else {
      sum = value;
    }
  }
  __device__ __forceinline__ void store_slopes(const CornersParams& p, const CornersPointers<T>& tensors,
                                               const CornerTable& table, float (&slope)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float weight = table.rows[threadIdx.x % 32 / 4 + 8 * r].near;
      const float own = kDotsByProducts<T> ? slope[r] : add_over_quad(slope[r]);
      const float sum = own + nan_unless_finite(weight);  // which is so if the rate is
      slope[r] = 0;
      if (!there[r]) continue;
      if (tensors.map_sums) {
        store_sum<float>(tensors.map_sums, nullptr, 0, tensors.map_part, of_map + at[r], sum);
      } else {
        store_rate(tensors.grad_map, p.map_type, of_map + at[r], sum);
      }
    }
  }
};

/// Clears the block's share of what is to be cleared for one of its tiles.
template <class T>
__device__ __forceinline__ void clear_share(const CornersParams& p, const CornersPointers<T>& tensors, unsigned tile) {
  const std::int64_t shares = std::int64_t{p.tiles} * p.by_output_blocks.divisor * p.by_weight_groups.divisor;
  const std::int64_t count = (tensors.zeros_count + shares - 1) / shares;
  const unsigned share = tile * (p.by_output_blocks.divisor * p.by_weight_groups.divisor) +
                         blockIdx.x % (p.by_output_blocks.divisor * p.by_weight_groups.divisor);
  const std::int64_t end = min(tensors.zeros_count, (share + 1) * count);
  for (std::int64_t i = share * count + threadIdx.x; i < end; i += blockDim.x) tensors.zeros[i] = {};
}

/// Where that was faster: with column gradients of half types it was not, nor where few warps wait for their loads.
template <class T, int kOutputs>
constexpr bool kHasFlags = sizeof(T) == 4 && kOutputs == 64;

/// Whether a kernel has anything to do: always, but the second one of a call only if a block of the first set its flag. For a
/// whole block; both have as many of them.
__device__ __forceinline__ bool is_needed(const unsigned* flags, bool finite) {
  if (!flags) return true;
  let_next_start();
  if (finite) return true;
  wait_for_previous();
  unsigned found = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) found |= flags[i];
  return __syncthreads_or(int(found));
}
__device__ __forceinline__ void set_flag(unsigned* flags, unsigned strange) {
  const bool any = __syncthreads_or(int(strange));
  if (threadIdx.x == 0) flags[blockIdx.x] = any;
}

template <class T, int kOutputs, bool kWarpgroup, CornersMode kMode>
__global__ void __launch_bounds__(corners_threads(kOutputs), 1)
    conv_corners_backward_kernel(const CornersParams p, const CornersPointers<T> tensors) {
  if constexpr (kHasSquareKernel<kWarpgroup>) {
    using Ring = CornersRing<kOutputs, kWarpgroup>;
    constexpr int kChannels = kStepChannels<T>, kDepths = kDepthBlocks<T, kOutputs>;
    constexpr bool kAhead = kOutputs > 64 && kDotsByProducts<T>;  // a tap is multiplied while the one before is summed
    const bool finite = kMode == CornersMode::ask ? p.finite : kMode == CornersMode::finite;
    extern __shared__ char shared[];
    if (kHasFlags<T, kOutputs> && !is_needed(tensors.flags, finite)) return;
    const TileWork work(p);
    const int blocks = p.weight_units * p.unit_blocks, steps = blocks * p.taps;
    const std::int64_t part = std::int64_t{work.weight_group} * p.by_output_blocks.divisor + work.output_block;
    Ring ring(shared, tensors.slices + part * steps * (kOutputs * kStepBytes), steps, work.tiles(p));
    const int sums_bytes = tensors.of_mask() ? p.taps * kWarpRun * int(sizeof(float)) : 0;
    char* const of_warp = shared + Ring::kBytes + int(threadIdx.x) / 32 * (p.table_bytes() + sums_bytes);
    const CornerTable table(p.kernel_h, of_warp);
    float* const mask_sums = reinterpret_cast<float*>(of_warp + p.table_bytes());
    wait_for_previous();  // which may be reading what is cleared
    ring.start();
    CornersLane<T, kOutputs> lane;
#pragma unroll 1
    for (unsigned tile = work.tile; tile < p.tiles; tile += work.stride) {
      const WarpPlace place(p, tile);
      lane.load_outputs(p, tensors, place, work);
      clear_share(p, tensors, tile);
#pragma unroll 1
      for (int n = 0; n < blocks; ++n) {
        const CornersUnit<T> unit(p, tensors, place, work, n);
        if (unit.first) table.fill(p, place, table.load_rate(p, place, tensors.map, unit.unit.group));
        lane.pieces = unit.pieces(p, tensors.image, place.image, n);
        const auto load = [&](int r, int ky, int kx, int taken) {
          lane.load(lane.cell(table, r, ky, kx), taken, CornerChoice(p, finite, ky, kx));
        };
        load(0, 0, 0, 0);
        load(0, 0, 0, 1);
        if (finite) lane.look_at_middles(p, place);
        float d[kChannels / 2];
        const auto start_product_of_tap = [&] {
          const char* slice = ring.wait();
#pragma unroll
          for (int depth = 0; depth < kDepths; ++depth) {
            multiply<T, kChannels, kWarpgroup>(d, lane.rows[depth], slice + depth * (kChannels * kStepBytes), depth > 0);
          }
        };
        if (kAhead) start_product_of_tap();
        int ky = 0, kx = 0;
#pragma unroll 1
        for (int tap = 0; tap < p.taps; ++tap) {
          if (!kAhead) start_product_of_tap();
          const int last = kx + 1 == p.kernel_w, next_x = last ? 0 : kx + 1, next_y = ky + last;
          const CornerChoice choice(p, finite, ky, kx);
          float factor[2];
#pragma unroll
          for (int r = 0; r < 2; ++r)
            factor[r] = unit.factors ? widen(__ldg(unit.factors + tap * p.positions + unit.at[r])) : 1.f;
          finish_products(d);
          ring.release();
          const TapGradients<T> gradients(d, lane.pieces.odd);
          if (kAhead && tap + 1 < p.taps) start_product_of_tap();
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            CornerDots<T> dots;
#pragma unroll
            for (int taken = 0; taken < 2; ++taken) {
              dots.add(gradients, lane.corners[taken], taken, r, choice.count);
              if (r == 0 || tap + 1 < p.taps) load(1 - r, r == 0 ? ky : next_y, r == 0 ? kx : next_x, taken);
            }
            const CornerSums sums = lane.template sum<kMode>(dots, lane.cell(table, r, ky, kx), gradients, r, choice, finite);
            lane.slope[r] += factor[r] * sums.slope;
            if (tensors.of_mask()) unit.store_value(p, tensors, sums.value, r, tap, mask_sums);
          }
          kx = next_x;
          ky = next_y;
        }
        if (tensors.of_map() && unit.last) unit.store_slopes(p, tensors, table, lane.slope);
      }
    }
    if (finite) set_flag(tensors.flags, lane.strange);
  }
}

}  // namespace ddu::cuda
