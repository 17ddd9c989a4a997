#pragma once

// What one instruction set's kernels offer to the parallel loops of unfold.cpp. The same source, kernels.cpp, is compiled
// once per instruction set, into a namespace of its own; only these tables cross.

#include <cstdint>

#include "ddu/dtype.h"
#include "ddu/geometry.h"
#include "ddu/unfold.h"

namespace ddu::cpu {

/// A run of channels of one image and group, and a run of positions: what one kernel call computes.
struct Block {
  std::int64_t image;
  std::int64_t group;
  std::int64_t first_channel;  // within the group
  std::int64_t channels;
  std::int64_t first_position;
  std::int64_t positions;  // forward and grad_map: at most tile_positions(geometry)
};

/// Positions whose taps are worked out together.
constexpr std::int64_t tile_positions(const Geometry& geometry) {
  const std::int64_t fitting = 4096 / (geometry.h.kernel_size + geometry.w.kernel_size);
  return fitting >= 256 ? 256 : fitting >= 16 ? fitting : 16;
}

struct Kernels {
  void (*forward)(const Geometry&, DType map_type, const Forward&, const Block&);
  /// All positions of the block's planes; `sums` holds one float plane where the input is a half type, else null.
  void (*grad_input)(const Geometry&, DType map_type, const Backward&, const Block&, float* sums);
  /// All channels of the block's group, and all images where the map is broadcast.
  void (*grad_map)(const Geometry&, DType map_type, const Backward&, const Block&);
};

namespace baseline {
extern const Kernels kernels[4];  // by input DType
}
namespace avx2 {
extern const Kernels kernels[4];
}
namespace avx512 {
extern const Kernels kernels[4];
}

}  // namespace ddu::cpu
