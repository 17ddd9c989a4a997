// The host side of the channels-last backward:
//
//     (planes_to_rows_kernel  the input, channels-last; zeros in the sums beside it, and in what belongs to them)
//     (largest_kernel         deterministic: units of the sums)
//     columns_backward_kernel both gradients, in sums
//     (rows_to_planes_kernel, convert_kernel or ordered_to_rows_kernel   sums to grad_input)
//     (add_arrays_kernel      sums to grad_map, where they are kept apart or its type is a half one)
//
// Behind the planar kernels columns_backward_kernel does the first and the fourth too, where both gradients are wanted and sums
// are floats; else add_to_planes_kernel does the fourth, and of a deterministic call prepare_rest_kernel the first two.

#include "../core/elementwise.cuh"
#include "columns.h"
#include "columns_backward.cuh"
#include "plan.h"
#include "prepare_rest.cuh"
#include "rows_to_planes.cuh"

namespace ddu::cuda::channels_last {
namespace {

template <class T>
constexpr int kBackwardLogLanes = 4;  // 16 lanes of 16 bytes of sums: rows of 256 bytes

template <class T, class Sums>
class Backward {
 public:
  using Acc = accumulator_t<T>;
  using Word = typename Sums::Word;

  Backward(const Geometry& g, Types types, const UnfoldBackward& given, const Rest* rest, bool is_rest, bool deterministic)
      : g_(g), types_(types), given_(given), rest_(rest), is_rest_(is_rest) {
    own_ = given.input_format == MemoryFormat::channels_last;
    rows_ = own_ ? own_rows(g) : padded_rows(g, kVec<T>);
    params_ = make_params<T>(g, types, rows_, false, kBackwardChannels<T>, kBackwardLogLanes<T>);
    if (rest) params_.tiles = rest->tiles;
    numel_ = numel(g, rows_);
    Workspace workspace(given.workspace);
    if (given.grad_map && !own_) copy_ = workspace.template take<T>(numel_);
    if (given.grad_input && !(own_ && std::is_same_v<T, Word>)) sums_ = workspace.template take<Word>(numel_ * Sums::kWords);
    if constexpr (Sums::kOrdered) {
      if (given.grad_input) {
        const std::size_t before = workspace.bytes();
        strange_ = workspace.template take<unsigned>(ceil_div(numel_, 16));
        if (!is_rest) largest_ = workspace.template take<unsigned long long>(g.batch * g.channels);
        zeroed_ = workspace.bytes() - before;
      }
    }
    if (given.grad_map) {
      map_arrays_ = std::int64_t{params_.slices} * params_.tap_chunks * (g.map_batch == 1 ? g.batch : 1);
      if (map_arrays_ > 1 && !deterministic) map_arrays_ = 0;
      if (!is_rest && (map_arrays_ > 1 || is_half(types.map))) {
        map_sums_ = workspace.template take<Acc>(std::max<std::int64_t>(map_arrays_, 1) * g.map_numel());
      }
    }
    bytes_ = workspace.bytes();
  }
  std::size_t bytes() const { return bytes_; }
  std::int64_t map_arrays() const { return map_arrays_; }

  /// The first step of a deterministic call's rest.
  void prepare_rest(Stream stream) const {
    if constexpr (Sums::kOrdered && sizeof(T) < 8) {
      const Conversion<T> conversion(g_, rows_);
      RowsToClear to_clear = sums_to_clear();
      to_clear.array = reinterpret_cast<uint4*>(strange_);
      to_clear.array_size = static_cast<std::int64_t>(zeroed_ / sizeof(uint4));
      const auto search = largest_search(static_cast<const T*>(given_.grad_output), g_.batch * g_.channels,
                                         g_.taps() * g_.positions(), rest_->planes.largest, true);
      const unsigned blocks = 2 * few_blocks(std::max(conversion.blocks, search.blocks));
      launch(prepare_rest_kernel<T>, {blocks, kRowThreads, conversion.shared, true}, stream, params_.tiles, search,
             conversion.work(given_.input, copy_, to_clear, nullptr), OrderedPlanesToClear{rest_->planes, g_.pixels()},
             static_cast<int>(g_.group_channels()));
    }
  }

  void run(Stream stream) const {
    ColumnsBackwardPointers<T, Sums> tensors{};
    tensors.grad_output = static_cast<const T*>(given_.grad_output);
    tensors.input = copy_ ? copy_ : static_cast<const T*>(given_.input);
    tensors.map = given_.dilation_map;
    tensors.sums = sums();
    tensors.grad_map = static_cast<Acc*>(rest_ ? rest_->grad_map : map_sums_ ? map_sums_ : given_.grad_map);
    tensors.map_part = (rest_ ? rest_->grad_map_is_whole : map_arrays_ == 0) ? 0 : g_.map_numel();
    tensors.whole = whole_columns(g_, tensors.grad_output, kVec<T>);
    if (!is_prepared()) prepare(tensors, stream);
    tensors.rows = !own_ || ((!given_.grad_map || whole_vectors(g_, given_.input, kVec<T>)) &&
                             (sums_ || !given_.grad_input || whole_vectors(g_, given_.grad_input, kVec<T>)) &&
                             g_.group_channels() % kVec<T> == 0);
    scatter(tensors, stream);
    if (given_.grad_input && !together()) finish_input(tensors.sums, stream);
    if (given_.grad_map && !rest_ && map_sums_) finish_map(stream);
  }

