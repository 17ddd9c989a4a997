#pragma once

// Which taps land on a warp's pixels: lists that it makes by itself before it multiplies.
//
//   boxes      8 x 4 positions each, whose least and largest rate are known: a block notes those whose taps may land in its
//              tile, and their rates
//   lists      a warp looks for each tap which of those boxes may land in its patch of 4 x 4 pixels; then, a lane a position,
//              which of their taps do
//
//        tile: 16 x 16 pixels, a patch for each warp
//        ┌───┬───┬───┬───┐        An entry of a list is a position and where its tap lies, from the patch's middle. A cell
//        │   │   │ a╌│╌b │        whose corners lie in two patches is in the lists of both, so that each warp sums all that its
//        ├───┼───┼───┼───┤        pixels get, and nobody else adds to them. The taps' lists lie one behind the other, each
//        │   │   │ c╌│╌d │        filled up to whole passes of the products. If they do not fit, the block takes half of the
//        └───┴───┴───┴───┘        boxes at once.

#include <cfloat>

#include "backward_params.cuh"

namespace ddu::cuda {

constexpr int kGatherWarps = 16, kGatherThreads = 32 * kGatherWarps;
constexpr int kGatherPatch = 4, kTilePatches = 4, kGatherTile = kTilePatches * kGatherPatch;  // pixels; patches of a side
constexpr int kGatherTaps = 9;                // that have lists at once, at most
constexpr int kListed = 320;                  // entries of a warp; no fewer than a box has positions and a pass, for each tap
constexpr int kBoxWidth = 8, kBoxHeight = 4;  // positions, one a lane
constexpr int kGatherBoxes = 128;             // of a tile, at once
constexpr int kGatherPositions = 1 << 18;     // of an image, at most: each tile looks at all of its boxes
constexpr float kFarAway = 1e9f;              // a coordinate that reaches no pixel

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
  __device__ __forceinline__ bool there(const InputGatherParams& p) const { return y < p.out_height && x < p.out_width; }
  __device__ __forceinline__ int position(const InputGatherParams& p) const { return y * p.out_width + x; }
};

/// Finds a box's range of rates: all lanes of a warp.
__device__ __forceinline__ void find_rates(const InputGatherParams& p, const void* map, std::int64_t index, RateRange* ranges) {
  const std::int64_t plane = index / p.boxes;
  const BoxPlace at(p, int(index % p.boxes));
  const float rate = at.there(p) ? load_rate<float>(map, p.map_type, plane * p.positions + at.position(p)) : 0;
  float low = at.there(p) && is_finite(rate) ? rate : FLT_MAX, high = at.there(p) && is_finite(rate) ? rate : -FLT_MAX;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    low = fminf(low, __shfl_xor_sync(~0u, low, step));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
  }
  if (threadIdx.x % 32 == 0) ranges[index] = {low, high};
}

/// Where a box's first position lies, in pixels from a tile's first one, and which position that is.
struct alignas(16) BoxOfTile {
  float y, x;
  int position;

  __device__ __forceinline__ BoxOfTile(const InputGatherParams& p, const BoxPlace& box, int tile_y, int tile_x)
      : y(float(p.y.base(box.first_y) - tile_y) + p.y.half),
        x(float(p.x.base(box.first_x) - tile_x) + p.x.half),
        position(box.first_y * p.out_width + box.first_x) {}
};

/// How far a tap lies from its position at a rate of 1, along each axis, and the inverse of that.
struct alignas(16) TapOffset {
  float y, x, inverse_y, inverse_x;

  __device__ __forceinline__ TapOffset(const InputGatherParams& p, int tap)
      : y(p.y.offset(tap / p.kernel_w)), x(p.x.offset(tap % p.kernel_w)), inverse_y(inverse(y)), inverse_x(inverse(x)) {}

 private:
  /// Of 0 a number that is large: any rate lands there, or none does.
  __device__ __forceinline__ static float inverse(float offset) { return offset == 0 ? 1e30f : 1 / offset; }
};

constexpr float kLandingSlack = 0.0625f;  // pixels that roundings of floats may differ by

/// Rates at which a tap lands between two pixels, along one axis: those from `low` to `high`.
struct LandingRates {
  float low, high;

  /// The taps of `positions` neighbours, of which the first lies at `first`, less than `reach` from 0.
  __device__ __forceinline__ LandingRates(const Sampler<float>& axis, float inverse, float first, int positions, float reach) {
    const float a = (reach + kLandingSlack - first) * inverse,
                b = (-reach - kLandingSlack - first - float((positions - 1) * axis.stride)) * inverse;
    low = fminf(a, b);
    high = fmaxf(a, b);
  }
};

