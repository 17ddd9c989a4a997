#include "backward.cuh"

#include "exact.cuh"
#include "finish.cuh"
#include "launch.h"

namespace ddu::cuda {
namespace {

/// How a backward call runs, and where its scratch memory lies: the same for unfold_backward_workspace_bytes and for the call
/// itself.
struct Plan {
  bool tiled;
  bool deterministic;
  bool clears;   // blocks clear the planes that they add to: nobody else does
  bool cleared;  // a kernel before clears the input's gradient
  Shape shape;
  std::int64_t parts = 1;  // sums for the map that are kept apart; 0 where all are added to one
  // Bytes, in this order. What is left over has its sums where the windows were.
  std::size_t input_sums = 0, map_sums = 0, windows = 0, places = 0, largest = 0, left_over = 0;

  std::size_t bytes() const { return input_sums + map_sums + windows + places + largest + left_over; }
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// Of the exact sums, the high words come first.
std::size_t high_bytes(const Geometry& g) {
  return aligned(sizeof(unsigned long long) * static_cast<std::size_t>(g.input_numel()));
}
std::size_t low_bytes(const Geometry& g) { return aligned(sizeof(unsigned) * static_cast<std::size_t>(g.input_numel())); }

/// Beyond these taps of a window, so many can meet in a pixel that integer sums would lose float32's precision.
constexpr std::int64_t kMostTaps = 81;

/// Elements of a tile's window for rates up to 3: what a deterministic backward stores for every tile and channel.
int window_elements(const Geometry& g) {
  const std::int64_t rows = 8 * g.h.stride + 3 * g.h.dilation * (g.h.kernel_size - 1) + 2;
  const std::int64_t columns = 32 * g.w.stride + 3 * g.w.dilation * (g.w.kernel_size - 1) + 2 + 6;  // whole quads
  return static_cast<int>(std::min<std::int64_t>(rows * columns + 31, 2048));
}

/// Blocks that share a multiprocessor, as registers allow: kernels of 3x3 hold a pack's gradients there.
constexpr int blocks_at_once(bool three, bool both) { return !three ? 6 : both ? 4 : 5; }

template <class Acc>
Plan make_plan(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic) {
  Plan plan{};
  plan.deterministic = deterministic;
  plan.tiled = types.input != DType::float64 && fits_tiles(g, types.input) && g.taps() <= kMostTaps;
  const bool both = given.grad_input && given.grad_map;
  const bool three = g.h.kernel_size == 3 && g.w.kernel_size == 3;
  const std::size_t element =
      kBackwardPack * ((given.grad_map ? size_of(types.input) : 0) + (given.grad_input ? sizeof(int) : 0));
  if (!plan.tiled) {
    plan.shape = {256, 32, 4, 4, kBackwardPack, 16, 0, 0};
  } else if (deterministic) {
    plan.shape = {256, 32, 2, 2, kBackwardPack, 32, element, window_elements(g)};
  } else {
    plan.shape = {128, 32, blocks_at_once(three, both), both ? 1 : 2, kBackwardPack, 64, element, 1536};
  }
  const Layout<Acc> p = make_layout<Acc>(g, types, plan.shape, current_device());
  // One tile, so that no other block adds to its planes; and those small, since one block clears slower than the device.
  plan.clears = plan.tiled && !deterministic && p.by_tiles.divisor == 1 && g.pixels() <= 4096;
  if (given.grad_input && is_half(types.input))
    plan.input_sums = aligned(sizeof(float) * static_cast<std::size_t>(g.input_numel()));
  if (given.grad_map) {
    plan.parts = p.by_chunks.divisor * (g.map_batch == 1 ? g.batch : 1);  // blocks that share a position
    if (plan.parts > 1 && !deterministic) plan.parts = 0;
    if (plan.parts > 1 || is_half(types.map)) {
      const std::int64_t sums = std::max<std::int64_t>(plan.parts, 1) * g.map_numel();
      plan.map_sums = aligned(sizeof(Acc) * static_cast<std::size_t>(sums));
    }
  }
  if (given.grad_input && deterministic) {
    const std::int64_t tiles = p.by_tiles.divisor, packs = ceil_div(g.group_channels(), kBackwardPack);
    plan.windows = high_bytes(g) + low_bytes(g);
    plan.largest = aligned(sizeof(*BackwardPointers<Acc>::largest) * static_cast<std::size_t>(g.batch * g.groups * packs));
    if (plan.tiled) {
      const auto windows = sizeof(float) * static_cast<std::size_t>(g.batch * g.channels * tiles * p.capacity);
      plan.windows = std::max(plan.windows, aligned(windows));
      plan.places = aligned(sizeof(int4) * static_cast<std::size_t>(g.batch * g.groups * tiles));
      plan.left_over = aligned(static_cast<std::size_t>(g.batch * g.groups * packs * (1 + tiles)));
    }
  }
  plan.cleared = given.grad_input && !(plan.tiled && deterministic) && !plan.clears;
  return plan;
}

template <class T, int K, bool kInput, bool kMap, int kThreads, int kMinBlocks>
void run_tiles(const Geometry& g, const Layout<float>& p, const Plan& plan, const BackwardPointers<T>& tensors, Stream stream) {
  using Tile = BackwardTile<T, K, kInput, kMap, kThreads>;
  launch(backward_kernel<T, K, kInput, kMap, kThreads, kMinBlocks>,
         {blocks_of(p, g), kThreads, p.capacity * Tile::kElementBytes, plan.cleared}, stream, p, tensors);
}

template <class T, int K, bool kInput, bool kMap>
void run_shape(const Geometry& g, const Layout<float>& p, const Plan& plan, const BackwardPointers<T>& tensors, Stream stream) {
  if (plan.deterministic) return run_tiles<T, K, kInput, kMap, 256, 2>(g, p, plan, tensors, stream);
  run_tiles<T, K, kInput, kMap, 128, blocks_at_once(K == 3, kInput && kMap)>(g, p, plan, tensors, stream);
}

template <class T, int K>
void run_kernel_size(const Geometry& g, const Layout<float>& p, const Plan& plan, const BackwardPointers<T>& tensors,
                     Stream stream) {
  if (tensors.grad_input && tensors.grad_map) return run_shape<T, K, true, true>(g, p, plan, tensors, stream);
  if (tensors.grad_input) return run_shape<T, K, true, false>(g, p, plan, tensors, stream);
  run_shape<T, K, false, true>(g, p, plan, tensors, stream);
}

constexpr unsigned grid_for(std::int64_t count) {
  return static_cast<unsigned>(std::min<std::int64_t>((count + 255) / 256, 16384));
}

unsigned blocks_of_spans(std::int64_t count) { return grid_size(ceil_div(count, Span::kOfBlock)); }

/// Adds what tiles left over, or, where there are no marks, the whole gradient of the input.
template <class T>
void add_left_over(const Geometry& g, Layout<accumulator_t<T>> p, const BackwardPointers<T>& tensors, Stream stream) {
  const std::int64_t packs = ceil_div(g.group_channels(), kBackwardPack), all = packs * g.groups * g.batch;
  p.chunk = kBackwardPack;  // jobs of one pack
  p.by_chunks = Divider(static_cast<unsigned>(packs));
  // As many as fill the device, and a few more: most often nothing is left over, and they only look.
  const std::int64_t enough = std::max<std::int64_t>(tensors.left_over ? 8 : 64, ceil_div(1024, all));
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(p.by_tiles.divisor, enough));
  for (const auto kernel : {prepare_kernel<T>, scatter_kernel<T>, add_sums_kernel<T>}) {
    launch(kernel, {grid_size(blocks * all), LeftOver<T>::kThreads, 0, true}, stream, p, tensors, blocks);
  }
}

template <class T>
void run(const Geometry& g, Types types, const UnfoldBackward& given, const Plan& plan, Stream stream) {
  using Acc = accumulator_t<T>;
  auto* scratch = static_cast<unsigned char*>(given.workspace);
  const auto take = [&](std::size_t bytes) {
    unsigned char* taken = bytes ? scratch : nullptr;
    scratch += bytes;
    return static_cast<void*>(taken);
  };
  BackwardPointers<T> tensors{};
  tensors.grad_output = static_cast<const T*>(given.grad_output);
  tensors.input = static_cast<const T*>(given.input);
  tensors.map = given.dilation_map;
  void* input_sums = take(plan.input_sums);
  void* map_sums = take(plan.map_sums);
  tensors.grad_input = static_cast<Acc*>(plan.input_sums ? input_sums : given.grad_input);
  tensors.grad_map = static_cast<Acc*>(plan.map_sums ? map_sums : given.grad_map);
  tensors.map_part = plan.parts ? g.map_numel() : 0;
  tensors.clears = plan.clears;
  void* windows = take(plan.windows);
  tensors.windows = static_cast<float*>(windows);
  tensors.high = static_cast<unsigned long long*>(windows);
  tensors.places = static_cast<int4*>(take(plan.places));
  tensors.largest = static_cast<unsigned long long*>(take(plan.largest));
  tensors.left_over = static_cast<unsigned char*>(take(plan.left_over));
  if (windows) tensors.low = reinterpret_cast<unsigned*>(static_cast<unsigned char*>(windows) + high_bytes(g));

  Layout<Acc> p = make_layout<Acc>(g, types, plan.shape, current_device());
  p.quads = g.w.size % 4 == 0 && is_aligned(tensors.input, 4 * sizeof(T)) && is_aligned(tensors.grad_input, 4 * sizeof(Acc));
  const auto clear = [&](void* memory, std::size_t bytes) {
    if (memory && bytes) DDU_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream));
  };
  if (!plan.parts) clear(tensors.grad_map, sizeof(Acc) * static_cast<std::size_t>(g.map_numel()));
  clear(tensors.largest, plan.largest + plan.left_over);
  if (plan.cleared) {  // last, since what follows may overlap with it
    launch(clear_kernel<Acc>, {blocks_of_spans(g.input_numel()), Span::kThreads}, stream, tensors.grad_input, g.input_numel(),
           is_aligned(tensors.grad_input, 4 * sizeof(Acc)));
  }

