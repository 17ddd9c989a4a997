#include "columns.h"

#include "columns_forward.cuh"
#include "plan.h"

namespace ddu::cuda::channels_last {
namespace {

template <class T>
struct Forward {
  RowLayout rows;
  T* copy = nullptr;                 // of the input, in rows
  unsigned char* strange = nullptr;  // of the copy, as in StrangePixels
  int strange_count = 0;
  std::size_t bytes;

  Forward(const Geometry& g, const Unfold& given, const TileMarks& tiles) {
    Workspace workspace(given.workspace);
    if (given.input_format == MemoryFormat::channels_last) {
      rows = own_rows(g);
    } else {
      rows = padded_rows(g, kVec<T>);
      copy = workspace.template take<T>(numel(g, rows));
      strange_count = Conversion<T>(g, rows, tiles).image_blocks;
      strange = workspace.template take<unsigned char>(strange_count * g.batch);
    }
    bytes = workspace.bytes();
  }
  void run(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream,
           const TurnedShares& shares) const {
    const Conversion<T> conversion(g, rows, tiles);
    PlanesToRows<T> work = conversion.work(given.input, copy, {}, strange);
    work.turned_strange = shares.strange;
    work.turned_blocks = shares.channel_blocks;
    if (copy && !tiles.marks)  // else with the columns
      planes_to_rows(g, types.input, rows, {}, given.input, copy, {}, strange, stream);
    auto p = make_params<T>(g, types, rows, kTurnsInMemory<T>);
    fill_rounds(g, kColumnsBlocks<T> * current_device().multiprocessors, p);
    p.tiles = tiles;
    const ColumnsPointers<T> tensors{copy ? copy : static_cast<const T*>(given.input),
                                     given.dilation_map,
                                     static_cast<T*>(given.output),
                                     {strange, strange_count},
                                     whole_columns(g, given.output, kVec<T>)};
    const std::size_t turned = kTurnsInMemory<T> ? conversion.shared : 0,
                      table = kRowWarps * TapTable<accumulator_t<T>, false>::bytes(p.run);
    const std::size_t shared = std::max(turned + table, tiles.marks ? conversion.shared : 0);
    constexpr ForwardKind kWhole = sizeof(T) == 2 ? ForwardKind::copy : ForwardKind::whole;
    const auto kernel = !copy && !whole_vectors(g, given.input, kVec<T>) ? columns_forward_kernel<T, ForwardKind::any>
                        : copy && tensors.whole_columns                  ? columns_forward_kernel<T, kWhole>
                        : tensors.whole_columns                          ? columns_forward_kernel<T, ForwardKind::whole>
                                                                         : columns_forward_kernel<T, ForwardKind::rows>;
    const unsigned blocks = blocks_of(p, g),
                   resident = static_cast<unsigned>(kColumnsBlocks<T> * current_device().multiprocessors);
    launch(kernel, {tiles.marks ? std::min(blocks, resident) : blocks, kRowThreads, shared, true}, stream, p, tensors, blocks,
           work);
  }
};

}  // namespace

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles) {
  std::size_t bytes = 0;
  visit(types.input, [&](auto* type) { bytes = Forward<std::remove_pointer_t<decltype(type)>>(g, given, tiles).bytes; });
  return bytes;
}

InputCopy input_copy(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles) {
  InputCopy found{};
  visit(types.input, [&](auto* type) {
    const Forward<std::remove_pointer_t<decltype(type)>> forward(g, given, tiles);
    found = {forward.copy, forward.rows};
  });
  return found;
}

void unfold(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream,
            const TurnedShares& turned) {
  visit(types.input, [&](auto* type) {
    Forward<std::remove_pointer_t<decltype(type)>>(g, given, tiles).run(g, types, given, tiles, stream, turned);
  });
}

}  // namespace ddu::cuda::channels_last
