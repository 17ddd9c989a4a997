#pragma once

// PositionSamples as fragments: a lane takes 16 bytes of channels of a position from each half of a step, blends its corners in
// float32 and rounds the value once, to the type of the product.

#include "weights.cuh"

namespace ddu::cuda {

/// A lane's values of one position, rounded: word k of each half's.
struct PositionSamples {
  uint4 half[2];
};

/// 16 bytes of factors from values.
template <class T>
__device__ __forceinline__ uint4 factors_of(const float (&value)[kVec<T>]) {
  Bits16<T> bits;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) bits.word[k] = to_tf32(value[k]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (std::is_same_v<T, __half>) {
        const __half2 two = __floats2half2_rn(value[2 * k], value[2 * k + 1]);
        bits.word[k] = reinterpret_cast<const unsigned&>(two);
      } else {
        const __nv_bfloat162 two = __floats2bfloat162_rn(value[2 * k], value[2 * k + 1]);
        bits.word[k] = reinterpret_cast<const unsigned&>(two);
      }
    }
  }
  return bits.whole;
}

/// A lane's samples of a position of column g of its band. `at`: corner a of the tap, at the block's first channel. Lanes of
/// odd columns take the upper half first: two positions that a quarter of a warp reads at once then meet in no bank of L1.
template <class T, class CornerWeights>
__device__ __forceinline__ PositionSamples sample_position(const ConvolutionParams& p, const T* at, unsigned corners,
                                                           const CornerWeights& weights, const ChannelBlock& block) {
  const int lane = int(threadIdx.x) % 32;
  const int upper = block.halves > 1 ? lane / 4 & 1 : 0;
  PositionSamples samples;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (j >= block.halves) break;
    const int piece = (j ^ upper) * 4 + lane % 4;
    const auto read = Corners<T, kVec<T>>::template load<true>(at + piece * kVec<T>, p.rows.pixel, p.row,
                                                               piece < block.vectors ? corners : 0, kVec<T>);
    float value[kVec<T>];
    blend(read, weights, value);
    samples.half[j] = factors_of<T>(value);
  }
  if (upper) {
    const uint4 first = samples.half[0];
    samples.half[0] = samples.half[1];
    samples.half[1] = first;
  }
  return samples;
}

/// The samples of a band, as the warps that share it pass them on: of one warp, in its registers.
template <int kShare>
struct Fragments {
  uint4* shared;  // of the band: [row][half][lane], of a step and of the next one

  static constexpr int kVectors = BlockShape<kShare>::kFragmentBytes / 16;
  __device__ __forceinline__ Fragments(char* memory, int band)
      : shared(reinterpret_cast<uint4*>(memory) + band * kBandRows * 2 * 32 + threadIdx.x % 32) {}
  __device__ __forceinline__ void put(int step, int row, const PositionSamples& samples, int halves) const {
    uint4* to = shared + step % 2 * kVectors + row * 2 * 32;
    to[0] = samples.half[0];
    if (halves > 1) to[32] = samples.half[1];
  }
  __device__ __forceinline__ uint4 get(int step, int row, int half) const {
    return shared[step % 2 * kVectors + (row * 2 + half) * 32];
  }
};
template <>
struct Fragments<1> {
  PositionSamples row[kBandRows];

  __device__ __forceinline__ Fragments(char*, int) {}
  __device__ __forceinline__ void put(int, int r, const PositionSamples& samples, int) { row[r] = samples; }
  __device__ __forceinline__ uint4 get(int, int r, int half) const { return row[r].half[half]; }
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
