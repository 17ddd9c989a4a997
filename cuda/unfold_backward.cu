// The host side of unfold_backward: which kernels, cut how, launched with what, and the scratch memory that they share.
//
//     clear_kernel          zeros in grad_input, where blocks add to it and do not clear it themselves
//     backward_kernel       both gradients, tile by tile; marks the tiles whose window does not fit
//     add_windows_kernel    deterministic: grad_input from the windows that tiles stored
//     (wide tiles, and the channels-last kernels, for the tiles that are marked)
//     fallback_kernel       deterministic: gradients that neither took, which most often are none
//     convert_kernel        half types: float32 sums of grad_input, rounded once
//     add_arrays_kernel     grad_map from sums kept apart or in float32
//
// Some of them start while the one before still runs (Grid::overlap, core/dependent_launch.cuh).

#include "channels_last/columns.h"
#include "channels_last/plan.h"
#include "core/elementwise.cuh"
#include "core/workspace.h"
#include "planar/backward_plan.h"
#include "planar/deterministic.cuh"
#include "planar/deterministic_fallback.cuh"

namespace ddu::cuda {
namespace {

/// Beyond these taps of a window, so many can meet in a pixel that integer sums would lose float32's precision.
constexpr std::int64_t kMaxFixedPointTaps = 121;

/// The scratch memory of a call.
template <class T>
struct Scratch {
  using Acc = accumulator_t<T>;

  unsigned char* marks = nullptr;  // of tiles; as what follows, null if not needed
  float* input_sums = nullptr;     // of a half type's grad_input
  Acc* map_sums = nullptr;         // arrays of sums for grad_map, first those of backward_kernel
  std::int64_t map_arrays = 0;     // all of them: the channels-last kernels write the first ones, at positions of marked tiles
  unsigned char* rest = nullptr;   // of the channels-last kernels
  // Of a deterministic backward, as in BackwardPointers. FixedPointSums lie where the windows were, as do `planes` and `rest`
  // before.
  float* window_sums = nullptr;
  unsigned long long* high = nullptr;
  unsigned* low = nullptr;
  WindowRect* window_rects = nullptr;
  unsigned long long* largest = nullptr;
  unsigned char* fallback_marks = nullptr;
  OrderedPlanes planes{};        // of wide tiles; their `largest` is of the channels-last kernels too
  std::size_t zeroed_bytes = 0;  // of largest, fallback_marks and planes.largest, zero before the first kernel

  Scratch(const Geometry& g, Types types, const UnfoldBackward& given, const BackwardPlan<T>& plan, Workspace& workspace) {
    const std::int64_t groups = g.batch * g.groups, tiles = plan.p.by_tiles.divisor;
    if (plan.leaves_tiles) marks = TileMarks::take(workspace, groups * tiles);
    if (plan.grad_input && sizeof(T) == 2) input_sums = workspace.take<float>(g.input_numel());
    if (plan.grad_map) {
      map_arrays = plan.map_arrays;
      if (plan.deterministic && plan.leaves_rest) {
        map_arrays = std::max(map_arrays, channels_last::rest_map_arrays(g, types, given));
      }
      if (map_arrays > 1 || plan.half_map)
        map_sums = workspace.take<Acc>(std::max<std::int64_t>(map_arrays, 1) * g.map_numel());
    }
    Workspace after = workspace;
    if (plan.stores_windows() && plan.wide_kernel) planes.words = after.take<unsigned long long>(g.input_numel());
    if (plan.leaves_rest) {
      const auto bytes = channels_last::unfold_backward_workspace_bytes(g, types, given, plan.deterministic, true);
      rest = after.take<unsigned char>(static_cast<std::int64_t>(bytes));
    }
    if (plan.grad_input && plan.deterministic) {
      Workspace windows = workspace, sums = workspace;
      window_sums = windows.take<float>(g.batch * g.channels * tiles * plan.p.capacity);
      high = sums.take<unsigned long long>(g.input_numel());
      low = sums.take<unsigned>(g.input_numel());
      workspace = Workspace::overlay(Workspace::overlay(windows, sums), after);
      window_rects = workspace.take<WindowRect>(groups * tiles);
      const std::size_t before = workspace.bytes();
      const std::int64_t channels = g.batch * g.channels;
      largest = workspace.take<unsigned long long>(channels);
      constexpr std::int64_t kHead = sizeof(FallbackHead);
      fallback_marks = workspace.take<unsigned char>(kHead + channels * (1 + tiles));
      if (fallback_marks) fallback_marks += kHead;
      planes.largest = workspace.take<unsigned long long>(channels);
      planes.fallback_marks = fallback_marks;
      zeroed_bytes = workspace.bytes() - before;
    } else {
      workspace = after;
    }
  }
};

template <class T>
class Call {
 public:
  using Acc = accumulator_t<T>;

