#pragma once

// A gradient whose elements several warps have a part of: written at once where one warp has all of it, else by way of sums in
// scratch memory.

#include "../core/elementwise.cuh"
#include "../core/launch.h"
#include "../core/workspace.h"

namespace ddu::cuda {

/// Stores what a lane has summed for an element of a gradient: in array `array` of the sums, of `size` elements each, or, if
/// that is 0, added to the one that there is; or, if there are no sums, as the gradient itself.
template <class T, class Acc>
__device__ __forceinline__ void store_sum(Acc* sums, T* gradient, std::int64_t array, std::int64_t size, std::int64_t at,
                                          Acc sum) {
  if (!sums) {
    gradient[at] = narrow<T>(sum);
  } else if (size == 0) {
    atomicAdd(sums + at, sum);
  } else {
    sums[array * size + at] = sum;
  }
}

/// The host's side of that: a gradient that several warps may add to, and its sums.
template <class Acc>
struct SharedGradient {
  void* gradient = nullptr;
  DType type{};
  std::int64_t count = 0;   // elements
  std::int64_t arrays = 1;  // of sums that are kept apart; 0 where all are added to one
  Acc* sums = nullptr;      // null: the gradient's elements are written as they are

  /// `meeting`: warps that have a part of one element.
  void lay_out(Workspace& workspace, void* wanted, DType of_type, std::int64_t elements, std::int64_t meeting,
               bool deterministic) {
    gradient = wanted;
    type = of_type;
    count = elements;
    if (!gradient) return;
    arrays = meeting == 1 || deterministic ? meeting : 0;
    if (arrays > 1 || (is_half(type) && arrays != 1)) {
      scratch_ = true;
      sums = workspace.template take<Acc>(std::max<std::int64_t>(arrays, 1) * count);
    }
  }
  /// Where kernels that know sums alone write, even one part of a half gradient.
  void always_sums(Workspace& workspace) {
    if (!gradient || scratch_) return;
    if (!is_half(type)) {
      sums = static_cast<Acc*>(gradient);
    } else {
      scratch_ = true;
      sums = workspace.template take<Acc>(count);
    }
  }
  std::int64_t part() const { return arrays == 0 ? 0 : count; }
  void clear(Stream stream) const {
    if (!gradient || arrays != 0) return;
    DDU_CUDA_CHECK(cudaMemsetAsync(sums, 0, sizeof(Acc) * static_cast<std::size_t>(count), stream));
  }
  /// The gradient from its sums, where those lie apart.
  void write(Stream stream) const {
    if (!gradient || !scratch_) return;
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(count, 256), 16384));
    visit(type, [&](auto* to) {
      using M = std::remove_pointer_t<decltype(to)>;
      if constexpr (std::is_same_v<accumulator_t<M>, Acc>) {
        launch(add_arrays_kernel<M, Acc>, {blocks, 256, 0, true}, stream, static_cast<const Acc*>(sums),
               static_cast<M*>(gradient), count, std::max<std::int64_t>(arrays, 1));
      }
    });
  }

 private:
  bool scratch_ = false;
};

}  // namespace ddu::cuda