 private:
  /// Whether the kernel of the columns does what comes before and after them, too.
  bool together() const { return rest_ && kTurnsPlanes<T, Sums, BackwardKind::both> && given_.grad_input && given_.grad_map; }
  /// Whether prepare_rest has done what comes before.
  bool is_prepared() const { return rest_ && Sums::kOrdered; }
  Sums sums() const {
    Sums sums{};
    sums.words = !given_.grad_input ? nullptr : sums_ ? sums_ : static_cast<Word*>(static_cast<void*>(given_.grad_input));
    if constexpr (Sums::kOrdered) {
      sums.array = numel_;
      sums.strange = strange_;
      const std::int64_t terms = g_.taps() * g_.positions();
      sums.largest = largest_;
      sums.bits = ordered_bits(terms);
      if (rest_) {
        const auto of_wide = rest_->planes.template sums<T>(terms);
        sums.largest = of_wide.largest;
        sums.bits = of_wide.bits;
        sums.fallback_marks = of_wide.fallback_marks;
      }
    }
    return sums;
  }
  static void clear(void* memory, std::size_t bytes, Stream stream) {
    DDU_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream));
  }
  void prepare(const ColumnsBackwardPointers<T, Sums>& tensors, Stream stream) const {
    if (given_.grad_map && !rest_ && map_arrays_ == 0)
      clear(tensors.grad_map, sizeof(Acc) * std::size_t(g_.map_numel()), stream);
    // Sums that have the layout of a copy are cleared beside it, and what belongs to them.
    const bool beside = given_.grad_input && !own_ && Sums::kWords == 1;
    if (given_.grad_input && !beside) {
      clear(tensors.sums.words, sizeof(Word) * std::size_t(numel_ * Sums::kWords), stream);
      if (zeroed_) clear(strange_, zeroed_, stream);
    }
    RowsToClear sums;
    if (beside) {
      sums = sums_to_clear();
      sums.array = reinterpret_cast<uint4*>(strange_);
      sums.array_size = static_cast<std::int64_t>(zeroed_ / sizeof(uint4));
    }
    if ((copy_ || beside) && !together()) {
      planes_to_rows(g_, types_.input, rows_, params_.tiles, given_.input, copy_, sums, nullptr, stream);
    }
    if (Sums::kOrdered && given_.grad_input) {
      const auto search = largest_search(tensors.grad_output, g_.batch * g_.channels, g_.taps() * g_.positions(), largest_);
      launch(largest_kernel<T>, {search.blocks, LargestSearch<T>::kThreads}, stream, search);
    }
  }
  void scatter(const ColumnsBackwardPointers<T, Sums>& tensors, Stream stream) const {
    if constexpr (Sums::kBulk) {
      if (given_.grad_input && tensors.rows && current_device().overlaps && params_.log_lanes == 4)
        return launch_scatter<BackwardKind::bulk>(tensors, stream);
    }
    if constexpr (!Sums::kOrdered && sizeof(T) < 8) {
      if (tensors.rows && !given_.grad_input) return launch_scatter<BackwardKind::map>(tensors, stream);
      if (tensors.rows && given_.grad_map) return launch_scatter<BackwardKind::both>(tensors, stream);
    }
    launch_scatter<BackwardKind::any>(tensors, stream);
  }
  template <BackwardKind kKind>
  void launch_scatter(const ColumnsBackwardPointers<T, Sums>& tensors, Stream stream) const {
    const int bytes = ColumnSquares<T>::kBytes + TapTable<Acc, true>::bytes(params_.run) +
                      RowScatter<T, Sums, kKind == BackwardKind::bulk>::kBytes;
    const unsigned blocks = blocks_of(params_, g_);
    Grid grid{rest_ ? few_blocks(blocks) : blocks, kRowThreads, static_cast<std::size_t>(kRowWarps * bytes), true};
    PlanesToRows<T> rows{};
    SumsToPlanes planes{};
    if (together()) {
      const Conversion<T> conversion(g_, rows_);
      rows = conversion.work(given_.input, copy_, sums_to_clear(), nullptr);
      planes = rest_planes();
      grid.blocks = few_blocks(std::max(blocks, conversion.blocks));
      grid.shared = std::max(grid.shared, conversion.shared);
    }
    launch(columns_backward_kernel<T, Sums, kKind>, grid, stream, params_, tensors, blocks, rows, planes);
  }
  /// What the rest's sums are added to.
  SumsToPlanes rest_planes() const {
    const Conversion<float> conversion(g_, rows_);
    auto* planes = static_cast<float*>(rest_->grad_input);
    return {conversion.params, planes, conversion.whole(planes), conversion.square_blocks};
  }
  /// Sums that have the layout of a copy.
  RowsToClear sums_to_clear() const { return {reinterpret_cast<unsigned char*>(sums_), int(sizeof(Word))}; }

