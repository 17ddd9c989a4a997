#pragma once

// Where the sums of a step go, once its taps are done, and what becomes of channels that have no fixed-point unit:
//
//     BackwardForm   sums of the window                                      channels without a unit
//     add, wide      planes of the gradient, added in floating point         the same, tap by tap
//     store          the tile's stored window (deterministic.cuh)            deterministic_fallback.cuh
//     ordered        ordered sums (core/ordered_sums.cuh)                    the same

#include "../core/ordered_sums.cuh"
#include "fixed_point.cuh"
#include "window_load.cuh"
#include "without_window.cuh"

namespace ddu::cuda {

/// What a kernel does with its tiles: it adds their sums to the gradient, or stores them for a deterministic backward; or it
/// takes wide tiles, of those that another kernel has left, and adds their sums: to the gradient, or, for a deterministic
/// backward, to ordered sums.
enum class BackwardForm { add, store, wide, ordered };
__host__ __device__ constexpr bool is_wide(BackwardForm form) {
  return form == BackwardForm::wide || form == BackwardForm::ordered;
}
__host__ __device__ constexpr bool is_deterministic(BackwardForm form) {
  return form == BackwardForm::store || form == BackwardForm::ordered;
}

/// Leaves channels of a tile, counted from the first of the block, to the kernel of deterministic_fallback.cuh: of a wide tile
/// those of its parts that it has taken.
template <BackwardForm kForm, int kThreads, class T>
__device__ __forceinline__ void mark_fallback(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                              int first, int channels) {
  constexpr bool kWide = is_wide(kForm);
  const int part_height = kWide ? tensors.wide.part_height : p.tile_height, parts = p.tile_height / part_height;
  const int part_rows = (p.out_height + part_height - 1) / part_height;
  const std::int64_t tiles = std::int64_t{part_rows} * p.tile_columns;
  const unsigned char* marks = tensors.marks + (std::int64_t{work.image} * p.groups + work.group) * tiles;
  for (int i = threadIdx.x; i < parts * channels; i += kThreads) {
    const int row = work.tile_y * parts + i % parts;
    const std::int64_t tile = std::int64_t{row} * p.tile_columns + work.tile_x;
    if (row >= part_rows || (kWide && marks[tile] != kLeftToWideTiles)) continue;
    leave_to_fallback(tensors.fallback_marks, work.plane(p) + first + i / parts, tiles, tile, kAllGradients);
  }
}

/// Channels of a tile that fixed-point sums cannot take, counted from the first of the block: to the fallback, or in floating
/// point straight onto the gradient.
template <BackwardForm kForm, int kThreads, class T>
__device__ __forceinline__ void scatter_otherwise(const Params<float>& p, const BackwardPointers<T>& tensors,
                                                  const WorkTile& work, const Position<float>& position, const T* columns,
                                                  float* grad_input, int first, int channels) {
  if constexpr (is_deterministic(kForm)) {
    mark_fallback<kForm, kThreads>(p, tensors, work, first, channels);
  } else {
    scatter_without_window(p, position, columns, channels, AddTo<float>{grad_input});
  }
}

/// Channels of a block that adds to ordered sums, at most.
constexpr int kMostOrderedChannels = 256;

/// The exponents of such a block's channels (OrderedSums::exponent), in shared memory: asked for step by step, each would be
/// waited for.
__device__ __forceinline__ int* ordered_exponents() {
  static __shared__ int exponents[kMostOrderedChannels];
  return exponents;
}
/// Fills them in, ahead of a barrier.
template <int kThreads, class T>
__device__ __forceinline__ void note_exponents(const Params<float>& p, const BackwardPointers<T>& tensors,
                                               const WorkTile& work) {
  const auto ordered = OrderedPlanes{tensors.high, tensors.largest, nullptr}.template sums<T>(p.taps() * p.positions());
  for (int i = threadIdx.x; i < work.channels; i += kThreads) ordered_exponents()[i] = ordered.exponent(work.plane(p) + i);
}
/// From the integers of a tile to ordered sums of a channel of the block, both in units that are powers of two: how many bits
/// to the left.
__device__ __forceinline__ int shift_to_ordered(float unit, int channel) {
  return (__float_as_int(unit) >> 23) - 127 + ordered_exponents()[channel];
}
/// Whether the sums of a step have units: also that ordered sums cannot overflow, though each tile adds integers of 32 bits.
/// `left` channels of the block are left, with those of this step.
template <BackwardForm kForm, int kVec>
__device__ __forceinline__ bool has_units(const Params<float>& p, const WorkTile& work, int left,
                                          const FixedPointScales<kVec>& scales) {
  if constexpr (kForm == BackwardForm::ordered) {
    const float unit = scales.to_float[0];
    if (unit != 0 && shift_to_ordered(unit, work.channels - left) >= __clz(int(p.by_tiles.divisor))) return false;
  }
  return scales.usable;
}

/// Adds four sums onto a plane of the gradient.
__device__ __forceinline__ void add_vec4(const Params<float>& p, const WindowVec4& vec4, float* plane, const float4& sum) {
  if (vec4.inside == 0 || (sum.x == 0 && sum.y == 0 && sum.z == 0 && sum.w == 0)) return;
  float* target = plane + vec4.pixel;
#if __CUDA_ARCH__ >= 900
  if (p.vec4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w)
                 : "memory");
    return;
  }
