#pragma once

// Gradients of columns, weight^T x grad_output, as tiles of 16 positions by up to 64 channels in a warp's shared memory:
//
//                     outputs (the depth)              channels                      channels
//                  ┌───────────────────┐            ┌───────────┐                 ┌───────────┐
//    16 positions  │    grad_output    │   outputs  │  weight   │   16 positions  │ d[0..7]   │ --> shared, [position][channel]
//                  └───────────────────┘            │ of a tap  │                 └───────────┘
//                                                   └───────────┘
//
// A step of the depth is 64 bytes of outputs: a lane loads 16 of a position, words 4q to 4q+3, which are its fragment's words
// of two products. The weights are packed to fit: 16 bytes of a lane hold the same outputs of one channel.

#include "backward_params.cuh"

namespace ddu::cuda {

constexpr int kColumnPositions = kMmaRows;    // of a warp
constexpr int kColumnTiles = 8;               // of kMmaColumns channels, at most
constexpr int kColumnChannels = kVec<float>;  // of a lane, once they are spread
template <class T>
constexpr int kDepthStep = 4 * kVec<T>;  // outputs

/// A warp's gradients of a tap's columns, and a place for what each lane sums for the map.
struct ColumnTile {
  static constexpr int kStride = kColumnTiles * kMmaColumns + 8;  // floats: lanes that store two of them meet no bank twice
  static constexpr int kSlots = 8 * 32;                           // a lane spreads up to 8 positions
  static constexpr int kBytes = (kColumnPositions * kStride + kSlots) * int(sizeof(float));

  float *columns, *slopes;

  __device__ __forceinline__ explicit ColumnTile(char* shared)
      : columns(reinterpret_cast<float*>(shared + int(threadIdx.x) / 32 * kBytes)),
        slopes(columns + kColumnPositions * kStride) {}

  __device__ __forceinline__ void load(int position, int vector, float (&grad)[kColumnChannels]) const {
    const auto four = VecBits<Vec<float, 4>>::read(
        *reinterpret_cast<const Vec<float, 4>*>(columns + position * kStride + vector * kColumnChannels));
#pragma unroll
    for (int c = 0; c < kColumnChannels; ++c) grad[c] = four.value[c];
  }
  /// The fragments of products, `tiles` of them.
  __device__ __forceinline__ void store(const float (&d)[kColumnTiles][4], int tiles) const {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      if (n >= tiles) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* to = columns + (g + half * 8) * kStride + n * kMmaColumns + 2 * q;
        VecBits<Vec<float, 2>>::write(*reinterpret_cast<Vec<float, 2>*>(to), {d[n][2 * half], d[n][2 * half + 1]});
      }
    }
  }
};

/// Packs weights, [unit][tap][step][tile of channels][lane], 16 bytes each; what there is none of is zero.
struct ColumnWeights {
  int steps, tiles;  // of a weight group's outputs, and of a unit's channels

  __host__ __device__ std::int64_t of_tap() const { return std::int64_t{steps} * tiles * 32; }
};

template <class T>
__global__ void __launch_bounds__(256) pack_for_columns_kernel(const ConvBackwardParams p, const ColumnWeights packed,
                                                               const T* weight, uint4* to, std::int64_t count) {
  wait_for_previous();
  const std::int64_t index = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (index >= count) return;
  const int lane = int(index % 32), tile = int(index / 32 % packed.tiles), step = int(index / 32 / packed.tiles % packed.steps);
  const std::int64_t tap_of_unit = index / packed.of_tap();
  const int tap = int(tap_of_unit % p.taps);
  const ConvUnit unit(p, int(tap_of_unit / p.taps));
  const int channel = tile * kMmaColumns + lane / 4, first = step * kDepthStep<T> + lane % 4 * kVec<T>;
  const std::int64_t channels = std::int64_t{p.weight_units} * p.unit_channels;  // of a weight group
  const T* from = weight +
                  (std::int64_t{unit.weight_group} * p.group_outputs * channels +
                   std::int64_t{unit.of_weight_group} * p.unit_channels + channel) *
                      p.taps +
                  tap;
  Bits16<T> bits;
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) {
    if (channel < p.unit_channels && first + i < p.group_outputs) bits.set(i, __ldg(from + (first + i) * channels * p.taps));
  }
  to[index] = as_factor(bits).whole;
}

/// The gradients of a tap's columns at the warp's positions, of which `there` are there, to the tile. `weights` are the lane's,
/// of the first of `tiles`; `row` is that of position lane / 4 in grad_output.
template <class T>
__device__ __forceinline__ void column_gradients(const ConvBackwardParams& p, const ColumnWeights& packed, const uint4* weights,
                                                 int tiles, const T* row, int there, const ColumnTile& tile) {
  const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
  constexpr int kTilesAtOnce = 4;
  float d[kColumnTiles][4] = {};
#pragma unroll 1
  for (int step = 0; step < packed.steps; ++step) {
    const int output = step * kDepthStep<T> + q * kVec<T>;
    const Bits16<T> a = as_factor(p.load_outputs(row, g < there, output)),
                    b = as_factor(p.load_outputs(row + 8 * p.outputs.pixel, g + 8 < there, output));
    const unsigned first[4] = {a.word[0], b.word[0], a.word[1], b.word[1]};
    const unsigned second[4] = {a.word[2], b.word[2], a.word[3], b.word[3]};
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += kTilesAtOnce) {
      if (n >= tiles) break;
      uint4 w[kTilesAtOnce];  // on their way together; tiles that there are not are multiplied, and not stored
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) w[i] = __ldg(weights + min(n + i, tiles - 1) * 32);
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) mma<T>(d[n + i], first, {w[i].x, w[i].y});
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) mma<T>(d[n + i], second, {w[i].z, w[i].w});
    }
    weights += packed.tiles * 32;
  }
  __syncwarp();  // the tap before has been read
  tile.store(d, tiles);
  __syncwarp();
}

}  // namespace ddu::cuda
