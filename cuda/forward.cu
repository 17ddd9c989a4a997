#include "forward.cuh"

#include "launch.h"

namespace ddu::cuda {
namespace {

template <class T, int K, int kThreads, int kMinBlocks, int kShare>
void forward_tiled(const Geometry& g, Types types, const ForwardPointers<T>& tensors, int width, int most_channels,
                   Stream stream) {
  using Tile = ForwardTile<T, K, kThreads, kShare>;
  const Shape shape{kThreads, width, kMinBlocks, 4, kForwardPack, most_channels, Tile::kElementBytes, 1536};
  const Layout<float> p = make_layout<float>(g, types, shape, current_device());
  launch(forward_kernel<T, K, kThreads, kMinBlocks, kShare>, blocks_of(p, g), kThreads, p.capacity * Tile::kElementBytes,
         stream, p, tensors);
}

}  // namespace

void unfold(const Geometry& g, Types types, const Forward& given, Stream stream) {
  check_types(types);
  if (g.output_numel() == 0) return;
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const ForwardPointers<T> tensors{static_cast<const T*>(given.input), given.dilation_map, static_cast<T*>(given.output)};
    if constexpr (!std::is_same_v<T, double>) {
      if (fits_tiles(g, types.input)) {
        if (g.h.kernel_size == 3 && g.w.kernel_size == 3) {
          constexpr bool wide = sizeof(T) == 4;
          return forward_tiled<T, 3, 256, 3, 4>(g, types, tensors, wide ? 64 : 32, wide ? 8 : 32, stream);
        }
        return forward_tiled<T, 0, 512, 2, 4>(g, types, tensors, 32, 16, stream);
      }
    }
    const Layout<accumulator_t<T>> p = make_layout<accumulator_t<T>>(g, types, {256, 32, 4, 4, 1, 16, 0, 0}, current_device());
    const unsigned blocks = blocks_of(p, g);
    launch(forward_direct_kernel<T, 256>, blocks, 256, 0, stream, p, tensors);
  });
}

}  // namespace ddu::cuda