  Call(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream)
      : g_(g),
        given_(given),
        stream_(stream),
        plan_(g, types, given, deterministic),
        workspace_(given.workspace),
        scratch_(g, types, given, plan_, workspace_),
        types_(types) {
    tensors_.grad_output = static_cast<const T*>(given.grad_output);
    tensors_.input = static_cast<const T*>(given.input);
    tensors_.map = given.dilation_map;
    tensors_.grad_input =
        scratch_.input_sums ? reinterpret_cast<Acc*>(scratch_.input_sums) : static_cast<Acc*>(given.grad_input);
    tensors_.grad_map = scratch_.map_sums ? scratch_.map_sums : static_cast<Acc*>(given.grad_map);
    tensors_.block_clears = plan_.block_clears;
    tensors_.map_stride = given.grad_map && plan_.map_arrays ? g.map_numel() : 0;
    tensors_.marks = scratch_.marks;
    tensors_.wide.capacity = plan_.wide.capacity;
    tensors_.wide.tile_height = plan_.wide.tile_height;
    tensors_.window_sums = scratch_.window_sums;
    tensors_.window_rects = scratch_.window_rects;
    tensors_.fallback_marks = scratch_.fallback_marks;
    tensors_.high = scratch_.high;
    tensors_.low = scratch_.low;
    tensors_.largest = scratch_.largest;
    plan_.p.vec4 =
        g.w.size % 4 == 0 && is_aligned(tensors_.input, 4 * sizeof(T)) && is_aligned(tensors_.grad_input, 4 * sizeof(Acc));
  }

  std::size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() {
    clear();
    sum_tiles();
    if (given_.grad_input && plan_.deterministic) {
      add_windows();
    }
    if (plan_.stores_windows()) channels_last::prepare_rest(g_, types_, rest_call(), stream_, rest());
    if (plan_.wide_kernel) sum_wide_tiles();
    if (plan_.leaves_rest) add_rest();
    if (plan_.stores_windows()) add_fallback();
    if constexpr (sizeof(T) == 2) {
      if (given_.grad_input) convert_input();
    }
    if (scratch_.map_sums) convert_map();
  }

 private:
  void clear() {
    if (given_.grad_map && plan_.map_arrays == 0)
      zero(tensors_.grad_map, sizeof(Acc) * static_cast<std::size_t>(g_.map_numel()));
    zero(scratch_.largest, scratch_.zeroed_bytes);
    if (given_.grad_map && scratch_.map_arrays > plan_.map_arrays) {  // those that only the channels-last kernels write
      zero(tensors_.grad_map + plan_.map_arrays * g_.map_numel(),
           sizeof(Acc) * static_cast<std::size_t>((scratch_.map_arrays - plan_.map_arrays) * g_.map_numel()));
    }
    if (!plan_.clears()) return;
    // Last, since what follows may overlap with it.
    const auto blocks = static_cast<unsigned>(current_device().multiprocessors);
    launch(clear_kernel<Acc>, {blocks, ElementRuns::kThreads}, stream_, tensors_.grad_input, g_.input_numel(),
           is_aligned(tensors_.grad_input, 4 * sizeof(Acc)), given_.dilation_map,
           g_.map_numel() * static_cast<std::int64_t>(size_of(types_.map)));
  }
  void zero(void* memory, std::size_t bytes) {
    if (bytes) DDU_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_));
  }

  /// Both gradients, tile by tile.
  void sum_tiles() {
    BackwardPointers<T> tensors = tensors_;
    if (!tensors.grad_input && !tensors.grad_map) return;
    launch(plan_.kernel,
           {blocks_of(plan_.p, g_), plan_.config.threads, plan_.p.capacity * plan_.config.element_bytes, plan_.clears()},
           stream_, plan_.p, tensors);
  }