/// Whether a tap of a box may land less than `reach` from a point, of which the box lies at (y, x).
__device__ __forceinline__ bool may_land(const InputGatherParams& p, const RateRange& rates, const TapOffset& tap, float y,
                                         float x, float reach) {
  const LandingRates of_y(p.y, tap.inverse_y, y, kBoxHeight, reach), of_x(p.x, tap.inverse_x, x, kBoxWidth, reach);
  return fmaxf(fmaxf(of_y.low, of_x.low), rates.low) <= fminf(fminf(of_y.high, of_x.high), rates.high);
}

/// Whether any tap of `positions` neighbours may: a quick answer, and yes if in doubt.
__device__ __forceinline__ bool may_reach(const Sampler<float>& axis, const RateRange& rates, float first, int positions,
                                          float reach) {
  const float half = float((positions - 1) * axis.stride) / 2, farthest = axis.middle * axis.dilation;
  const float largest = fmaxf(fabsf(rates.low), fabsf(rates.high));
  return fabsf(first + half) < reach + kLandingSlack + half + farthest * largest;
}

/// Positions of a patch's taps, seen from its middle.
constexpr float kPatchMiddle = (kGatherPatch - 1) / 2.f, kPatchReach = kPatchMiddle + 1;
constexpr float kTileMiddle = (kGatherTile - 1) / 2.f, kTileReach = kTileMiddle + 1;

/// A block's shared memory behind its weights.
struct InputLists {
  float2* places;     // [entry] of this warp: y, x
  int* positions;     // [entry] likewise
  int* starts;        // [tap and one more] likewise: its first entry
  BoxOfTile* boxes;   // that may land in the tile
  RateRange* ranges;  // of them
  TapOffset* taps;
  float* rates;  // [box][position], NaN where there is none
  int* indices;  // of boxes in the map's plane
  int* box_count;

  static constexpr int kStarts = kGatherTaps + 1;
  static constexpr int kBytes = kGatherWarps * (kListed * 12 + kStarts * 4) +
                                kGatherBoxes * (int(sizeof(BoxOfTile)) + int(sizeof(RateRange)) + 32 * 4 + 4) +
                                kGatherTaps * int(sizeof(TapOffset)) + 16;

  __device__ __forceinline__ explicit InputLists(char* shared) {
    const int warp = int(threadIdx.x) / 32;
    boxes = reinterpret_cast<BoxOfTile*>(shared);
    taps = reinterpret_cast<TapOffset*>(boxes + kGatherBoxes);
    float2* const all_places = reinterpret_cast<float2*>(taps + kGatherTaps);
    places = all_places + warp * kListed;
    ranges = reinterpret_cast<RateRange*>(all_places + kGatherWarps * kListed);
    rates = reinterpret_cast<float*>(ranges + kGatherBoxes);
    indices = reinterpret_cast<int*>(rates + kGatherBoxes * 32);
    int* const all_positions = indices + kGatherBoxes;
    positions = all_positions + warp * kListed;
    int* const all_starts = all_positions + kGatherWarps * kListed;
    starts = all_starts + warp * kStarts;
    box_count = all_starts + kGatherWarps * kStarts;
  }

  /// Memory of this warp, for 8 pixels' sums of 64 outputs, once its lists are not needed any more.
  __device__ __forceinline__ float* memory() const {
    static_assert(kListed * sizeof(float2) >= 8 * 64 * sizeof(float));
    return reinterpret_cast<float*>(places);
  }
  /// Makes the table of the taps, before the block meets.
  __device__ __forceinline__ void set_taps(const InputGatherParams& p) const {
    if (int(threadIdx.x) < p.taps) taps[threadIdx.x] = TapOffset(p, int(threadIdx.x));
  }