#endif
  const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if ((vec4.inside >> i & 1) && sums[i] != 0) atomicAdd(target + i, sums[i]);
  }
}

/// Adds a wide tile's sums of a channel to ordered sums, pixel by pixel, so that neighbours add to neighbours.
template <int kThreads, class T>
__device__ __forceinline__ void flush_to_ordered(const Params<float>& p, const BackwardPointers<T>& tensors,
                                                 const WorkTile& work, const Window& window, int* sums, float unit,
                                                 int channel) {
  const int shift = shift_to_ordered(unit, channel), left = max(shift, 0), right = min(max(-shift, 0), 40);
  unsigned long long* target = tensors.high + (work.plane(p) + channel) * p.pixels();
#pragma unroll 1
  for (int i = threadIdx.x; i < window.elements(); i += kThreads) {
    const int sum = sums[i];
    if (sum == 0) continue;
    sums[i] = 0;
    const int row = small_quotient(i, window.pitch), iy = window.first_y + row, ix = window.first_x + i - row * window.pitch;
    if (unsigned(iy) >= unsigned(p.height) || unsigned(ix) >= unsigned(p.width)) continue;
    const long long term = ((sum * (1ll << left)) + (1ll << right >> 1)) >> right;
    atomicAdd(target + (iy * p.width + ix), static_cast<unsigned long long>(term));
  }
}

/// Phase 4: the window of sums, `valid` channels of it, onto planes of the gradient, into stored windows, or onto ordered sums.
/// Leaves it zero. `valid` channels of the block are left, with those of this step.
template <BackwardForm kForm, int kThreads, class T, int kVec>
__device__ __forceinline__ void flush_sums(const Params<float>& p, const BackwardPointers<T>& tensors, const WorkTile& work,
                                           const Window& window, const WindowVec4& first, int* sums,
                                           const FixedPointScales<kVec>& scales, float* target, std::int64_t target_stride,
                                           int valid) {
  if constexpr (kForm == BackwardForm::ordered) {
    return flush_to_ordered<kThreads>(p, tensors, work, window, sums, scales.to_float[0], work.channels - valid);
  }
  const auto flush = [&](const WindowVec4& vec4) {
    if (!vec4.used) return;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      int4& fixed = *reinterpret_cast<int4*>(sums + j * p.capacity + vec4.element);
      const float unit = scales.to_float[j];
      const float4 sum = make_float4(fixed.x * unit, fixed.y * unit, fixed.z * unit, fixed.w * unit);
      if constexpr (kForm == BackwardForm::store) {
        if (j < valid) *reinterpret_cast<float4*>(target + j * target_stride + vec4.element) = sum;
      } else {
        if (j < valid) add_vec4(p, vec4, target + j * target_stride, sum);
      }
      fixed = make_int4(0, 0, 0, 0);
    }
  };
  flush(first);
  for_each_further_vec4<kThreads>(p, window, flush);
}

}  // namespace ddu::cuda
