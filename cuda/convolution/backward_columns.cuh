#pragma once

// Gradients of the input, the map and the mask. The gradients of the columns never leave the multiprocessor:
//
//   a warp: 16 positions, up to 64 channels of a unit; for each tap
//
//     grad_output, weight --tensor cores--> column gradients [16][64] in shared memory         (backward_product.cuh)
//                                             │ 4 channels of a position a lane, up to 16 lanes a position
//                                             ├── x mask x corner weights, to sums in L2 -------> gradient of the input
//     four corners of the image ------------- ├── x mask . differences, summed over taps -------> gradient of the map
//                                             └── . sampled value, summed over channels --------> gradient of the mask
//
// What bounds it is how many bytes L2 adds in a second, as in the backward of the columns: four corners of all channels for
// each tap and position. No barrier of the block: a warp minds its own.

#include "../channels_last/shared_gradient.cuh"
#include "backward_product.cuh"

namespace ddu::cuda {

template <class T>
struct ConvColumnsPointers {
  const T *grad_output, *image;  // rows
  const uint4* weights;          // packed
  const T* mask;                 // null for ones
  const void* map;
  FloatingSums<T> sums;  // of the image's gradient; no words if that is not wanted
  // Of the other gradients: what they are, or sums of them, as store_sum() has them.
  float *grad_map, *mask_sums;
  T* grad_mask;
  std::int64_t map_part, mask_part;
};

/// What one warp does.
template <class T>
struct ConvColumnsWork : WarpWork<T, kColumnChannels> {
  ConvUnit unit;
  int there;  // how many positions there are