  void finish_input(const Sums& sums, Stream stream) const {
    if (own_) return finish_rows(sums, stream);
    if constexpr (sizeof(T) < 8) {
      if (rest_) {
        const SumsToPlanes planes = rest_planes();
        const auto of_float = float_sums(sums);
        return launch(add_to_planes_kernel<std::remove_cv_t<decltype(of_float)>>,
                      {few_blocks(planes.blocks), kRowThreads, 0, true}, stream, planes, params_.tiles, of_float,
                      rest_->planes);
      }
    }
    const Conversion<T> conversion(g_, rows_);
    auto* planes = static_cast<T*>(given_.grad_input);
    launch(rows_to_planes_kernel<T, Sums>, {conversion.square_blocks, kRowThreads, 0, true}, stream, conversion.params, sums,
           planes, conversion.whole(planes));
  }
  void finish_rows(const Sums& sums, Stream stream) const {
    if constexpr (Sums::kOrdered) {
      const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(numel_, 256), 16384));
      launch(ordered_to_rows_kernel<T>, {blocks, 256}, stream, sums, numel_, g_.channels * g_.pixels(),
             static_cast<int>(g_.channels), static_cast<T*>(given_.grad_input));
    } else if constexpr (sizeof(T) == 2) {
      launch(convert_kernel<T>, {grid_size(ElementRuns::blocks(numel_)), ElementRuns::kThreads, 0, true}, stream,
             static_cast<const float*>(sums_), static_cast<T*>(given_.grad_input), numel_,
             is_aligned(given_.grad_input, 4 * sizeof(T)));
    }
  }
  void finish_map(Stream stream) const {
    const auto add = [&](auto* map) {
      using M = std::remove_pointer_t<decltype(map)>;
      const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(g_.map_numel(), 256), 16384));
      launch(add_arrays_kernel<M, Acc>, {blocks, 256}, stream, static_cast<const Acc*>(map_sums_), map, g_.map_numel(),
             std::max<std::int64_t>(map_arrays_, 1));
    };
    if constexpr (sizeof(T) == 2) {
      if (is_half(types_.map)) return add(static_cast<T*>(given_.grad_map));
    }
    add(static_cast<Acc*>(given_.grad_map));
  }

  const Geometry& g_;
  Types types_;
  const UnfoldBackward& given_;
  const Rest* rest_;
  bool is_rest_, own_;
  RowLayout rows_;
  RowParams<Acc> params_;
  std::int64_t numel_;
  T* copy_ = nullptr;     // of the input, in rows
  Word* sums_ = nullptr;  // of its gradient; where that cannot hold them itself
  unsigned* strange_ = nullptr;
  unsigned long long* largest_ = nullptr;
  std::size_t zeroed_ = 0;       // bytes of the two before
  std::int64_t map_arrays_ = 1;  // sums for the map that are kept apart; 0 where all are added to one
  Acc* map_sums_ = nullptr;
  std::size_t bytes_;
};

/// Calls body(Backward) for the type and kind of sums of a call.
template <class Body>
void visit_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, const Rest* rest,
                    bool is_rest, Body body) {
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (deterministic && given.grad_input)
      return body(Backward<T, OrderedSums<T>>(g, types, given, rest, is_rest, deterministic));
    body(Backward<T, FloatingSums<T>>(g, types, given, rest, is_rest, deterministic));
  });
}

}  // namespace

void prepare_rest(const Geometry& g, Types types, const UnfoldBackward& given, Stream stream, const Rest& rest) {
  visit_backward(g, types, given, true, &rest, true, [&](const auto& backward) { backward.prepare_rest(stream); });
}

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic,
                                            bool rest) {
  std::size_t bytes = 0;
  visit_backward(g, types, given, deterministic, nullptr, rest, [&](const auto& backward) { bytes = backward.bytes(); });
  return bytes;
}

std::int64_t rest_map_arrays(const Geometry& g, Types types, const UnfoldBackward& given) {
  std::int64_t arrays = 0;
  visit_backward(g, types, given, true, nullptr, true, [&](const auto& backward) { arrays = backward.map_arrays(); });
  return arrays;
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream,
                     const Rest* rest) {
  visit_backward(g, types, given, deterministic, rest, rest != nullptr, [&](const auto& backward) { backward.run(stream); });
}

}  // namespace ddu::cuda::channels_last
