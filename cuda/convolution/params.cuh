#pragma once

// A convolution whose samples go straight into products of the tensor cores (core/mma.cuh):
//
//   output [positions, outputs]  +=  samples [positions, channels of a tap]  x  weights [channels of a tap, outputs]
//
//                      16 positions                          A warp has a band, 8 x 4 positions: two products of 16 rows, in
//               ┌─────────┬─────────┐                        which lane 4g + q of a quad has the positions of column g, one
//             4 │ band 0  │ band 1  │   x  64 outputs        in each of the band's 4 rows, and 16-byte pieces q and q + 4
//               ├─────────┼─────────┤      for each warp     of the 128 bytes of channels that are multiplied at once:
//             4 │ band 2  │ band 3  │      that shares a
//               └─────────┴─────────┘      band               piece  | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |   lane q has
//                     a block                                        half 0          half 1              q of each half
//
// What a lane samples is its fragment of A as it is: the weights are packed in the order of channels that this makes
// (weights.cuh). One warp does a band of 64 outputs alone. For 128 or 256 outputs, 2 or 4 warps share a band: each samples two
// of its rows, of four warps one half of a step's channels, and all multiply all of them, by way of shared memory. A *step* is
// a tap of a block of channels (128 bytes or less):
//
//   step n     sample rows ── (fragments to shared memory) ── barrier ── copy of step n + 1's weights starts ── products
//
// The barrier tells that the fragments and weights of step n are there, and that nobody reads those of step n - 1 any more.

#include "../channels_last/heads.cuh"

namespace ddu::cuda {

constexpr int kBandWidth = 8, kBandRows = 4, kBands = 4;                 // of positions; two bands side by side
constexpr int kTileWidth = 2 * kBandWidth, kTileHeight = 2 * kBandRows;  // positions of a block
constexpr int kWarpOutputs = 64;
constexpr int kStepBytes = 128;  // of channels

/// What a block is made of where `kShare` warps share a band.
template <int kShare>
struct BlockShape {
  static constexpr int kWarps = kBands * kShare, kThreads = 32 * kWarps;
  static constexpr int kRows = kShare == 1 ? kBandRows : 2;  // of a band that a warp samples
  static constexpr int kHalves = kShare == 4 ? 1 : 2;        // of a step that a lane samples
  static constexpr int kOutputs = kWarpOutputs * kShare;
  static constexpr int kSliceBytes = kOutputs * kStepBytes;  // weights of a step
  static constexpr int kFragmentBytes = kShare > 1 ? kBands * kBandRows * kBandWidth * kStepBytes : 0;
  static constexpr int kBlocksOfMultiprocessor = kShare == 1 ? 3 : 4 / kShare;  // that registers are kept free for
  /// Both the weights and the fragments of a step and the next one, and the tables of taps.
  static constexpr int kTables = 2 * (kSliceBytes + kFragmentBytes);
};

struct ConvolutionParams : RowParams<float> {
  int out_height;
  int heads;
  bool shared_mask;  // one mask for all images
  std::int64_t row;  // elements from one pixel to the one below
  int units;         // of a weight group: runs of channels with one group, one head and one weight group
  int unit_channels, unit_stride, unit_vectors;  // channels; elements to the next unit's; 16-byte vectors of a pixel's
  int unit_blocks;                               // of channels, kStepBytes each or the rest of the unit
  int group_outputs;                             // outputs of a weight group
  Divider by_tile_columns, by_tiles, by_output_blocks, by_weight_groups;
  Divider by_unit_blocks, by_group_channels, by_head_channels;
  ValueLayout output;

  __host__ __device__ int steps() const { return units * unit_blocks * taps; }
};

/// What one warp does.
template <int kShare>
struct ConvolutionWork {
  static constexpr bool kDivides = true;  // ChannelBlock
  int image, weight_group, output_block;
  int band, column;                                                   // of the block; which of the warps that share the band
  int band_y, band_x;                                                 // the band's first position
  static constexpr int run = BlockShape<kShare>::kRows * kBandWidth;  // positions that this warp samples, by rows of the band

  __device__ explicit ConvolutionWork(const ConvolutionParams& p, unsigned block = blockIdx.x) {
    unsigned tile = block, rest = p.by_tiles.take(tile), tile_x = tile;
    const int tile_y = int(p.by_tile_columns.take(tile_x));
    unsigned blocks = rest;
    rest = p.by_output_blocks.take(blocks);
    output_block = int(blocks);
    unsigned group = rest;
    image = int(p.by_weight_groups.take(group));
    weight_group = int(group);
    const int warp = int(threadIdx.x) / 32;
    band = warp / kShare;
    column = warp % kShare;
    band_y = tile_y * kTileHeight + band / 2 * kBandRows;
    band_x = int(tile_x) * kTileWidth + band % 2 * kBandWidth;
  }
  /// Position `index` of those that this warp samples. Beyond the output's edges it is the last one there, whose sum nobody
  /// stores.
  __device__ __forceinline__ void place(const ConvolutionParams& p, int index, int& oy, int& ox) const {
    oy = min(band_y + 2 * first_pair() + index / kBandWidth, p.out_height - 1);
    ox = min(band_x + index % kBandWidth, p.out_width - 1);
  }
  __device__ __forceinline__ void place(const RowParams<float>& p, int index, int& oy, int& ox) const {
    place(static_cast<const ConvolutionParams&>(p), index, oy, ox);
  }
  /// Which two rows of the band this warp samples first, and which half of a step's channels.
  __device__ int first_pair() const { return column * BlockShape<kShare>::kHalves / 2; }
  __device__ int first_half() const { return BlockShape<kShare>::kHalves == 1 ? column % 2 : 0; }
  /// The first output of this warp within its weight group, and how many there are from it on.
  __device__ int first_output() const { return (output_block * kShare + column) * kWarpOutputs; }
};

/// The channels of a step: a part of a unit, the same for all warps of a block. Prepared divisions take fewer instructions, but
/// move registers: convolution_kernel, which so divides by itself, was 7 % slower with them for 5x5 taps and 256 outputs in
/// TF32.
struct ChannelBlock {
  int group, head;  // of the image's
  bool first;       // of its unit
  int halves;       // with channels
  int vectors;      // from the first one on, up to the unit's end
  std::int64_t at;  // its first channel within a pixel, in elements

  template <class Work>
  __device__ ChannelBlock(const ConvolutionParams& p, const Work& work, int block, int vector_channels) {
    constexpr int kVectors = kStepBytes / 16;
    int of_unit, unit;
    if constexpr (Work::kDivides) {
      of_unit = block % p.unit_blocks;
      unit = work.weight_group * p.units + block / p.unit_blocks;
      const int channel = unit * p.unit_channels;
      group = channel / p.group_channels;
      head = channel / int(p.by_head_channels.divisor);
    } else {
      unsigned rest = unsigned(block);
      unit = work.weight_group * p.units + int(p.by_unit_blocks.take(rest));
      of_unit = int(rest);
      unsigned of_group = unsigned(unit * p.unit_channels), of_head = of_group;
      group = int(p.by_group_channels.take(of_group));
      head = int(p.by_head_channels.take(of_head));
    }
    first = of_unit == 0;
    vectors = p.unit_vectors - of_unit * kVectors;
    halves = vectors > kVectors / 2 ? 2 : 1;
    at = std::int64_t{unit} * p.unit_stride + of_unit * (kVectors * vector_channels);
  }
};

}  // namespace ddu::cuda
