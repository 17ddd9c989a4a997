#include "columns.h"

#include <cstdlib>
#include <cstring>

#include "columns_forward.cuh"
#include "plan.h"

namespace ddu::cuda::channels_last {
namespace {

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
    if (copy) planes_to_rows<T>(g, rows, tiles, given.input, copy, {}, strange, stream);
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

}  // namespace ddu::cuda::channels_last
