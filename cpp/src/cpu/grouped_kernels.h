#pragma once

// What one instruction set's kernels offer to the parallel loops of grouped.cpp: see unfold_kernels.h. Lanes are weight groups:
//
//   input    [group][channel of it]   a slice has one channel of each group: its `member`   -> samples S
//   output   [group][output of it]    each is the sum over channels and taps of weight[group, output, channel, tap] * S
//
// So nothing is added up over lanes, whatever the groups' sizes are. In a HeadGeometry of such a call the channels are groups.

#include <cstdint>

#include "core/scratch.h"
#include "core/tiling.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"

namespace ddu::cpu {

struct GroupedTensors {
  const void *image, *weight, *map, *mask, *bias;  // mask and bias may be null
  const void* grad;                                // of a backward, like the output
  void *output, *grad_image, *grad_mask;
  MemoryFormat format;             // of all that have positions or pixels and channels
  std::int64_t channels, outputs;  // of a group: the members that it has of either
};

/// Tiles that are added up together.
struct TileRun {
  std::int64_t first, last;
};

struct GroupedKernels {
  /// Groups of a Vec.
  int lanes;
  /// The outputs of a slice's groups at a region of positions, of all channels.
  void (*forward)(const HeadGeometry&, DType map_type, const GroupedTensors&, const Slice&, const Region&, const Scratch&);
  /// The gradients of image and map. `map_sums` is as for unfold.
  void (*backward)(const HeadGeometry&, DType map_type, const GroupedTensors&, const Slice&, const Band&, const Scratch&,
                   void* map_sums);
  /// The gradient of the weight that a slice and a run of tiles give, where the slice's weights are in `sums`, which is laid
  /// out as the weight is, of the accumulation type.
  void (*sum_positions)(const HeadGeometry&, DType map_type, const GroupedTensors&, const Slice&, const TileRun&,
                        const Scratch&, void* sums);
  /// The gradient of the mask.
  void (*sum_channels)(const HeadGeometry&, DType map_type, const GroupedTensors&, const HeadRun&, const Region&,
                       const Scratch&);
  /// As of the map: of slices' sums.
  SumMap sum;
};

namespace baseline {
extern const GroupedKernels grouped_kernels[2];  // float32 and float64
}
namespace avx2 {
extern const GroupedKernels grouped_kernels[2];
}

/// The most outputs of a group: each has a Vec for each position of a tile.
constexpr int kMostGroupOutputs = 8;

}  // namespace ddu::cpu
