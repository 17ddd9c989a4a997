#pragma once

#include <cstddef>

namespace ddu::cuda {

/// The settings of a kernel. A constant expression, which the kernel and its launch share.
struct TileConfig {
  int threads;                // of a block: one for each position of a tile
  int tile_width;             // positions of a tile's row, where the output is wide enough
  int min_blocks;             // that share a multiprocessor
  int min_waves;              // blocks for each place on the device, at least, if there are channels to split
  int vec;                    // channels of a step
  int max_channels;           // of a block
  std::size_t element_bytes;  // of shared memory, for each element of a window
  int max_elements;           // of a window
};

}  // namespace ddu::cuda
