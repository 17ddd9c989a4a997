#include "forward.cuh"

#include "launch.h"

namespace ddu::cuda {
namespace {

template <class T, int K, int kPack, int kThreads, int kMinBlocks>
void run(const Geometry& g, Types types, const ForwardPointers<T>& tensors, int width, int most_channels, Stream stream) {
  constexpr int kShare = 4;
  using Tile = ForwardTile<T, K, kPack, kThreads, kShare>;
  const Shape shape{kThreads, width, kMinBlocks, 4, kPack, most_channels, Tile::kElementBytes, K == 3 ? 1536 : 2048};
  const Layout<float> p = make_layout<float>(g, types, shape, current_device());
  launch(forward_kernel<T, K, kPack, kThreads, kMinBlocks, kShare>, blocks_of(p, g), kThreads, p.capacity * Tile::kElementBytes,
         stream, p, tensors);
}

/// Square kernels of the usual sizes keep their cells in registers. A group of one channel has nothing to pack.
template <class T>
void run_tiled(const Geometry& g, Types types, const ForwardPointers<T>& tensors, Stream stream) {
  constexpr bool wide = sizeof(T) == 4;
  const std::int64_t k = g.h.kernel_size == g.w.kernel_size ? g.h.kernel_size : 0;
  if (g.group_channels() == 1 && k == 3) return run<T, 3, 1, 256, 4>(g, types, tensors, wide ? 64 : 32, 1, stream);
  if (k == 3) return run<T, 3, 4, 256, 3>(g, types, tensors, wide ? 64 : 32, wide ? 8 : 32, stream);
  if (k == 5) return run<T, 5, 4, 256, 3>(g, types, tensors, 32, 16, stream);
  if (k == 7) return run<T, 7, 4, 256, 3>(g, types, tensors, 32, 16, stream);
  run<T, 0, 4, 512, 2>(g, types, tensors, 32, 16, stream);
}

}  // namespace

void unfold(const Geometry& g, Types types, const Forward& given, Stream stream) {
  check_types(types);
  if (g.output_numel() == 0) return;
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const ForwardPointers<T> tensors{static_cast<const T*>(given.input), given.dilation_map, static_cast<T*>(given.output)};
    if constexpr (!std::is_same_v<T, double>) {
      if (fits_tiles(g, types.input)) return run_tiled<T>(g, types, tensors, stream);
    }
    const Layout<accumulator_t<T>> p = make_layout<accumulator_t<T>>(g, types, {256, 32, 4, 4, 1, 16, 0, 0}, current_device());
    const unsigned blocks = blocks_of(p, g);
    launch(forward_direct_kernel<T, 256>, blocks, 256, 0, stream, p, tensors);
  });
}

}  // namespace ddu::cuda
