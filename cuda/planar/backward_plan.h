#pragma once

// How a backward by windows runs: which kernels, and how the host cuts the call for them.
//
//     rates          tile of backward_kernel            what is left: a wide tile            what is left then
//     of a tile      32x4, two channels a step          32x16, one channel a step            any rates, no window
//
//                    +------------------------+         +------------------------+           channels_last/
//     small    -->   |   window, 24 KB        |   -->   |   window, 64 KB        |   -->
//                    +------------------------+         |                        |
//                                                       +------------------------+
//
// A window of a wide tile holds the reach of four times the positions: its pixels are fewer for each of them, and so are the
// additions to the gradient in L2, which bound the channels-last kernels. One channel at a time leaves room for that. Of a
// deterministic call, whose tiles have twice the rows, the small ones store their windows, and wide ones add integers to
// ordered sums (core/ordered_sums.cuh).
// Where a group has one channel, a step of two would do half of its work for nothing; and sizes other than 3x3, which hold no
// gradients in registers, are faster with more threads for a window, if both gradients are wanted: there wide tiles take all.

#include "../core/make_params.h"
#include "backward.cuh"

namespace ddu::cuda {

/// Elements of the largest window of a 3x3 wide tile that is faster than rows of channels.
constexpr int kMostWideElements = 6400;

/// Elements of a tile's window for rates up to 3: what a deterministic backward stores for every tile and channel.
inline int stored_window_elements(const Geometry& g) {
  const std::int64_t rows = 8 * g.h.stride + 3 * g.h.dilation * (g.h.kernel_size - 1) + 2;
  const std::int64_t columns = 32 * g.w.stride + 3 * g.w.dilation * (g.w.kernel_size - 1) + 2 + 6;  // whole groups of four
  return static_cast<int>(std::min<std::int64_t>(rows * columns + 31, 2048));
}

/// How a backward call runs: the same for unfold_backward_workspace_bytes and for the call itself.
template <class T>
struct BackwardPlan {
  using Acc = accumulator_t<T>;
  using Kernel = void (*)(Params<Acc>, BackwardPointers<T>);

  bool deterministic, grad_input, grad_map;
  bool half_map;
  TileConfig config;
  Kernel kernel;
  Params<Acc> p;
  bool block_clears;        // blocks clear the planes of grad_input that they add to
  std::int64_t map_arrays;  // sums for the map that are kept apart; 0 where all are added to one
  bool leaves_tiles;        // tiles whose window does not fit may be marked
  bool leaves_rest;         // and not all of them are wide tiles', or their sums need the channels-last kernels' last step
  // Of wide tiles, which take what is left and fits in their windows.
  WideTiles wide;
  TileConfig wide_config{};
  Kernel wide_kernel = nullptr;  // if any
  Params<Acc> wide_p{};

  BackwardPlan(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic)
      : deterministic(deterministic), grad_input(given.grad_input), grad_map(given.grad_map), half_map(is_half(types.map)) {
    choose_kernel(g);
    p = make_params<Acc>(g, types, config, current_device());
    if (starts_wide(g)) cut_channels(g, config, g.group_channels(), p);
    if (!stores_windows()) hold_whole_image(g, config, current_device(), largest_window(g, 0), p);
    // One tile, so that no other block adds to its planes; and those small, since one block clears slower than the device.
    block_clears = !deterministic && p.by_tiles.divisor == 1 && g.pixels() <= 4096;
    map_arrays = p.by_channel_blocks.divisor * (g.map_batch == 1 ? g.batch : 1);  // blocks that share a position
    if (map_arrays > 1 && !deterministic) map_arrays = 0;
    const bool wants_wide = requested_path() == Path::wide && grad_input && !starts_wide(g);
    // Those that are stored have more conditions.
    leaves_tiles = stores_windows() || largest_window(g, 0) > p.capacity || wants_wide;
    if (leaves_tiles && grad_input && !starts_wide(g) && suits_wide_tiles(g)) cut_wide_tiles(g, types);
    if (wants_wide) p.capacity = 0;
    leaves_rest = leaves_tiles && (stores_windows() || wide.capacity != WideTiles::kAll);
  }

  /// Whether a kernel before clears grad_input. Stored windows need no zeros: they are added up and then written.
  bool clears() const { return grad_input && !block_clears && !deterministic; }
  /// Whether tiles store windows of sums for grad_input, which are added up in a fixed order.
  bool stores_windows() const { return grad_input && deterministic; }

