// The host side of unfold: which kernel, cut how, launched with what.

#include "channels_last/columns.h"
#include "core/make_params.h"
#include "planar/forward.cuh"

namespace ddu::cuda {
namespace {

template <class T, int K, bool kSingleChannel = false>
void run_planar(const Geometry& g, Types types, const ForwardPointers<T>& tensors, Stream stream) {
  constexpr TileConfig kConfig = forward_config<T, K, kSingleChannel>();
  Params<float> p = make_params<float>(g, types, kConfig, current_device());
  const unsigned blocks = blocks_of(p, g);
  p.vec4 = g.w.size % 4 == 0 && is_aligned(tensors.input, 4 * sizeof(T));
  const std::int64_t input_bytes = g.input_numel() * std::int64_t{sizeof(T)};
  if (g.h.stride * g.w.stride <= g.taps()) {  // else taps skip too much of the input
    constexpr bool kOneStep = kConfig.max_channels == kConfig.vec;
    const int resident = current_device().multiprocessors * kConfig.min_blocks;  // blocks that run at once
    p.prefetch_bytes = static_cast<unsigned>(ceil_div(ceil_div(input_bytes, blocks), 16) * 16);
    p.prefetch_burst = kOneStep ? 3 : 2;
    p.prefetch_distance = static_cast<unsigned>(kOneStep ? 2 * resident : resident / 2);
  }
  launch(forward_kernel<T, K, kSingleChannel>, {blocks, kConfig.threads, p.capacity * kConfig.element_bytes}, stream, p,
         tensors, input_bytes);
}

/// Square kernels of the usual sizes keep their cells in registers. A group of one channel makes no vectors.
template <class T>
void run_kernel_size(const Geometry& g, Types types, const ForwardPointers<T>& tensors, Stream stream) {
  const std::int64_t k = g.h.kernel_size == g.w.kernel_size ? g.h.kernel_size : 0;
  if (k == 3 && g.group_channels() == 1) return run_planar<T, 3, true>(g, types, tensors, stream);
  if (k == 3) return run_planar<T, 3>(g, types, tensors, stream);
  if (k == 5) return run_planar<T, 5>(g, types, tensors, stream);
  if (k == 7) return run_planar<T, 7>(g, types, tensors, stream);
  run_planar<T, 0>(g, types, tensors, stream);
}

/// Whether windows are not even tried.
bool goes_channels_last(const Geometry& g, Types types, const Unfold& given) {
  return given.input_format == MemoryFormat::channels_last || types.input == DType::float64 || !fits_planar(g, types.input) ||
         channels_last::forced();
}

}  // namespace

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& given) {
  check_types(types);
  if (g.columns_numel() == 0 || !goes_channels_last(g, types, given)) return 0;
  return channels_last::unfold_workspace_bytes(g, types, given);
}

void unfold(const Geometry& g, Types types, const Unfold& given, Stream stream) {
  check_types(types);
  if (g.columns_numel() == 0) return;
  if (goes_channels_last(g, types, given)) return channels_last::unfold(g, types, given, stream);
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const ForwardPointers<T> tensors{static_cast<const T*>(given.input), given.dilation_map, static_cast<T*>(given.output)};
    if constexpr (!std::is_same_v<T, double>) run_kernel_size<T>(g, types, tensors, stream);
  });
}

}  // namespace ddu::cuda
