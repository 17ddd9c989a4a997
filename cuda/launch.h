#pragma once

// Host side of a launch: errors, the device, and how a call is cut into tiles.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "ddu/error.h"
#include "ddu/unfold.h"
#include "tile.cuh"

namespace ddu::cuda {

/// Throws ddu::cuda_error for anything but success.
void check(cudaError_t status, const char* call, const char* file, int line);
#define DDU_CUDA_CHECK(call) ::ddu::cuda::check((call), #call, __FILE__, __LINE__)

struct Device {
  int multiprocessors;
  int shared_per_multiprocessor;  // bytes
  int shared_per_block;
  bool overlaps;  // kernels of a stream, where they ask for it
};
/// Of the current device; asked for once.
const Device& current_device();

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* memory, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(memory) % bytes == 0; }

/// A number of blocks, if one launch can have so many.
inline unsigned grid_size(std::int64_t blocks) {
  if (blocks > INT_MAX) throw invalid_argument("the tensors are too large for one launch: split the batch");
  return static_cast<unsigned>(blocks);
}

/// How a kernel likes its work.
struct Shape {
  int threads;
  int width;                  // positions of a tile's row, where the output is wide enough
  int min_blocks;             // that share a multiprocessor
  int rounds;                 // blocks for each place on the device, at least, if there are channels to split
  int pack;                   // channels of a step
  int most_channels;          // of a block
  std::size_t element_bytes;  // of shared memory for each window element
  int most_elements;          // of a window
};

/// Whether offsets within a plane fit 32 bits, as the tiled kernels need.
inline bool fits_tiles(const Geometry& g, DType type) {
  const std::int64_t limit = (std::int64_t{1} << 32) / static_cast<std::int64_t>(size_of(type)) / 2;
  return g.pixels() < limit && g.positions() < limit;
}

template <class Acc>
Layout<Acc> make_layout(const Geometry& g, Types types, const Shape& shape, const Device& device) {
  if (g.channels > INT_MAX || g.taps() > INT_MAX / 64) {
    throw invalid_argument("the tensors are too large for one launch: split the channels, or use a smaller kernel_size");
  }
  Layout<Acc> p;
  p.y = Sampler<Acc>(g.h);
  p.x = Sampler<Acc>(g.w);
  p.height = static_cast<int>(g.h.size);
  p.width = static_cast<int>(g.w.size);
  p.out_height = static_cast<int>(g.h.out_size);
  p.out_width = static_cast<int>(g.w.out_size);
  p.kernel_h = static_cast<int>(g.h.kernel_size);
  p.kernel_w = static_cast<int>(g.w.kernel_size);
  p.channels = static_cast<int>(g.channels);
  p.groups = static_cast<int>(g.groups);
  p.group_channels = static_cast<int>(g.group_channels());
  p.shared_map = g.map_batch == 1;
  p.map_type = types.map;

  // Tiles of equal width, none wider than the shape likes by half, and then as many rows as there are threads for.
  const std::int64_t across = std::max<std::int64_t>(1, (g.w.out_size + shape.width / 2) / shape.width);
  p.tile_width = static_cast<int>(std::min<std::int64_t>(ceil_div(g.w.out_size, across), shape.threads));
  const std::int64_t rows = std::min<std::int64_t>(shape.threads / p.tile_width, g.h.out_size);
  p.tile_height = static_cast<int>(ceil_div(g.h.out_size, ceil_div(g.h.out_size, rows)));
  p.tile_rows = static_cast<int>(ceil_div(g.h.out_size, p.tile_height));
  p.tile_columns = static_cast<int>(ceil_div(g.w.out_size, p.tile_width));
  p.by_tile_width = Divider(static_cast<unsigned>(p.tile_width));
  p.by_tile_columns = Divider(static_cast<unsigned>(p.tile_columns));
  p.by_tiles = Divider(grid_size(std::int64_t{p.tile_rows} * p.tile_columns));
  p.by_groups = Divider(static_cast<unsigned>(p.groups));

  // Many channels a block share the geometry, but the device wants its places filled.
  const std::int64_t wanted = std::int64_t{shape.rounds} * device.multiprocessors * shape.min_blocks;
  const std::int64_t others = std::int64_t{p.tile_rows} * p.tile_columns * g.groups * g.batch;
  const std::int64_t parts =
      std::max<std::int64_t>(ceil_div(wanted, others), ceil_div(g.group_channels(), shape.most_channels));
  const std::int64_t steps = ceil_div(g.group_channels(), shape.pack);
  p.chunk = static_cast<int>(std::max<std::int64_t>(1, ceil_div(steps, std::min(parts, steps)))) * shape.pack;
  p.by_chunks = Divider(static_cast<unsigned>(ceil_div(g.group_channels(), p.chunk)));

  const std::size_t room =
      std::min<std::size_t>(device.shared_per_block,
                            static_cast<std::size_t>(device.shared_per_multiprocessor) / shape.min_blocks) -
      2048;
  p.capacity = static_cast<int>(
      std::min<std::size_t>(shape.most_elements, shape.element_bytes ? room / shape.element_bytes : 0) / 32 * 32);
  return p;
}

/// One block for each tile, run of channels, group and image.
template <class Acc>
unsigned blocks_of(const Layout<Acc>& p, const Geometry& g) {
  return grid_size(std::int64_t{p.tile_rows} * p.tile_columns * p.by_chunks.divisor * g.groups * g.batch);
}

/// What a launch is made of, but for the kernel and its arguments.
struct Grid {
  unsigned blocks;
  int threads;
  std::size_t shared = 0;  // bytes of dynamic memory
  bool overlap = false;    // starts while the kernel before it still runs, and calls wait_for_previous()
};

/// Launches a kernel, with as much dynamic shared memory as it asks for.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, Stream stream, Arguments... arguments) {
  if (grid.blocks == 0) return;
  if (grid.shared > 40 * 1024) {  // 48 KiB come unasked, and kernels have a little of their own
    DDU_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(grid.shared)));
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  const unsigned attributes = grid.overlap && current_device().overlaps ? 1 : 0;
  const cudaLaunchConfig_t config{dim3(grid.blocks), dim3(static_cast<unsigned>(grid.threads)), grid.shared, stream, &overlap,
                                  attributes};
  DDU_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/// Calls body with a null pointer of the element type.
template <class Body>
void visit(DType type, Body body) {
  switch (type) {
    case DType::float16:
      return body(static_cast<__half*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<__nv_bfloat16*>(nullptr));
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    case DType::float64:
      return body(static_cast<double*>(nullptr));
  }
}

}  // namespace ddu::cuda