  if constexpr (!std::is_same_v<T, double>) {
    if (plan.tiled && g.h.kernel_size == 3 && g.w.kernel_size == 3) {
      run_kernel_size<T, 3>(g, p, plan, tensors, stream);
    } else if (plan.tiled) {
      run_kernel_size<T, 0>(g, p, plan, tensors, stream);
    }
  }
  if (!plan.tiled) {
    BackwardPointers<T> direct = tensors;
    if (plan.deterministic) direct.grad_input = nullptr;
    const unsigned blocks = blocks_of(p, g);
    if (direct.grad_input || direct.grad_map) launch(backward_direct_kernel<T, 256>, {blocks, 256}, stream, p, direct);
  }
  if (given.grad_input && plan.deterministic) {
    if constexpr (std::is_same_v<Acc, float>) {
      if (plan.tiled) {
        constexpr int chunk = 16;
        BackwardPointers<float> sums{};  // the tensors that do not depend on the input's type
        sums.grad_input = tensors.grad_input;
        sums.windows = tensors.windows;
        sums.places = tensors.places;
        const std::int64_t blocks = ceil_div(g.pixels(), 256) * ceil_div(g.group_channels(), chunk) * g.groups * g.batch;
        launch(add_windows_kernel, {grid_size(blocks), 256}, stream, p, sums, chunk);
      }
    }
    add_left_over(g, p, tensors, stream);
  }
  if constexpr (sizeof(T) == 2) {
    if (given.grad_input) {
      launch(narrow_kernel<T>, {blocks_of_spans(g.input_numel()), Span::kThreads, 0, plan.tiled && !plan.deterministic}, stream,
             static_cast<const float*>(tensors.grad_input), static_cast<T*>(given.grad_input), g.input_numel(),
             is_aligned(given.grad_input, 4 * sizeof(T)));
    }
  }
  if (plan.map_sums) {
    const auto reduce = [&](auto* map) {
      using M = std::remove_pointer_t<decltype(map)>;
      launch(reduce_map_kernel<M, Acc>, {grid_for(g.map_numel()), 256}, stream, static_cast<const Acc*>(tensors.grad_map),
             static_cast<M*>(given.grad_map), g.map_numel(), std::max<std::int64_t>(plan.parts, 1));
    };
    if constexpr (sizeof(T) == 2) {
      if (is_half(types.map)) return reduce(static_cast<T*>(nullptr));
    }
    reduce(static_cast<Acc*>(nullptr));
  }
}

template <class Body>
void with_plan(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Body body) {
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    body(type, make_plan<accumulator_t<T>>(g, types, given, deterministic));
  });
}

}  // namespace

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic) {
  check_types(types);
  if (g.columns_numel() == 0 || !(given.grad_input || given.grad_map)) return 0;
  std::size_t bytes = 0;
  with_plan(g, types, given, deterministic, [&](auto*, const Plan& plan) { bytes = plan.bytes(); });
  return bytes;
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream) {
  check_types(types);
  if (!given.grad_input && !given.grad_map) return;
  if (g.columns_numel() == 0) {  // no column carries a gradient
    if (given.grad_map && g.map_numel() > 0) {
      DDU_CUDA_CHECK(cudaMemsetAsync(given.grad_map, 0, size_of(types.map) * static_cast<std::size_t>(g.map_numel()), stream));
    }
    return;
  }
  with_plan(g, types, given, deterministic, [&](auto* type, const Plan& plan) {
    using T = std::remove_pointer_t<decltype(type)>;
    run<T>(g, types, given, plan, stream);
  });
}

}  // namespace ddu::cuda
