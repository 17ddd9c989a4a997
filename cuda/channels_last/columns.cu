#include "columns.h"

#include <cstdlib>
#include <cstring>

#include "../core/elementwise.cuh"
#include "columns_backward.cuh"
#include "columns_forward.cuh"
#include "plan.h"

namespace ddu::cuda::channels_last {
namespace {

/// Calls body(std::bool_constant) for a condition known when the call comes.
template <class Body>
void with_flag(bool flag, Body body) {
  if (flag) return body(std::true_type{});
  body(std::false_type{});
}

template <class T>
void to_rows(const Geometry& g, const RowLayout& rows, const TileMarks& tiles, const void* planes, T* copy,
             accumulator_t<T>* sums, unsigned char* strange, Stream stream) {
  const Conversion<T> conversion(g, rows);
  with_flag(conversion.whole(planes), [&](auto whole) {
    launch(planes_to_rows_kernel<T, whole.value>, {conversion.blocks, kRowThreads, conversion.shared, tiles.marks != nullptr},
           stream, conversion.params, tiles, static_cast<const T*>(planes), copy, sums, strange);
  });
}

template <class T>
void to_planes(const Geometry& g, const RowLayout& rows, const accumulator_t<T>* sums, void* planes, Stream stream) {
  const Conversion<T> conversion(g, rows);
  with_flag(conversion.whole(planes), [&](auto whole) {
    launch(rows_to_planes_kernel<T, whole.value>, {conversion.square_blocks, kRowThreads}, stream, conversion.params, sums,
           static_cast<T*>(planes));
  });
}

bool whole_columns(const Geometry& g, const void* columns, int vec) {
  return g.positions() % vec == 0 && is_aligned(columns, 16);
}

template <class T>
struct Forward {
  RowLayout rows;
  T* copy = nullptr;  // of the input, in rows
  unsigned char* strange = nullptr;  // of the copy, as in ColumnsPointers
  int strange_count = 0;
  std::size_t bytes;

  Forward(const Geometry& g, const Unfold& given) {
    Workspace workspace(given.workspace);
    if (given.input_format == MemoryFormat::channels_last) {
      rows = own_rows(g);
    } else {
      rows = padded_rows(g, kVec<T>);
      copy = workspace.template take<T>(numel(g, rows));
      strange_count = Conversion<T>(g, rows).image_blocks;
      strange = workspace.template take<unsigned char>(strange_count * g.batch);
    }
    bytes = workspace.bytes();
  }
  void prepare(const Geometry& g, const Unfold& given, const TileMarks& tiles, Stream stream) const {
    if (copy) to_rows<T>(g, rows, tiles, given.input, copy, nullptr, strange, stream);
  }
  void run(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream) const {
    auto p = make_params<T>(g, types, rows, kTurnsInMemory<T>);
    p.tiles = tiles;
    const ColumnsPointers<T> tensors{copy ? copy : static_cast<const T*>(given.input), given.dilation_map,
                                     static_cast<T*>(given.output), strange, strange_count};
    const std::size_t shared = kRowWarps * (TapTable<accumulator_t<T>, false>::bytes(p.run) +
                                            (kTurnsInMemory<T> ? TurnTile<T>::bytes(p.log_lanes) : 0));
    with_flag(copy || whole_vectors(g, given.input, kVec<T>), [&](auto whole_rows) {
      with_flag(whole_columns(g, given.output, kVec<T>), [&](auto whole_columns) {
        const unsigned blocks = blocks_of(p, g), resident = static_cast<unsigned>(tuning("CL_RES", 2) * current_device().multiprocessors);
        launch(columns_forward_kernel<T, whole_rows.value, whole_columns.value>,
               {std::min(blocks, resident), kRowThreads, shared, true}, stream, p, tensors, blocks);
      });
    });
  }
};

#ifndef CL_FORWARD_ONLY
template <class T>
struct Backward {
  using Acc = accumulator_t<T>;
  RowLayout rows;
  RowParams<Acc> params;
  bool own;
  std::int64_t parts = 1;  // sums for the map that are kept apart; 0 where all are added to one
  T* copy = nullptr;       // of the input, in rows
  Acc* sums = nullptr;     // of its gradient; where that cannot hold them itself
  Acc* map_sums = nullptr;
  std::size_t bytes;

  Backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic) {
    Workspace workspace(given.workspace);
    own = given.input_format == MemoryFormat::channels_last;
    rows = own ? own_rows(g) : padded_rows(g, kVec<T>);
    params = make_params<T>(g, types, rows);
    if (given.grad_map && !own) copy = workspace.template take<T>(numel(g, rows));
    if (given.grad_input && (!own || is_half(types.input))) sums = workspace.template take<Acc>(numel(g, rows));
    if (given.grad_map) {
      parts = std::int64_t{params.slices} * params.tap_chunks * (g.map_batch == 1 ? g.batch : 1);
      if (parts > 1 && !deterministic) parts = 0;
      if (parts > 1 || is_half(types.map)) map_sums = workspace.template take<Acc>(std::max<std::int64_t>(parts, 1) * g.map_numel());
    }
    bytes = workspace.bytes();
  }

