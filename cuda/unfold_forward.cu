// The host side of unfold: which kernel, cut how, launched with what.

#include <optional>

#include "channels_last/columns.h"
#include "channels_last/plan.h"
#include "core/make_params.h"
#include "core/workspace.h"
#include "planar/forward.cuh"

namespace ddu::cuda {
namespace {

template <class T, int K, bool kSingleChannel>
Params<float> planar_params(const Geometry& g, Types types) {
  TileConfig config = forward_config<T, K, kSingleChannel>();
  // Few channels make little use of the vectors of the channels-last kernels: windows as large as shared memory allows. (One
  // channel, which its block reads as well without a window, has them for rates up to 16.)
  if (!kSingleChannel && g.group_channels() <= 8) config.max_elements = 8192;
  auto p = make_params<float>(g, types, config, current_device());
  hold_whole_image(g, config, current_device(), largest_window(g, kWindowPadding), p);
  return p;
}

std::int64_t tiles_of(const Params<float>& p, const Geometry& g) {
  return std::int64_t{p.by_tiles.divisor} * g.groups * g.batch;
}

/// Whether the planar kernel may mark tiles, because their window does not fit. That of one channel leaves nothing: there the
/// channels-last kernels have no vectors, and would read four times the input.
bool leaves_tiles(const Geometry& g, const Params<float>& p, bool single_channel) {
  return !single_channel && largest_window(g, kWindowPadding) > p.capacity;
}

/// Whether blocks of marked tiles turn shares of the input to rows: where the kernel that stores columns has lanes without
/// channels, blocks of one vector each are faster at it, and else it is.
template <class T>
bool turns_shares(const Geometry& g) {
  const std::int64_t vectors = ceil_div(g.group_channels(), kVec<T>);
  return kTurnsShares<T> && vectors % (std::int64_t{1} << channels_last::log2_at_least(vectors, 3)) != 0;
}

/// What a planar call needs of the workspace before that of the channels-last kernels.
struct LeftTiles {
  TileMarks marks;
  unsigned char* strange = nullptr;  // of shares, as in SharedCopy