  /// Finds boxes from `first` to `last` - 1 whose taps may land in the tile, and returns how many there are; not more than
  /// kGatherBoxes are kept. The block meets.
  __device__ __forceinline__ int find(const InputGatherParams& p, const InputGatherWork& work, const RateRange* all_ranges,
                                      const void* map, int first, int last) const {
    if (threadIdx.x == 0) *box_count = 0;
    __syncthreads();
    const std::int64_t plane = work.plane(p);
    for (int box = first + int(threadIdx.x); box < last; box += kGatherThreads) {
      const BoxOfTile place(p, BoxPlace(p, box), work.y, work.x);
      const float y = place.y - kTileMiddle, x = place.x - kTileMiddle;
      const RateRange range = all_ranges[plane * p.boxes + box];
      if (!may_reach(p.y, range, y, kBoxHeight, kTileReach) || !may_reach(p.x, range, x, kBoxWidth, kTileReach)) continue;
      bool may = false;
#pragma unroll 1
      for (int tap = 0; tap < p.taps; ++tap) may |= may_land(p, range, taps[tap], y, x, kTileReach);
      if (!may) continue;
      const int to = atomicAdd(box_count, 1);
      if (to < kGatherBoxes) {
        indices[to] = box;
        ranges[to] = range;
      }
    }
    __syncthreads();
    const int found = *box_count;
    for (int i = int(threadIdx.x) / 32; i < min(found, kGatherBoxes); i += kGatherWarps) {
      const BoxPlace at(p, indices[i]);
      if (threadIdx.x % 32 == 0) boxes[i] = BoxOfTile(p, at, work.y, work.x);
      rates[i * 32 + int(threadIdx.x) % 32] =
          at.there(p) ? load_rate<float>(map, p.map_type, plane * p.positions + at.position(p)) : NAN;
    }
    __syncthreads();
    return found;
  }

  /// Makes this warp's lists of the taps that land from those boxes from `first` to `last` - 1 of them, each of whole passes
  /// of `pass` entries, and one at least; the others reach nothing. Behind all is one more pass. False if they are too many.
  __device__ __forceinline__ bool fill(const InputGatherParams& p, int first, int last, int pass) const {
    const int lane = int(threadIdx.x) % 32, patch = int(threadIdx.x) / 32;
    const float from_y = -kPatchMiddle - float(patch / kTilePatches * kGatherPatch),
                from_x = -kPatchMiddle - float(patch % kTilePatches * kGatherPatch);
    const float lane_y = from_y + float(lane / kBoxWidth * p.y.stride), lane_x = from_x + float(lane % kBoxWidth * p.x.stride);
    const int lane_position = lane / kBoxWidth * p.out_width + lane % kBoxWidth;
    const int any_position = first < last ? boxes[first].position : 0;
    const unsigned before = (1u << lane) - 1;
    int count = 0;
#pragma unroll 1
    for (int tap = 0; tap < p.taps; ++tap) {
      const TapOffset offset = taps[tap];
      const int start = count;
      if (lane == 0) starts[tap] = start;
#pragma unroll 1
      for (int some = first; some < last; some += 32) {
        bool may = false;
        if (some + lane < last) {
          const BoxOfTile box = boxes[some + lane];
          may = may_land(p, ranges[some + lane], offset, box.y + from_y, box.x + from_x, kPatchReach);
        }
        unsigned left = __ballot_sync(~0u, may);
#pragma unroll 1
        while (left != 0) {  // two boxes at once, since each waits for its rates, and for what the lanes before have
          float2 place[2];
          int position[2];
          unsigned hits[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const bool there = left != 0;
            const int index = some + (there ? __ffs(int(left)) - 1 : 0);
            left &= left - 1;
            const BoxOfTile box = boxes[index];
            const float rate = rates[index * 32 + lane];
            place[i] = {offset.y * rate + (box.y + lane_y), offset.x * rate + (box.x + lane_x)};
            position[i] = box.position + lane_position;
            hits[i] = __ballot_sync(~0u, there && fabsf(place[i].x) < kPatchReach && fabsf(place[i].y) < kPatchReach);
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int to = count + __popc(hits[i] & before);
            if ((hits[i] >> lane & 1) && to < kListed) {
              places[to] = place[i];
              positions[to] = position[i];
            }
            count += __popc(hits[i]);
          }
        }
      }
      const int end = max((count - start + pass - 1) / pass, 1) * pass + start;
      finish(count, end, any_position);
      count = end;
    }
    if (lane == 0) starts[p.taps] = count;
    finish(count, count + pass, any_position);
    __syncwarp();
    return count + pass <= kListed;
  }

 private:
  /// Entries that reach nothing, fewer than a warp has lanes.
  __device__ __forceinline__ void finish(int first, int last, int position) const {
    const int to = first + int(threadIdx.x) % 32;
    if (to >= min(last, kListed)) return;
    places[to] = {kFarAway, kFarAway};
    positions[to] = position;
  }
};

}  // namespace ddu::cuda
