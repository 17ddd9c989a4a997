#pragma once

// Which taps land on a block's pixels: lists that its warps make together before they multiply.
//
//   boxes      8 x 4 positions each, whose least and largest rate are known: a block takes those whose taps may land in its
//   tile hits       a lane looks where the taps of a position land; those that land in the tile wait in a queue of their warp
//   lists      one for each patch of 4 x 4 pixels and tap: a hit goes to the one, two or four patches that its 2 x 2 cell meets
//
//        tile: 16 x 16 pixels, a patch for each warp
//        ┌───┬───┬───┬───┐        An entry of a list is a position and where its tap lies, in pixels from the patch's
//        │   │   │ a╌│╌b │        first one. A cell whose corners lie in two patches is in the lists of both, so that
//        ├───┼───┼───┼───┤        each warp sums all that its pixels get, and nobody else adds to them.
//        │   │   │ c╌│╌d │
//        └───┴───┴───┴───┘        If a list is full, the block takes fewer boxes at once: those of half of the positions.

#include <cfloat>

#include "backward_params.cuh"

namespace ddu::cuda {

constexpr int kGatherWarps = 16, kGatherThreads = 32 * kGatherWarps;
constexpr int kGatherPatch = 4, kTilePatches = 4, kGatherTile = kTilePatches * kGatherPatch;  // pixels; patches of a side
constexpr int kGatherTaps = 9;                // that have lists at once, at most
constexpr int kListed = 40;                   // entries of a list; no fewer than a box has positions
constexpr int kBoxWidth = 8, kBoxHeight = 4;  // positions, one a lane
constexpr int kGatherBoxes = 256;             // of a tile, at once
constexpr int kGatherPositions = 1 << 18;     // of an image, at most; an entry of a list has 28 bits for one
constexpr int kLists = kGatherWarps * kGatherTaps;
constexpr float kFarAway = 1e9f;  // a coordinate that reaches no pixel

/// The least and the largest of a box's rates that are finite; the least is larger if there are none.
struct RateRange {
  float low, high;
};

struct InputGatherParams : ConvBackwardParams {
  int out_height, kernel_h;
  int box_columns, boxes;    // of a map's plane
  int output_bytes;          // of a position
  int tiles, tiles_at_once;  // of a slice of channels: all, and those that blocks are there for
  Divider by_tile_columns, by_tile_rows, by_channel_slices, by_box_columns;
};

/// What a block does in one of its tiles.
struct InputGatherWork {
  int y, x;   // the tile's first pixel
  int slice;  // of the unit's channels
  int image;
  ConvUnit unit;

  __device__ __forceinline__ InputGatherWork(const InputGatherParams& p, unsigned unit_slice, unsigned tile)
      : slice(take(p.by_channel_slices, unit_slice)), unit(p, int(unit_slice)) {
    x = take(p.by_tile_columns, tile) * kGatherTile;
    y = take(p.by_tile_rows, tile) * kGatherTile;
    image = int(tile);
  }
  /// The map's plane.
  __device__ __forceinline__ std::int64_t plane(const InputGatherParams& p) const {
    return std::int64_t{p.shared_map ? 0 : image} * p.groups + unit.group;
  }

 private:
  __device__ __forceinline__ static int take(const Divider& by, unsigned& rest) {
    unsigned remainder = rest;
    rest = by.take(remainder);
    return int(remainder);
  }
};

/// Whether a tap of positions from `first` to `last` may land on one of `pixels` pixels from `pixel` on.
__device__ __forceinline__ bool may_land(const Sampler<float>& axis, int taps, int first, int last, const RateRange& rates,
                                         int pixel, int pixels) {
  constexpr float kSlack = 0.0625f;  // what sums of floats here and there may differ by
  const float low = float(axis.base(first) - pixel) + axis.half, high = float(axis.base(last) - pixel) + axis.half;
  const float start = axis.border ? float(-pixel) : -FLT_MAX, end = axis.border ? float(axis.size - 1 - pixel) : FLT_MAX;
  bool any = false;
#pragma unroll 1
  for (int k = 0; k < taps; ++k) {
    const float a = axis.offset(k) * rates.low, b = axis.offset(k) * rates.high;
    const float from = fminf(fmaxf(low + fminf(a, b), start), end), to = fminf(fmaxf(high + fmaxf(a, b), start), end);
    any = any || (to > -1 - kSlack && from < float(pixels) + kSlack);
  }
  return any;
}

/// A box, as a lane sees it.
struct BoxPlace {
  int first_y, first_x, y, x;  // its first position, and the lane's

