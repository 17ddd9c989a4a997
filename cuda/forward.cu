#include "forward.cuh"

#include "launch.h"

namespace ddu::cuda {
namespace {

/// Blocks walk over up to most_channels; without kWalks each takes one pack, and needs one window.
template <class T, int K, int kPack, int kThreads, int kMinBlocks, bool kWalks = true>
void run(const Geometry& g, Types types, const ForwardPointers<T>& tensors, int width, int most_channels, Stream stream) {
  constexpr std::size_t element_bytes = (kWalks ? 2 : 1) * sizeof(Pack<T, kPack>);  // two windows: one read, one filled
  const Shape shape{kThreads, width, kMinBlocks, kPack == 8 ? 1 : 4, kPack, most_channels, element_bytes, K == 3 ? 1536 : 2048};
  Layout<float> p = make_layout<float>(g, types, shape, current_device());
  const unsigned blocks = blocks_of(p, g);
  p.quads = g.w.size % 4 == 0 && is_aligned(tensors.input, 4 * sizeof(T));
  const std::int64_t input_bytes = g.input_numel() * std::int64_t{sizeof(T)};
  if (g.h.stride * g.w.stride <= g.taps()) {  // else taps skip too much of the input
    p.part_bytes = static_cast<unsigned>(ceil_div(ceil_div(input_bytes, blocks), 16) * 16);
    const int places = current_device().multiprocessors * kMinBlocks;
    p.burst = kWalks ? 2 : 3;
    p.ahead = static_cast<unsigned>(kWalks ? places / 2 : 2 * places);
  }
  launch(forward_kernel<T, K, kPack, kThreads, kMinBlocks, kWalks>, {blocks, kThreads, p.capacity * element_bytes}, stream, p,
         tensors, input_bytes);
}

/// Square kernels of the usual sizes keep their cells in registers. A group of one channel has nothing to pack.
template <class T>
void run_tiled(const Geometry& g, Types types, const ForwardPointers<T>& tensors, Stream stream) {
  constexpr bool wide = sizeof(T) == 4;
  const std::int64_t k = g.h.kernel_size == g.w.kernel_size ? g.h.kernel_size : 0;
  if (g.group_channels() == 1 && k == 3) return run<T, 3, 1, 256, 4, false>(g, types, tensors, wide ? 64 : 32, 1, stream);
  if (k == 3) {
    if constexpr (wide) {
      return run<T, 3, 4, 256, 3, false>(g, types, tensors, 64, 4, stream);
    } else {
      return run<T, 3, 8, 256, 2>(g, types, tensors, 64, 32, stream);
    }
  }
  if (k == 5) return run<T, 5, 4, 256, 3>(g, types, tensors, 32, 16, stream);
  if (k == 7) return run<T, 7, 4, 256, 3>(g, types, tensors, 32, 16, stream);
  run<T, 0, 4, 512, 2>(g, types, tensors, 32, 16, stream);
}

}  // namespace

std::size_t unfold_workspace_bytes(const Geometry&, Types types, const Unfold&) {
  check_types(types);
  return 0;
}

void unfold(const Geometry& g, Types types, const Unfold& given, Stream stream) {
  check_types(types);
  if (g.columns_numel() == 0) return;
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const ForwardPointers<T> tensors{static_cast<const T*>(given.input), given.dilation_map, static_cast<T*>(given.output)};
    if constexpr (!std::is_same_v<T, double>) {
      if (fits_tiles(g, types.input)) return run_tiled<T>(g, types, tensors, stream);
    }
    const Layout<accumulator_t<T>> p = make_layout<accumulator_t<T>>(g, types, {256, 32, 4, 4, 1, 16, 0, 0}, current_device());
    const unsigned blocks = blocks_of(p, g);
    launch(forward_direct_kernel<T, 256>, {blocks, 256}, stream, p, tensors);
  });
}

}  // namespace ddu::cuda
