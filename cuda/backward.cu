#include "backward.cuh"

#include "finish.cuh"
#include "launch.h"

namespace ddu::cuda {
namespace {

/// How a backward call runs, and where its scratch memory lies: the same for workspace_bytes and for the call itself.
struct Plan {
  bool tiled;
  bool deterministic;
  Shape shape;
  int step;                          // of the tiles in one launch
  std::int64_t parts = 1;            // sums for the map that are kept apart
  std::size_t input_sums = 0, map_sums = 0, marks = 0;  // bytes

  std::size_t bytes() const { return input_sums + map_sums + marks; }
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class Acc>
Plan make_plan(const Geometry& g, Types types, const Backward& given, bool deterministic) {
  Plan plan{};
  plan.deterministic = deterministic;
  plan.tiled = types.input != DType::float64 && fits_tiles(g, types.input);
  const bool both = given.grad_input && given.grad_map;
  const bool three = g.h.kernel_size == 3 && g.w.kernel_size == 3;
  const std::size_t element = (given.grad_map ? kBackwardPack * size_of(types.input) : 0) + (given.grad_input ? 4 * kBackwardPack : 0);
  // A deterministic launch leaves room for the windows between its tiles: it wants them square, and apart.
  plan.step = deterministic ? (three && g.h.dilation * g.w.dilation == 1 ? 2 : 3) : 1;
  if (!plan.tiled) {
    plan.shape = {256, 32, 4, kBackwardPack, 16, 0, 0};
  } else if (deterministic) {
    plan.shape = {256, 16, 2, kBackwardPack, 16, element, 2048};
  } else {
    plan.shape = {128, 32, three && both ? 4 : 6, kBackwardPack, both ? 64 : 16, element, 2048};
  }
  const Layout<Acc> p = make_layout<Acc>(g, types, plan.shape, current_device());
  if (given.grad_input && is_half(types.input)) plan.input_sums = aligned(sizeof(float) * static_cast<std::size_t>(g.input_numel()));
  if (given.grad_map) {
    if (deterministic) plan.parts = p.by_chunks.divisor * (g.map_batch == 1 ? g.batch : 1);
    if (deterministic || is_half(types.map)) {
      plan.map_sums = aligned(sizeof(Acc) * static_cast<std::size_t>(plan.parts * g.map_numel()));
    }
  }
  if (given.grad_input && deterministic && plan.tiled) {
    const std::int64_t packs = ceil_div(g.group_channels(), kBackwardPack);
    plan.marks = aligned(static_cast<std::size_t>(g.batch * g.groups * packs * p.tile_rows * p.tile_columns));
  }
  return plan;
}

template <class T, int K, bool kInput, bool kMap, int kThreads, int kMinBlocks>
void run_tiles(const Geometry& g, Layout<float> p, const Plan& plan, const BackwardPointers<T>& tensors, Stream stream) {
  constexpr int kShare = 4;
  using Tile = BackwardTile<T, K, kInput, kMap, kThreads, kShare>;
  for (int y = 0; y < plan.step; ++y) {
    for (int x = 0; x < plan.step; ++x) {
      const unsigned blocks = blocks_of(p, g, y, x, plan.step);
      launch(backward_kernel<T, K, kInput, kMap, kThreads, kMinBlocks, kShare>, blocks, kThreads, p.capacity * Tile::kElementBytes,
             stream, p, tensors);
    }
  }
}

template <class T, int K, bool kInput, bool kMap>
void run_shape(const Geometry& g, const Layout<float>& p, const Plan& plan, const BackwardPointers<T>& tensors, Stream stream) {
  constexpr int blocks = K != 0 && kInput && kMap ? 4 : 6;
  if (plan.deterministic) return run_tiles<T, K, kInput, kMap, 256, 2>(g, p, plan, tensors, stream);
  run_tiles<T, K, kInput, kMap, 128, blocks>(g, p, plan, tensors, stream);
}

template <class T, int K>
void run_kernel_size(const Geometry& g, const Layout<float>& p, const Plan& plan, const BackwardPointers<T>& tensors, Stream stream) {
  if (tensors.grad_input && tensors.grad_map) return run_shape<T, K, true, true>(g, p, plan, tensors, stream);
  if (tensors.grad_input) return run_shape<T, K, true, false>(g, p, plan, tensors, stream);
  run_shape<T, K, false, true>(g, p, plan, tensors, stream);
}

constexpr unsigned grid_for(std::int64_t count) {
  return static_cast<unsigned>(std::min<std::int64_t>((count + 255) / 256, 16384));
}

template <class T>
void run(const Geometry& g, Types types, const Backward& given, const Plan& plan, Stream stream) {
  using Acc = accumulator_t<T>;
  auto* scratch = static_cast<unsigned char*>(given.workspace);
  BackwardPointers<T> tensors{static_cast<const T*>(given.grad_output), static_cast<const T*>(given.input), given.dilation_map,
                              static_cast<Acc*>(plan.input_sums ? static_cast<void*>(scratch) : given.grad_input),
                              static_cast<Acc*>(plan.map_sums ? static_cast<void*>(scratch + plan.input_sums) : given.grad_map),
                              plan.deterministic ? g.map_numel() : 0,
                              plan.marks ? scratch + plan.input_sums + plan.map_sums : nullptr};
  Layout<Acc> p = make_layout<Acc>(g, types, plan.shape, current_device());
  if (given.grad_input) {
    DDU_CUDA_CHECK(cudaMemsetAsync(tensors.grad_input, 0, sizeof(Acc) * static_cast<std::size_t>(g.input_numel()), stream));
  }
  if (given.grad_map && !plan.deterministic) {
    DDU_CUDA_CHECK(cudaMemsetAsync(tensors.grad_map, 0, sizeof(Acc) * static_cast<std::size_t>(g.map_numel()), stream));
  }
  if (plan.marks) DDU_CUDA_CHECK(cudaMemsetAsync(tensors.left_over, 0, plan.marks, stream));

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
    if (direct.grad_input || direct.grad_map) launch(backward_direct_kernel<T, 256>, blocks, 256, 0, stream, p, direct);
  }
  if (given.grad_input && plan.deterministic) {
    const std::int64_t blocks = ceil_div(g.pixels(), 256) * ceil_div(g.group_channels(), kBackwardPack) * g.groups * g.batch;
    if (blocks > INT_MAX) throw invalid_argument("the input is too large for one launch: split the batch");
    launch(gather_kernel<T>, static_cast<unsigned>(blocks), 256, 0, stream, p, tensors);
  }
  if constexpr (sizeof(T) == 2) {
    if (given.grad_input) {
      launch(narrow_kernel<T>, grid_for(g.input_numel()), 256, 0, stream, static_cast<const float*>(tensors.grad_input),
             static_cast<T*>(given.grad_input), g.input_numel());
    }
  }
  if (plan.map_sums) {
    const auto reduce = [&](auto* map) {
      using M = std::remove_pointer_t<decltype(map)>;
      launch(reduce_map_kernel<M, Acc>, grid_for(g.map_numel()), 256, 0, stream, static_cast<const Acc*>(tensors.grad_map),
             static_cast<M*>(given.grad_map), g.map_numel(), plan.parts);
    };
    if constexpr (sizeof(T) == 2) {
      if (is_half(types.map)) return reduce(static_cast<T*>(nullptr));
    }
    reduce(static_cast<Acc*>(nullptr));
  }
}

template <class Body>
void with_plan(const Geometry& g, Types types, const Backward& given, bool deterministic, Body body) {
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    body(type, make_plan<accumulator_t<T>>(g, types, given, deterministic));
  });
}

}  // namespace

std::size_t workspace_bytes(const Geometry& g, Types types, const Backward& given, bool deterministic) {
  check_types(types);
  if (g.output_numel() == 0) return 0;
  std::size_t bytes = 0;
  with_plan(g, types, given, deterministic, [&](auto*, const Plan& plan) { bytes = plan.bytes(); });
  return bytes;
}

void unfold_backward(const Geometry& g, Types types, const Backward& given, bool deterministic, Stream stream) {
  check_types(types);
  if (g.output_numel() == 0) {  // no column carries a gradient
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