  __device__ __forceinline__ explicit ConvColumnsWork(const ConvBackwardParams& p)
      : WarpWork<T, kColumnChannels>(p), unit(p, this->group) {
    this->group = unit.group;
    this->channels = max(min(p.unit_channels - this->channel, kColumnChannels), 0);
    there = int(min(p.positions - this->first_position, std::int64_t{kColumnPositions}));
  }
  __device__ __forceinline__ std::int64_t pixels(const ConvBackwardParams& p) const {
    return unit.pixels(p, this->image) + this->channel;
  }
};

/// Sums a value over the lanes that share a position; in all of them.
__device__ __forceinline__ float add_over_position(float sum, int lanes) {
  for (int step = 1; step < lanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

/// What becomes of one position's column gradients of a tap.
template <class T>
struct ColumnSpread {
  using Table = TapTable<float, true>;
  static constexpr unsigned kImage = 1, kMap = 2, kMask = 4;  // gradients that are wanted

  const ConvBackwardParams& p;
  const ConvColumnsWork<T>& work;
  const Table& table;
  const RowScatter<T, FloatingSums<T>, false, kColumnChannels>& scatter;
  const T* image;
  unsigned wanted;

  /// `scale` is the mask's value. Adds to `slope`, and returns the lane's part of the mask's gradient.
  __device__ __forceinline__ float position(int i, int entry, float (&grad)[kColumnChannels], float scale, float& slope) const {
    const typename Table::Where where = i < work.there && work.channels > 0 ? table.where[entry] : 0;
#pragma unroll
    for (int c = 0; c < kColumnChannels; ++c) grad[c] = c < work.channels ? grad[c] : 0;
    float sum = 0;
    if (wanted & (kMap | kMask)) {
      const auto corners = Corners<T, kColumnChannels>::load(p.image_vectors, image + (where >> 8), p.rows.pixel, p.row,
                                                             unsigned(where) & 15, work.channels);
      if (wanted & kMask) {
        float sampled[kColumnChannels];
        blend(corners, table.weights[entry], sampled);
#pragma unroll
        for (int c = 0; c < kColumnChannels; ++c) sum += grad[c] * sampled[c];
      }
      if (wanted & kMap) {
        SlopeSums<float> differences;
        differences.template add<T, kColumnChannels>(corners, grad);
        if (where & 15) slope += scale * differences.slope(table.slopes[entry].of);
      }
    }
    if (wanted & kImage) {
      float check = 0;
#pragma unroll
      for (int c = 0; c < kColumnChannels; ++c) {
        grad[c] *= scale;
        check += grad[c] * 0;
      }
      scatter.add(i, where, table.weights[entry].corner, grad, check != 0, p.image_vectors);
    }
    return sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kRowThreads, 2)
    conv_columns_backward_kernel(const ConvBackwardParams p, const ColumnWeights packed, const ConvColumnsPointers<T> tensors) {
  if constexpr (kHasMma) {
    using Spread = ColumnSpread<T>;
    extern __shared__ char shared[];
    const ConvColumnsWork<T> work(p);
    wait_for_previous();
    if (!work.any) return;
    const typename Spread::Table table(shared, kColumnPositions);
    const ColumnTile tile(shared + kRowWarps * Spread::Table::bytes(kColumnPositions));
    table.load_rates(p, work, tensors.map);
    const RowScatter<T, FloatingSums<T>, false, kColumnChannels> scatter(tensors.sums, shared, p, work);
    const bool of_mask = tensors.mask_sums || tensors.grad_mask;
    const Spread spread{
        p,
        work,
        table,
        scatter,
        tensors.image + work.pixels(p),
        (tensors.sums.words ? Spread::kImage : 0) | (tensors.grad_map ? Spread::kMap : 0) | (of_mask ? Spread::kMask : 0)};
    const int lane = int(threadIdx.x) % 32, steps = kColumnPositions >> (5 - p.log_lanes);
    const int slice_tiles = (work.lanes * kColumnChannels) / kMmaColumns, first_tile = work.slice * slice_tiles;
    const uint4* weights =
        tensors.weights + std::int64_t{work.unit.index} * p.taps * packed.of_tap() + std::int64_t{first_tile} * 32 + lane;
    const T* row = tensors.grad_output + work.unit.outputs(p, work.image) + (work.first_position + lane / 4) * p.outputs.pixel;
    const int slices = int(p.by_slices.divisor);
    const std::int64_t at_mask = work.unit.mask(p, work.image) + work.first_position;
    const std::int64_t mask_part =
        (p.shared_mask ? work.image : 0) * (p.head_units * slices) + work.unit.of_head * slices + work.slice;
    for (int step = 0; step < steps; ++step) tile.slopes[step * 32 + lane] = 0;
#pragma unroll 1
    for (int tap = 0; tap < p.taps; ++tap, weights += packed.of_tap()) {
      const int t = tap & (Spread::Table::entries(kColumnPositions) / kColumnPositions - 1);
      if (t == 0) table.fill(p, work, tap);
      column_gradients(p, packed, weights, min(packed.tiles - first_tile, slice_tiles), row, work.there, tile);
      const std::int64_t of_tap = at_mask + tap * p.positions;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const int i = (step << (5 - p.log_lanes)) + work.quad;
        float grad[kColumnChannels];
        tile.load(i, work.vector, grad);
        const float scale = tensors.mask && i < work.there ? widen(__ldg(tensors.mask + of_tap + i)) : 1.f;
        float sum = spread.position(i, t * kColumnPositions + i, grad, scale, tile.slopes[step * 32 + lane]);
        if (!of_mask) continue;
        sum = add_over_position(sum, work.lanes);
        if (work.vector == 0 && i < work.there)
          store_sum(tensors.mask_sums, tensors.grad_mask, mask_part, tensors.mask_part, of_tap + i, sum);
      }
    }
    if (!tensors.grad_map) return;
    const std::int64_t to = work.map_plane(p) * p.positions + work.first_position;
    const std::int64_t part = (p.shared_map ? work.image : 0) * (p.units * slices) + work.unit.of_group * slices + work.slice;
    for (int step = 0; step < steps; ++step) {
      const int i = (step << (5 - p.log_lanes)) + work.quad;
      const float sum = add_over_position(tile.slopes[step * 32 + lane], work.lanes) + nan_unless_finite(table.rates[i]);
      if (work.vector == 0 && i < work.there) store_sum<float>(tensors.grad_map, nullptr, part, tensors.map_part, to + i, sum);
    }
  }
}

}  // namespace ddu::cuda