  __device__ __forceinline__ BoxPlace(const InputGatherParams& p, int box) {
    unsigned column = unsigned(box);
    first_y = int(p.by_box_columns.take(column)) * kBoxHeight;
    first_x = int(column) * kBoxWidth;
    const int lane = int(threadIdx.x) % 32;
    y = first_y + lane / kBoxWidth;
    x = first_x + lane % kBoxWidth;
  }
  /// Whether taps of its positions may land on pixels of a square.
  __device__ __forceinline__ bool may_land(const InputGatherParams& p, const RateRange& rates, int pixel_y, int pixel_x,
                                           int side) const {
    return rates.low <= rates.high &&
           ddu::cuda::may_land(p.y, p.kernel_h, first_y, first_y + kBoxHeight - 1, rates, pixel_y, side) &&
           ddu::cuda::may_land(p.x, p.kernel_w, first_x, first_x + kBoxWidth - 1, rates, pixel_x, side);
  }
};

/// Finds a box's range of rates: all lanes of a warp.
__device__ __forceinline__ void find_rates(const InputGatherParams& p, const void* map, std::int64_t index, RateRange* ranges) {
  const std::int64_t plane = index / p.boxes;
  const BoxPlace at(p, int(index % p.boxes));
  const bool there = at.y < p.out_height && at.x < p.out_width;
  const float rate =
      there ? load_rate<float>(map, p.map_type, plane * p.positions + std::int64_t{at.y} * p.out_width + at.x) : 0;
  float low = there && is_finite(rate) ? rate : FLT_MAX, high = there && is_finite(rate) ? rate : -FLT_MAX;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    low = fminf(low, __shfl_xor_sync(~0u, low, step));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
  }
  if (threadIdx.x % 32 == 0) ranges[index] = {low, high};
}

/// A tap that lands in the tile, at (y, x) from its first pixel on.
struct InputHit {
  float y, x;
  unsigned at;  // position * 16 + tap
};

/// A block's shared memory behind its weights.
struct InputLists {
  static constexpr int kQueue = 64;
  float2* places;   // [list][entry]: y, x
  int* positions;   // [list][entry]
  InputHit* queue;  // of this warp
  int* counts;      // [list]
  int* boxes;       // that may land in the tile
  int* box_count;

  static constexpr int kBytes =
      kLists * kListed * 12 + kGatherWarps * kQueue * int(sizeof(InputHit)) + kLists * 4 + kGatherBoxes * 4 + 16;

  __device__ __forceinline__ explicit InputLists(char* shared) {
    places = reinterpret_cast<float2*>(shared);
    positions = reinterpret_cast<int*>(places + kLists * kListed);
    InputHit* const queues = reinterpret_cast<InputHit*>(positions + kLists * kListed);
    queue = queues + threadIdx.x / 32 * kQueue;
    counts = reinterpret_cast<int*>(queues + kGatherWarps * kQueue);
    boxes = counts + kLists;
    box_count = boxes + kGatherBoxes;
  }

  /// Finds boxes from `first` to `last` - 1 whose taps may land in the tile, and returns how many there are; if
  /// more than kGatherBoxes, not all are kept.
  __device__ __forceinline__ int find(const InputGatherParams& p, const InputGatherWork& work, const RateRange* ranges,
                                      int first, int last) const {
    if (threadIdx.x == 0) *box_count = 0;
    __syncthreads();
    ranges += work.plane(p) * p.boxes;
    for (int box = first + int(threadIdx.x); box < last; box += kGatherThreads) {
      if (!BoxPlace(p, box).may_land(p, ranges[box], work.y, work.x, kGatherTile)) continue;
      const int to = atomicAdd(box_count, 1);
      if (to < kGatherBoxes) boxes[to] = box;
    }
    __syncthreads();
    return *box_count;
  }
  /// Makes lists of the hits of those boxes from `first` to `last` - 1 of them. False if they are too many.
  __device__ __forceinline__ bool fill(const InputGatherParams& p, const InputGatherWork& work, const void* map, int first,
                                       int last) const {
    if (threadIdx.x < kLists) counts[threadIdx.x] = 0;
    __syncthreads();
    bool full = false;
    int waiting = 0;
    for (int i = first + int(threadIdx.x) / 32; i < last; i += kGatherWarps) {
      full |= look(p, work, map, work.plane(p), boxes[i], waiting);
    }
    full |= list(waiting, 0);
    return __syncthreads_or(full) == 0;
  }
  /// Ends a patch's lists with entries that reach nothing, so that they have whole passes of entries, and one at least.
  __device__ __forceinline__ void end(int patch, int taps, int pass) const {
    const int lane = int(threadIdx.x) % 32;
    if (lane < taps) {
      const int list = patch * kGatherTaps + lane, count = counts[list], first = list * kListed;
      const int position = count > 0 ? positions[first] : 0;
      for (int i = count; i < max((count + pass - 1) / pass, 1) * pass; ++i) {
        places[first + i] = {kFarAway, kFarAway};
        positions[first + i] = position;
      }
    }
    __syncwarp();
  }