  /// The same of what the tiles left, where wide tiles have windows.
  void sum_wide_tiles() {
    BackwardPointers<T> tensors = tensors_;
    tensors.wide = plan_.wide;
    if (!plan_.deterministic) tensors.map_stride = 0;
    tensors.high = scratch_.planes.words;
    tensors.largest = scratch_.planes.largest;
    Params<Acc> p = plan_.wide_p;
    p.vec4 = plan_.p.vec4;
    launch(plan_.wide_kernel, {blocks_of(p, g_), plan_.wide_config.threads, p.capacity * plan_.wide_config.element_bytes, true},
           stream_, p, tensors);
  }

  void add_windows() {
    BackwardPointers<float> sums{};  // the tensors that do not depend on the input's type
    if constexpr (std::is_same_v<Acc, float>) {
      sums.grad_input = tensors_.grad_input;
      sums.window_sums = tensors_.window_sums;
      sums.window_rects = tensors_.window_rects;
      const AddWindows cut(plan_.p);
      launch(add_windows_kernel, {grid_size(cut.blocks(g_.groups * g_.batch)), AddWindows::kThreads}, stream_, plan_.p, sums,
             cut);
    }
  }

  /// Adds gradients of tiles for which there is no fixed-point unit, or no unit of ordered sums.
  void add_fallback() {
    if constexpr (std::is_same_v<Acc, float>) {
      Params<float> p = plan_.p;
      const std::int64_t channels = g_.batch * g_.channels;
      p.block_channels = 1;
      p.by_channel_blocks = Divider(static_cast<unsigned>(g_.group_channels()));
      const std::int64_t enough = std::max<std::int64_t>(8, ceil_div(1024, channels));
      const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(p.by_tiles.divisor, enough));
      const unsigned pieces = grid_size(blocks * channels), few = static_cast<unsigned>(2 * current_device().multiprocessors);
      const unsigned long long* of_sample = scratch_.planes.largest;
      launch(fallback_kernel<T>, {std::min(pieces, few), FallbackBlock<T>::kThreads, 0, true}, stream_, p, tensors_, of_sample,
             blocks, pieces);
    }
  }

  void convert_input() {
    Grid grid = elementwise_grid();
    grid.overlap = true;
    launch(convert_kernel<T>, grid, stream_, static_cast<const float*>(tensors_.grad_input), static_cast<T*>(given_.grad_input),
           g_.input_numel(), is_aligned(given_.grad_input, 4 * sizeof(T)));
  }
  Grid elementwise_grid() const { return {grid_size(ElementRuns::blocks(g_.input_numel())), ElementRuns::kThreads}; }

  void convert_map() {
    if constexpr (sizeof(T) == 2) {
      if (plan_.half_map) return add_map_arrays(static_cast<T*>(given_.grad_map));
    }
    add_map_arrays(static_cast<Acc*>(given_.grad_map));
  }
  template <class M>
  void add_map_arrays(M* grad_map) {
    constexpr int kThreads = 256;
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(g_.map_numel(), kThreads), 16384));
    launch(add_arrays_kernel<M, Acc>, {blocks, kThreads}, stream_, static_cast<const Acc*>(tensors_.grad_map), grad_map,
           g_.map_numel(), std::max<std::int64_t>(scratch_.map_arrays, 1));
  }

  /// Both gradients of the tiles without a window, by the channels-last kernels, which end at once where there are none.
  void add_rest() {
    const channels_last::Rest of = rest();
    channels_last::unfold_backward(g_, types_, rest_call(), plan_.deterministic, stream_, &of);
  }
  UnfoldBackward rest_call() const {
    UnfoldBackward given = given_;
    given.workspace = scratch_.rest;
    return given;
  }
  channels_last::Rest rest() const {
    channels_last::Rest rest{};
    rest.tiles = {scratch_.marks,        plan_.p.tile_height,
                  plan_.p.tile_columns,  plan_.p.by_tiles.divisor,
                  plan_.p.by_tile_width, std::int64_t{plan_.p.by_tiles.divisor} * g_.groups * g_.batch};
    rest.grad_input = tensors_.grad_input;
    rest.grad_map_is_whole = !plan_.deterministic;
    rest.grad_map = tensors_.grad_map;
    rest.planes = scratch_.planes;
    return rest;
  }

  const Geometry& g_;
  const UnfoldBackward& given_;
  Stream stream_;
  BackwardPlan<T> plan_;
  Workspace workspace_;
  Scratch<T> scratch_;
  Types types_;
  BackwardPointers<T> tensors_{};
};

/// Calls body with a null pointer of the type, which is not float64.
template <class Body>
void visit_planar(Types types, Body body) {
  visit(types.input, [&](auto* type) {
    if constexpr (!std::is_same_v<decltype(type), double*>) body(type);
  });
}

