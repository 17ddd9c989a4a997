#pragma once

// Between planes of pixels and pixels whose channels lie side by side. As in the kernels that need it, a thread takes a square
// of kVec pixels by kVec channels and turns it in registers.

#include "../core/dependent_launch.cuh"
#include "turn.cuh"

namespace ddu::cuda {

struct ConversionParams {
  std::int64_t pixels;
  int group_channels;  // of a plane's group; the planes of a group lie one after the other
  RowLayout rows;
  int log_lanes;  // channel vectors that a warp takes
  int slices, groups;
  int share = 0;  // pixels of a block, where it takes those of a tile that no planar block turned
  Divider by_blocks, by_pixel_blocks, by_slices, by_groups;
};

/// Sums of the layout of rows, of so many bytes each, and an array of 16 bytes each; or none.
struct RowsToClear {
  unsigned char* memory = nullptr;
  int bytes = 0;
  uint4* array = nullptr;
  std::int64_t array_size = 0;

  /// All blocks of a kernel together.
  __device__ void clear_array() const {
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < array_size; i += step)
      array[i] = {0, 0, 0, 0};
  }
};

/// Which images have pixels that are not finite, as the conversion found.
struct StrangePixels {
  const unsigned char* blocks = nullptr;  // of each image, `count` bytes: zero where what a block read is finite; null: unknown
  int count = 0;

  // Which of a tap's corners kernels read of an image: what shifts TapTable::Where to their mask.
  static constexpr int kInside = 0, kNeeded = 4;

  /// For a whole block, and the same in all its threads: one load each, most often.
  __device__ __forceinline__ int corner_shift_of_block(int image) const {
    if (!blocks) return kInside;
    unsigned found = 0;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) found |= blocks[std::int64_t{image} * count + i];
    return __syncthreads_or(int(found)) ? kInside : kNeeded;
  }
  /// For a warp.
  __device__ __forceinline__ int corner_shift(int image) const {
    if (!blocks) return kInside;
    const unsigned char* of_image = blocks + std::int64_t{image} * count;
    unsigned found = 0;
#pragma unroll 4
    for (int i = int(threadIdx.x) % 32; i < count; i += 32) found |= of_image[i];
    return __any_sync(~0u, found != 0) ? kInside : kNeeded;
  }
};

/// Planes to rows, whose padding becomes zero; and, unless null, clears sums of the same layout. A warp takes whole lines of
/// both. `strange`, unless null, gets a byte for each block: whether anything it read is not finite.
template <class T>
struct PlanesToRows {
  ConversionParams params;
  const T* planes;
  T* rows;
  RowsToClear sums;
  unsigned char* strange;
  unsigned blocks;
  bool whole;  // planes start at multiples of 16 bytes, and so does the end of each; rows do anyway

  /// What block `index` does, if its plane has marks.
  __device__ void run(unsigned index, const TileMarks& tiles, const TurnTile<T>& tile) const {
    unsigned rest = index, block = rest;
    rest = params.by_blocks.take(block);
    unsigned slice = rest;
    const unsigned plane = params.by_slices.take(slice);
    unsigned group = plane;
    const unsigned image = params.by_groups.take(group);
    bool finite = true;
    const std::int64_t first_tile = std::int64_t{plane} * tiles.tiles;
    const bool turned = params.share != 0 && (tiles.marks[first_tile + block] & TileMarks::kMarked);
    if (turned) {
      finite = slice != 0 || !turned_is_strange(std::int64_t{plane} * turned_blocks * tiles.tiles + block, tiles.tiles);
    } else if (tiles.any(first_tile, tiles.tiles)) {
      const int first_channel = (int(slice) << params.log_lanes) * kVec<T>;
      const T* from = planes + (std::int64_t{plane} * params.group_channels + first_channel) * params.pixels;
      const std::int64_t to = image * params.rows.image + group * params.rows.group + first_channel;
      finite = copy(block, first_channel, from, to, tile);
    }
    if (!strange) return;
    const bool found = __syncthreads_or(!finite);
    if (threadIdx.x == 0) strange[index] = found;
  }

  const unsigned char* turned_strange = nullptr;  // of planar blocks that turned shares: [plane, block of channels, tile]
  int turned_blocks = 0;                          // of channels

 private:
  __device__ bool turned_is_strange(std::int64_t first, unsigned tiles) const {
    bool found = false;
    for (int i = int(threadIdx.x); i < turned_blocks; i += kRowThreads)
      found |= turned_strange[first + std::int64_t{i} * tiles];
    return found;
  }
  __device__ bool copy(unsigned block, int first_channel, const T* from, std::int64_t to, const TurnTile<T>& tile) const;
};

