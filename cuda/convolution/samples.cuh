#pragma once

// PositionSamples as fragments: a lane takes 16 bytes of channels of a position from each half of a step, blends its corners in
// float32 and rounds the value once, to the type of the product.

#include "factors.cuh"
#include "weights.cuh"

namespace ddu::cuda {

/// A lane's samples of a position, of one half of a step. `at`: corner a of the tap, at the block's first channel.
template <class T, class CornerWeights>
__device__ __forceinline__ uint4 sample_half(const ConvolutionParams& p, const T* at, unsigned corners,
                                             const CornerWeights& weights, const ChannelBlock& block, int half) {
  const int piece = half * 4 + int(threadIdx.x) % 4;
  const auto read = Corners<T, kVec<T>>::template load<true>(at + piece * kVec<T>, p.rows.pixel, p.row,
                                                             piece < block.vectors ? corners : 0, kVec<T>);
  float value[kVec<T>];
  blend(read, weights, value);
  return factors_of<T>(value);
}

/// A lane's fragments of A for two products, of the samples of a column's position in two rows of the band.
struct PairOfRows {
  uint4 of[2];

  PairOfRows() = default;
  __device__ __forceinline__ PairOfRows(const uint4& low, const uint4& high)
      : of{{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}} {}
};

/// The samples of a band, as the warps that share it pass them on. Lanes of odd columns take the upper half of a step's
/// channels where others take the lower one: two positions that a quarter of a warp reads at once then meet in no bank of L1.
template <int kShare>
struct Fragments {
  uint4* shared;  // of the band: [two rows][half][product][lane], of a step and of the next one

  static constexpr int kVectors = BlockShape<kShare>::kFragmentBytes / 16;
  __device__ __forceinline__ Fragments(char* memory, int band)
      : shared(reinterpret_cast<uint4*>(memory) + band * (kBandRows / 2) * 4 * 32 + threadIdx.x % 32) {}
  __device__ __forceinline__ void store_half(int step, int pair, int, int half, const PairOfRows& rows) const {
    uint4* to = shared + step % 2 * kVectors + (pair * 2 + half) * 2 * 32;
    to[0] = rows.of[0];
    to[32] = rows.of[1];
  }
  __device__ __forceinline__ void sort(int, int) const {}
  __device__ __forceinline__ PairOfRows get(int step, int pair, int half) const {
    const uint4* from = shared + step % 2 * kVectors + (pair * 2 + half) * 2 * 32;
    PairOfRows rows;
    rows.of[0] = from[0];
    rows.of[1] = from[32];
    return rows;
  }
};
/// Of one warp, in its registers.
template <>
struct Fragments<1> {
  PairOfRows rows[kBandRows / 2][2];

  __device__ __forceinline__ Fragments(char*, int) {}
  /// The `taken`-th half of those that the lane takes.
  __device__ __forceinline__ void store_half(int, int pair, int taken, int, const PairOfRows& of) { rows[pair][taken] = of; }
  /// Halves that were taken in the other order change places.
  __device__ __forceinline__ void sort(int pair, int first_half) {
    if (first_half == 0) return;
    const PairOfRows first = rows[pair][0];
    rows[pair][0] = rows[pair][1];
    rows[pair][1] = first;
  }
  __device__ __forceinline__ PairOfRows get(int, int pair, int half) const { return rows[pair][half]; }
};

/// A warp's table of taps: where those of its positions lie, and what their corners weigh, the mask included.
template <int kShare>
struct ConvolutionTaps {
  using Table = TapTable<float, false>;
  static constexpr int kRun = BlockShape<kShare>::kRows * kBandWidth;  // positions
  static constexpr int kAtOnce = Table::entries(kRun) / kRun;          // taps
  static_assert(Table::entries(kRun) == 32, "an entry a lane");
  char* shared;

  /// Made where it is used: its four addresses need no registers in between.
  __device__ __forceinline__ Table table() const { return Table(shared, kRun); }

  __device__ void load_rates(const ConvolutionParams& p, const ConvolutionWork<kShare>& work, const void* map,
                             int group) const {
    const int i = int(threadIdx.x) % 32;
    if (i >= kRun) return;
    int oy, ox;
    work.place(p, i, oy, ox);
    const std::int64_t plane = std::int64_t{p.shared_map ? 0 : work.image} * p.groups + group;
    table().rates[i] = load_rate<float>(map, p.map_type, plane * p.positions + std::int64_t{oy} * p.out_width + ox);
  }
  /// Works out the taps from `tap` on, one entry of a position and a tap for each lane.
  template <class T>
  __device__ void fill(const ConvolutionParams& p, const ConvolutionWork<kShare>& work, const T* mask, int head,
                       int tap) const {
    const int entry = int(threadIdx.x) % 32;
    float factor = 1;
    if (const int of_entry = tap + entry / kRun; mask && of_entry < p.taps) {
      int oy, ox;
      work.place(p, entry % kRun, oy, ox);
      const std::int64_t plane = (std::int64_t{p.shared_mask ? 0 : work.image} * p.heads + head) * p.taps + of_entry;
      factor = widen(__ldg(mask + plane * p.positions + std::int64_t{oy} * p.out_width + ox));
    }
    table().fill(p, work, tap);
    if (!mask) return;
#pragma unroll
    for (float& weight : table().weights[entry].corner) weight *= factor;
    __syncwarp();
  }
};

}  // namespace ddu::cuda