 private:
  /// Puts a box's hits into the queue, of which `waiting` are there, and 32 at a time from it to the lists. True if one is
  /// full.
  __device__ __forceinline__ bool look(const InputGatherParams& p, const InputGatherWork& work, const void* map,
                                       std::int64_t plane, int box, int& waiting) const {
    const int lane = int(threadIdx.x) % 32;
    const BoxPlace at(p, box);
    const int oy = at.y, ox = at.x, position = oy * p.out_width + ox;
    const bool there = oy < p.out_height && ox < p.out_width;
    const float rate = there ? load_rate<float>(map, p.map_type, plane * p.positions + position) : 0;
    const bool any = there && is_finite(rate);
    const auto place = [&](const Sampler<float>& axis, int o, int k, int pixel, float& at) {
      const Cell<float> of = axis.cell(axis.base(o), axis.offset(k), any ? rate : 0);  // no edge extends the image
      const int from_tile = of.index - pixel;
      at = float(from_tile) + of.fraction;
      return any && from_tile >= -1 && from_tile < kGatherTile && of.index < axis.size;
    };
    bool full = false;
    constexpr int kColumns = 3;  // at once
#pragma unroll 1
    for (int first = 0; first < p.kernel_w; first += kColumns) {
      float x[kColumns];
      unsigned columns = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (first + c < p.kernel_w && place(p.x, ox, first + c, work.x, x[c])) columns |= 1u << c;
      }
#pragma unroll 1
      for (int r = 0; r < p.kernel_h; ++r) {
        float y;
        const unsigned hits = place(p.y, oy, r, work.y, y) ? columns : 0;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const bool hit = hits >> c & 1;
          const unsigned all = __ballot_sync(~0u, hit);
          if (all == 0) continue;
          if (hit) {
            const unsigned tap = unsigned(r * p.kernel_w + first + c);
            queue[waiting + __popc(all & ((1u << lane) - 1))] = {y, x[c], unsigned(position) * 16 + tap};
          }
          waiting += __popc(all);
          if (waiting < 32) continue;
          waiting -= 32;
          full |= list(32, waiting);
        }
      }
    }
    return full;
  }
  /// Takes `count` hits from the queue, from `first` on, to the lists. True if one is full.
  __device__ __forceinline__ bool list(int count, int first) const {
    __syncwarp();
    const int lane = int(threadIdx.x) % 32;
    bool full = false;
    if (lane < count) {
      const InputHit hit = queue[first + lane];
      const int row = int(floorf(hit.y)), column = int(floorf(hit.x)), tap = int(hit.at % 16);
      const int rows[2] = {row >> 2, (row + 1) >> 2}, columns[2] = {column >> 2, (column + 1) >> 2};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int down = i / 2, right = i % 2, patch_y = rows[down], patch_x = columns[right];
        if ((down && patch_y == rows[0]) || (right && patch_x == columns[0])) continue;
        if (unsigned(patch_y) >= kTilePatches || unsigned(patch_x) >= kTilePatches) continue;
        const int to = (patch_y * kTilePatches + patch_x) * kGatherTaps + tap;
        const int entry = atomicAdd(counts + to, 1);
        if (entry < kListed) {
          places[to * kListed + entry] = {hit.y - float(patch_y * kGatherPatch), hit.x - float(patch_x * kGatherPatch)};
          positions[to * kListed + entry] = int(hit.at / 16);
        } else {
          full = true;
        }
      }
    }
    __syncwarp();
    return full;
  }
};

}  // namespace ddu::cuda