template <class T>
__device__ __forceinline__ bool PlanesToRows<T>::copy(unsigned block, int first_channel, const T* planes, std::int64_t from,
                                                      const TurnTile<T>& tile) const {
  constexpr int kN = kVec<T>;
  const ConversionParams& p = params;
  const int lane = int(threadIdx.x) % 32, lanes = 1 << p.log_lanes, units = 1 << tile.log_units, run = units * kN;
  const int channels = min(p.group_channels - first_channel, lanes * kN);
  const int vector = lane & (lanes - 1);
  unsigned found = 0;  // whether anything is not finite
  const bool shares = p.share != 0;
  const std::int64_t step = std::int64_t{shares ? 1 : p.by_blocks.divisor} * kRowWarps * run;
  const std::int64_t first = shares ? std::int64_t{block} * p.share : std::int64_t{block} * kRowWarps * run,
                     last = shares ? min(first + p.share, p.pixels) : p.pixels;
  for (std::int64_t pixel = first + std::int64_t{threadIdx.x / 32} * run; pixel < last; pixel += step) {
    const int there = int(min(last - pixel, std::int64_t{run}));
    __syncwarp();
    if (whole) {
      const int unit = lane & (units - 1);
      const T* at = planes + pixel + unit * kN;
      constexpr int kBatch = 8;
      for (int c0 = lane >> tile.log_units; c0 < lanes * kN; c0 += kBatch * (32 >> tile.log_units)) {
        Bits16<T> bits[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int c = c0 + j * (32 >> tile.log_units);
          if (c < channels && unit * kN < there) bits[j] = load_positions<true>(at + c * p.pixels, kN);
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int c = c0 + j * (32 >> tile.log_units);
          if (c >= lanes * kN) continue;
          tile.unit(c, unit) = bits[j].whole;
          found |= bits[j].strange();
        }
      }
    } else {
      for (int i = lane; i < run; i += 32) {
#pragma unroll 4
        for (int c = 0; c < lanes * kN; ++c) {
          const T value = c < channels && i < there ? __ldg(planes + c * p.pixels + pixel + i) : T(0.f);
          tile.element(c, i) = value;
          found |= widen(value) * 0 != 0;
        }
      }
    }
    __syncwarp();
    for (int unit = lane >> p.log_lanes; unit * kN < there; unit += 32 >> p.log_lanes) {
      Bits16<T> channel[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) channel[c].whole = tile.unit(vector * kN + c, unit);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (unit * kN + i >= there || vector * kN >= channels) break;
        Bits16<T> values;
#pragma unroll
        for (int c = 0; c < kN; ++c) values.set(c, channel[c].at(i));
        const std::int64_t to = from + (pixel + unit * kN + i) * p.rows.pixel + vector * kN;
        if (rows) *reinterpret_cast<uint4*>(rows + to) = values.whole;
        if (sums.memory) {
          auto* zeros = reinterpret_cast<uint4*>(sums.memory + to * sums.bytes);
          for (int v = 0; v < kN * sums.bytes / 16; ++v) zeros[v] = {0, 0, 0, 0};
        }
      }
    }
  }
  return found == 0;
}

/// What marked tiles may read, by all blocks of a kernel, which then read the rows.
template <class T>
__device__ __forceinline__ void turn_marked_planes(const PlanesToRows<T>& conversion, const TileMarks& tiles, char* shared) {
  const TurnTile<T> tile(shared, conversion.params.log_lanes);
  for (unsigned index; (index = tiles.work().take(0)) < conversion.blocks; tiles.work().finish(0))
    conversion.run(index, tiles, tile);
  tiles.work().wait(0, conversion.blocks);
}

/// All of it, or that of planes with marks: by one block each, or by fewer, where most often there are none.
template <class T>
__global__ void __launch_bounds__(kRowThreads) planes_to_rows_kernel(const PlanesToRows<T> conversion, const TileMarks tiles) {
  extern __shared__ char shared[];
  let_next_start();
  if (tiles.nothing_left()) return;
  wait_for_previous();
  conversion.sums.clear_array();
  const TurnTile<T> tile(shared, conversion.params.log_lanes);
#pragma unroll 1
  for (unsigned block = blockIdx.x; block < conversion.blocks; block += gridDim.x) conversion.run(block, tiles, tile);
}

}  // namespace ddu::cuda