  LeftTiles(const Geometry& g, const Params<float>& p, bool turns, Workspace& workspace)
      : marks{TileMarks::take(workspace, tiles_of(p, g)),
              p.tile_height,
              p.tile_columns,
              p.by_tiles.divisor,
              p.by_tile_width,
              tiles_of(p, g)} {
    if (!turns) return;
    strange = workspace.take<unsigned char>(work_tiles(p, g));
    marks.share = static_cast<int>(ceil_div(ceil_div(g.pixels(), std::int64_t{p.by_tiles.divisor}), 32) * 32);
  }
};

/// Asks L2 for the map, and lets the planar kernel start beside it: the map is what its blocks wait for first.
__global__ void __launch_bounds__(256) prefetch_kernel(const void* map, std::int64_t bytes) {
  let_next_start();
  prefetch_lines(map, bytes);
}

/// The planar kernel, and after it the channels-last one for the tiles that it marked.
template <class T, int K, bool kSingleChannel>
void run_planar(const Geometry& g, Types types, const Unfold& given, Stream stream) {
  constexpr TileConfig kConfig = forward_config<T, K, kSingleChannel>();
  Params<float> p = planar_params<T, K, kSingleChannel>(g, types);
  const unsigned blocks = blocks_of(p, g);
  p.vec4 = g.w.size % 4 == 0 && is_aligned(given.input, 4 * sizeof(T));
  const std::int64_t input_bytes = g.input_numel() * std::int64_t{sizeof(T)};
  if (g.h.stride * g.w.stride <= g.taps()) {  // else taps skip too much of the input
    constexpr bool kOneStep = kConfig.max_channels == kConfig.vec;
    const int resident = current_device().multiprocessors * kConfig.min_blocks;  // blocks that run at once
    p.prefetch_bytes = static_cast<unsigned>(ceil_div(ceil_div(input_bytes, blocks), 16) * 16);
    p.prefetch_burst = kOneStep ? 3 : 2;
    p.prefetch_distance = static_cast<unsigned>(kOneStep ? 2 * resident : resident / 2);
  }
  Workspace workspace(given.workspace);
  const bool leaves = leaves_tiles(g, p, kSingleChannel);
  ForwardPointers<T> tensors{static_cast<const T*>(given.input), given.dilation_map, static_cast<T*>(given.output), nullptr,
                             most_reach(p)};
  Unfold rest = given;
  std::optional<LeftTiles> left;
  if (leaves) {
    left.emplace(g, p, turns_shares<T>(g), workspace);
    rest.workspace = static_cast<unsigned char*>(given.workspace) + workspace.bytes();
    const auto copy = channels_last::input_copy(g, types, rest, left->marks);
    tensors.marks = left->marks.marks;
    if (left->marks.share) tensors.copy = {static_cast<T*>(copy.rows), copy.layout, left->marks.share, left->strange};
  }
  const bool ahead = current_device().overlaps && blocks >= std::int64_t{kConfig.min_blocks} * current_device().multiprocessors;
  if (ahead) {
    launch(prefetch_kernel, {2, 256}, stream, given.dilation_map,
           g.map_numel() * static_cast<std::int64_t>(size_of(types.map)));
  }
  launch(forward_kernel<T, K, kSingleChannel>, {blocks, kConfig.threads, p.capacity * kConfig.element_bytes, ahead}, stream, p,
         tensors, input_bytes);
  if (!leaves) return;
  channels_last::unfold(g, types, rest, left->marks, stream, {left->strange, static_cast<int>(p.by_channel_blocks.divisor)});
}

/// Calls body(K, kSingleChannel) for the kernel that serves a call. Square kernels of the usual sizes keep their cells in
/// registers. A group of one channel makes no vectors.
template <class Body>
void visit_kernel(const Geometry& g, Body body) {
  const std::int64_t k = g.h.kernel_size == g.w.kernel_size ? g.h.kernel_size : 0;
  if (k == 3 && g.group_channels() == 1) return body(std::integral_constant<int, 3>{}, std::true_type{});
  if (k == 3) return body(std::integral_constant<int, 3>{}, std::false_type{});
  if (k == 5) return body(std::integral_constant<int, 5>{}, std::false_type{});
  if (k == 7) return body(std::integral_constant<int, 7>{}, std::false_type{});
  body(std::integral_constant<int, 0>{}, std::false_type{});
}

/// Calls body(T, K, kSingleChannel) for the type, which is not float64.
template <class Body>
void visit_planar(const Geometry& g, Types types, Body body) {
  visit(types.input, [&](auto* type) {
    if constexpr (!std::is_same_v<decltype(type), double*>) {
      visit_kernel(g, [&](auto kernel, auto single) { body(type, kernel, single); });
    }
  });
}

/// Whether a tile has a window where all rates are 1: elsewhere it is not worth a try.
bool has_window_at_one(const Geometry& g, const Params<float>& p) {
  const auto extent = [](const Axis& axis, std::int64_t positions) {
    return std::min((positions - 1) * axis.stride + (axis.kernel_size - 1) * axis.dilation, axis.size + 2) + 2;
  };
  const std::int64_t rows = extent(g.h, p.tile_height), columns = ceil_div(extent(g.w, p.tile_width) + 2, 4) * 4 + 1;
  return rows * columns <= p.capacity;
}

/// Whether windows are not even tried.
bool goes_channels_last(const Geometry& g, Types types, const Unfold& given) {
  const Path path = requested_path();
  if (given.input_format == MemoryFormat::channels_last || types.input == DType::float64 || !fits_planar(g, types.input) ||
      g.padding_mode != PaddingMode::zeros || path == Path::channels_last) {
    return true;
  }
  bool fits = true;
  if (path == Path::either) {
    visit_planar(g, types, [&](auto* type, auto kernel, auto single) {
      fits = has_window_at_one(g, planar_params<std::remove_pointer_t<decltype(type)>, kernel.value, single.value>(g, types));
    });
  }
  return !fits;
}

}  // namespace

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& tensors) {
  check_types(types);
  if (g.columns_numel() == 0) return 0;
  Unfold given = tensors;
  given.input_format = format_to_read(g, types, tensors.input_format);
  Workspace workspace;
  TileMarks tiles;
  bool channels_last = true;
  if (!goes_channels_last(g, types, given)) {
    visit_planar(g, types, [&](auto* type, auto kernel, auto single) {
      using T = std::remove_pointer_t<decltype(type)>;
      const auto p = planar_params<T, kernel.value, single.value>(g, types);
      channels_last = leaves_tiles(g, p, single.value);
      if (channels_last) tiles = LeftTiles(g, p, turns_shares<T>(g), workspace).marks;
    });
  }
  return channels_last ? workspace.bytes() + channels_last::unfold_workspace_bytes(g, types, given, tiles) : 0;
}

void unfold(const Geometry& g, Types types, const Unfold& tensors, Stream stream) {
  check_types(types);
  if (g.columns_numel() == 0) return;
  Unfold given = tensors;
  given.input_format = format_to_read(g, types, tensors.input_format);
  if (goes_channels_last(g, types, given)) return channels_last::unfold(g, types, given, {}, stream);
  visit_planar(g, types, [&](auto* type, auto kernel, auto single) {
    run_planar<std::remove_pointer_t<decltype(type)>, kernel.value, single.value>(g, types, given, stream);
  });
}

}  // namespace ddu::cuda