 private:
  /// Where rows of pixels do not start at multiples of four, windows come and go pixel by pixel: rows of channels are faster.
  bool suits_wide_tiles(const Geometry& g) const {
    return g.w.size % 4 == 0 || few_channels(g) || !is_3x3(g) || deterministic || requested_path() == Path::wide;
  }
  /// How wide tiles are cut that take what those of p leave. A deterministic backward has no more blocks that share a position
  /// than those of p, whose sums for the map are kept apart.
  void cut_wide_tiles(const Geometry& g, Types types) {
    const Device& device = current_device();
    wide_kernel = choose_wide(g, wide_config);
    wide_p = make_params<Acc>(g, types, wide_config, device, p.tile_height);
    cut_channels(g, wide_config, deterministic && grad_map ? p.by_channel_blocks.divisor : g.group_channels(), wide_p);
    wide.capacity = largest_window(g, 0) <= wide_p.capacity ? WideTiles::kAll : wide_p.capacity;
    // Taps that reach so far are faster in rows of channels, unless lanes are idle there or sums are ordered. Small images
    // whose base dilation does not suggest them do without the launches for those.
    if (!deterministic && is_3x3(g) && !few_channels(g) && (wide.capacity != WideTiles::kAll || !fits_at_rate_one(g)))
      wide.capacity = std::min(wide.capacity, kMostWideElements);
    wide.tile_height = wide_p.tile_height;
    wide.part_height = p.tile_height;
  }
  /// At most so many runs of channels, that fill the device evenly: a few blocks more than run at once would take twice the
  /// time.
  void cut_channels(const Geometry& g, const TileConfig& config, std::int64_t most, Params<Acc>& p) const {
    const std::int64_t tiles = p.by_tiles.divisor * g.groups * g.batch, channels = g.group_channels();
    const std::int64_t places = std::int64_t{current_device().multiprocessors} * config.min_blocks;
    const auto steps_of = [&](std::int64_t runs) {  // and two for what a block does before its first
      return ceil_div(tiles * runs, places) * (ceil_div(channels, runs) + 2);
    };
    const std::int64_t least = deterministic ? ceil_div(channels, kMostOrderedChannels) : 1;
    std::int64_t runs = least;
    for (int rounds = 1; rounds <= 8; ++rounds) {
      const std::int64_t more = std::clamp<std::int64_t>(rounds * places / tiles, least, most);
      if (steps_of(more) < steps_of(runs)) runs = more;
    }
    p.block_channels = static_cast<int>(ceil_div(channels, runs));
    p.by_channel_blocks = Divider(static_cast<unsigned>(ceil_div(channels, p.block_channels)));
  }
  static bool is_3x3(const Geometry& g) { return g.h.kernel_size == 3 && g.w.kernel_size == 3; }
  /// Of few channels lanes of the channels-last kernels are idle, and larger windows cost less than that.
  static bool few_channels(const Geometry& g) { return g.group_channels() <= 8; }
  /// Whether the window of a tile does where all rates are 1.
  bool fits_at_rate_one(const Geometry& g) const {
    const auto extent = [](const Axis& axis, std::int64_t positions) {
      return (positions - 1) * axis.stride + 2 + axis.dilation * (axis.kernel_size - 1);
    };
    return extent(g.h, p.tile_height) * (extent(g.w, p.tile_width) + 3) <= p.capacity;
  }
  Kernel choose_wide(const Geometry& g, TileConfig& config) const {
    return deterministic ? choose_wide<BackwardForm::ordered>(g, config) : choose_wide<BackwardForm::wide>(g, config);
  }
  template <BackwardForm kForm>
  static Kernel choose_wide(const Geometry& g, TileConfig& config) {
    config = backward_config<T, 3, true, true, kForm>();
    if (few_channels(g)) config.max_elements *= 2;
    return is_3x3(g) ? backward_kernel<T, 3, true, true, kForm> : backward_kernel<T, 0, true, true, kForm>;
  }
  /// Whether all tiles are wide ones, since the others do not suit: a step of them has two channels, and they have both
  /// gradients of 3x3 alone. Small calls of one channel need more blocks.
  bool starts_wide(const Geometry& g) const {
    if (!grad_input || deterministic) return false;
    if (!is_3x3(g)) return grad_map;
    const std::int64_t many = std::int64_t{2 * 512} * current_device().multiprocessors;
    return g.group_channels() == 1 && (requested_path() == Path::wide || g.positions() * g.groups * g.batch >= many);
  }
  void choose_kernel(const Geometry& g) {
    if (starts_wide(g)) {
      kernel = choose_wide(g, config);
    } else if (is_3x3(g)) {
      choose_gradients<3>();
    } else if (stores_windows()) {
      grad_map ? choose_stored<0, true>() : choose_stored<0, false>();
    } else if (grad_input) {
      choose_added<0, true, false>();
    } else {
      choose_added<0, false, true>();
    }
    if (stores_windows()) config.max_elements = stored_window_elements(g);
  }
  template <int K>
  void choose_gradients() {
    if (stores_windows()) return grad_map ? choose_stored<K, true>() : choose_stored<K, false>();
    if (grad_input && grad_map) return choose_added<K, true, true>();
    if (grad_input) return choose_added<K, true, false>();
    choose_added<K, false, true>();
  }
  template <int K, bool kMap>
  void choose_stored() {
    config = backward_config<T, K, true, kMap, BackwardForm::store>();
    kernel = backward_kernel<T, K, true, kMap, BackwardForm::store>;
  }
  template <int K, bool kInput, bool kMap>
  void choose_added() {
    config = backward_config<T, K, kInput, kMap, BackwardForm::add>();
    kernel = backward_kernel<T, K, kInput, kMap, BackwardForm::add>;
  }
};

}  // namespace ddu::cuda