/// Whether windows are not even tried.
bool goes_channels_last(const Geometry& g, Types types, const UnfoldBackward& given) {
  return given.input_format == MemoryFormat::channels_last || types.input == DType::float64 || !fits_planar(g, types.input) ||
         g.taps() > kMaxFixedPointTaps || g.padding_mode != PaddingMode::zeros || requested_path() == Path::channels_last;
}

/// A deterministic call with channels_last tensors that turns them to planes, and its gradient back: windows cost less than
/// ordered sums of rows, by more than that.
struct ByPlanes {
  UnfoldBackward given;  // of the planes
  std::size_t bytes;

  ByPlanes(const Geometry& g, Types types, const UnfoldBackward& tensors) : given(tensors) {
    given.input_format = MemoryFormat::contiguous;
    const auto bytes_of_planes = unfold_backward_workspace_bytes(g, types, given, true);
    const std::int64_t bytes_of_input = g.input_numel() * static_cast<std::int64_t>(size_of(types.input));
    Workspace workspace(tensors.workspace);
    if (tensors.grad_map) given.input = workspace.take<unsigned char>(bytes_of_input);
    given.grad_input = workspace.take<unsigned char>(bytes_of_input);
    given.workspace = workspace.take<unsigned char>(static_cast<std::int64_t>(bytes_of_planes));
    bytes = workspace.bytes();
  }
  /// Whether a call may go this way, if its tensors are aligned.
  static bool suits(const Geometry& g, Types types, const UnfoldBackward& tensors, bool deterministic) {
    UnfoldBackward given = tensors;
    given.input_format = MemoryFormat::contiguous;
    return deterministic && tensors.input_format == MemoryFormat::channels_last && tensors.grad_input &&
           !goes_channels_last(g, types, given) &&
           g.group_channels() % (16 / static_cast<std::int64_t>(size_of(types.input))) == 0;
  }
  void run(const Geometry& g, Types types, const UnfoldBackward& tensors, Stream stream) const {
    const RowLayout rows = channels_last::own_rows(g);
    if (given.grad_map) {
      channels_last::rows_to_planes(g, types.input, rows, tensors.input, const_cast<void*>(given.input), stream);
    }
    unfold_backward(g, types, given, true, stream);
    channels_last::planes_to_rows(g, types.input, rows, {}, given.grad_input, tensors.grad_input, {}, nullptr, stream);
  }
};

}  // namespace

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& tensors, bool deterministic) {
  check_types(types);
  if (g.columns_numel() == 0 || !(tensors.grad_input || tensors.grad_map)) return 0;
  UnfoldBackward given = tensors;
  given.input_format = format_to_read(g, types, tensors.input_format);
  if (goes_channels_last(g, types, given)) {
    const auto bytes_of_rows = channels_last::unfold_backward_workspace_bytes(g, types, given, deterministic);
    if (!ByPlanes::suits(g, types, given, deterministic)) return bytes_of_rows;
    return std::max(bytes_of_rows, ByPlanes(g, types, given).bytes);
  }
  std::size_t bytes = 0;
  visit_planar(types, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Workspace workspace;
    Scratch<T>(g, types, given, BackwardPlan<T>(g, types, given, deterministic), workspace);
    bytes = workspace.bytes();
  });
  return bytes;
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& tensors, bool deterministic, Stream stream) {
  check_types(types);
  UnfoldBackward given = tensors;
  given.input_format = format_to_read(g, types, tensors.input_format);
  if (!given.grad_input && !given.grad_map) return;
  if (g.columns_numel() == 0) {  // no column carries a gradient
    if (given.grad_map && g.map_numel() > 0) {
      DDU_CUDA_CHECK(cudaMemsetAsync(given.grad_map, 0, size_of(types.map) * static_cast<std::size_t>(g.map_numel()), stream));
    }
    return;
  }
  if (goes_channels_last(g, types, given)) {
    if (ByPlanes::suits(g, types, given, deterministic) && is_aligned(given.input, 16) && is_aligned(given.grad_input, 16)) {
      return ByPlanes(g, types, given).run(g, types, given, stream);
    }
    return channels_last::unfold_backward(g, types, given, deterministic, stream);
  }
  visit_planar(types, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Call<T>(g, types, given, deterministic, stream).run();
  });
}

}  // namespace ddu::cuda