  void run(const Geometry& g, Types types, const UnfoldBackward& given, Stream stream) const {
    ColumnsBackwardPointers<T> tensors{static_cast<const T*>(given.grad_output),
                                       copy ? copy : static_cast<const T*>(given.input),
                                       given.dilation_map,
                                       sums ? sums : static_cast<Acc*>(given.grad_input),
                                       map_sums ? map_sums : static_cast<Acc*>(given.grad_map),
                                       parts ? g.map_numel() : 0};
    if (given.grad_map && !parts) {
      DDU_CUDA_CHECK(cudaMemsetAsync(tensors.grad_map, 0, sizeof(Acc) * static_cast<std::size_t>(g.map_numel()), stream));
    }
    if (copy) to_rows<T>(g, rows, {}, given.input, copy, given.grad_input ? sums : nullptr, nullptr, stream);
    if (given.grad_input && !(copy && sums)) {
      DDU_CUDA_CHECK(cudaMemsetAsync(tensors.grad_input, 0, sizeof(Acc) * static_cast<std::size_t>(numel(g, rows)), stream));
    }
    const bool whole = (copy || !given.grad_map || !own || whole_vectors(g, given.input, kVec<T>)) &&
                       (sums || !given.grad_input || whole_vectors(g, given.grad_input, kVec<T>)) &&
                       (!own || g.group_channels() % kVec<T> == 0);
    with_flag(whole, [&](auto whole_rows) {
      constexpr bool kRows = whole_rows.value;
      if (given.grad_input && given.grad_map) return scatter<true, true, kRows>(g, tensors, stream);
      if (given.grad_input) return scatter<true, false, kRows>(g, tensors, stream);
      scatter<false, true, kRows>(g, tensors, stream);
    });
    if (sums && !own) to_planes<T>(g, rows, sums, given.grad_input, stream);
    if constexpr (sizeof(T) == 2) {
      if (sums && own) {
        launch(convert_kernel<T>, {grid_size(ElementRuns::blocks(g.input_numel())), ElementRuns::kThreads}, stream,
               static_cast<const float*>(sums), static_cast<T*>(given.grad_input), g.input_numel(),
               is_aligned(given.grad_input, 4 * sizeof(T)));
      }
    }
    if (map_sums) reduce_map(g, types, given, stream);
  }

 private:
  template <bool kInput, bool kMap, bool kRows>
  void scatter(const Geometry& g, const ColumnsBackwardPointers<T>& tensors, Stream stream) const {
    const std::size_t shared = kRowWarps * TapTable<Acc, kMap>::bytes((32 >> params.log_lanes) * kVec<T>);
    launch(columns_backward_kernel<T, kInput, kMap, kRows>, {blocks_of(params, g), kRowThreads, shared}, stream, params,
           tensors, whole_columns(g, tensors.grad_output, kVec<T>));
  }
  void reduce_map(const Geometry& g, Types types, const UnfoldBackward& given, Stream stream) const {
    const auto reduce = [&](auto* map) {
      using M = std::remove_pointer_t<decltype(map)>;
      const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(g.map_numel(), 256), 16384));
      launch(add_arrays_kernel<M, Acc>, {blocks, 256}, stream, static_cast<const Acc*>(map_sums), static_cast<M*>(given.grad_map),
             g.map_numel(), std::max<std::int64_t>(parts, 1));
    };
    if constexpr (sizeof(T) == 2) {
      if (is_half(types.map)) return reduce(static_cast<T*>(nullptr));
    }
    reduce(static_cast<Acc*>(nullptr));
  }
};

#endif
}  // namespace

bool forced() {
  const char* way = std::getenv("DDU_CUDA_PATH");
  return way && std::strcmp(way, "channels_last") == 0;
}

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& given) {
  std::size_t bytes = 0;
  visit(types.input, [&](auto* type) { bytes = Forward<std::remove_pointer_t<decltype(type)>>(g, given).bytes; });
  return bytes;
}

void prepare_unfold(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream) {
  visit(types.input,
        [&](auto* type) { Forward<std::remove_pointer_t<decltype(type)>>(g, given).prepare(g, given, tiles, stream); });
}

void unfold(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream) {
  visit(types.input,
        [&](auto* type) { Forward<std::remove_pointer_t<decltype(type)>>(g, given).run(g, types, given, tiles, stream); });
}

#ifndef CL_FORWARD_ONLY
std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic) {
  std::size_t bytes = 0;
  visit(types.input, [&](auto* type) {
    bytes = Backward<std::remove_pointer_t<decltype(type)>>(g, types, given, deterministic).bytes;
  });
  return bytes;
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream) {
  visit(types.input, [&](auto* type) {
    Backward<std::remove_pointer_t<decltype(type)>>(g, types, given, deterministic).run(g, types, given, stream);
  });
}

#endif
}  // namespace ddu::cuda::channels_last
