#pragma once

// What a warp of conv_input_gather_kernel writes: the gradient of 4 x 4 pixels, or its sums in float32.

#include "input_lists.cuh"

namespace ddu::cuda {

constexpr int kGatherOutputs = 64, kGatherChannels = 64;  // of a slice of weights

template <class T>
struct InputGatherPointers {
  const T* grad_output;  // rows
  const char* slices;    // of weights
  const RateRange* ranges;
  const T* mask;  // null for ones
  const void* map;
  const T* weight;
  T* gradient;  // rows, or null
  float* sums;  // rows, where that is null
};

/// Stores a patch's sums.
template <class T>
__device__ __forceinline__ void store_patch(const InputGatherParams& p, const InputGatherWork& work,
                                            const InputGatherPointers<T>& tensors, const float (&sums)[kGatherChannels / 2]) {
  constexpr int kN = kVec<T>;
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4, patch = int(threadIdx.x) / 32;
  const int x = work.x + patch % kTilePatches * kGatherPatch + g % 4;
  const int first = work.slice * kGatherChannels;
  if (x >= p.x.size) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int y = work.y + patch / kTilePatches * kGatherPatch + g / 4 + 2 * r;
    if (y >= p.y.size) continue;
    const std::int64_t pixel =
        work.unit.pixels(p, work.image) + (std::int64_t{y} * p.width + x) * p.rows.pixel + first + q * kN;
#pragma unroll
    for (int run = 0; run < kGatherChannels / (4 * kN); ++run) {
      float value[kN];
#pragma unroll
      for (int c = 0; c < kN; c += 2) {
        const float* const sum = sums + (run * (kN / 2) + c / 2) * 4 + r * 2;
        value[c] = sum[0];
        value[c + 1] = sum[1];
      }
      const int there = p.unit_channels - first - q * kN - run * 4 * kN;
      const std::int64_t at = pixel + run * 4 * kN;
      const auto store = [&](auto* to) {
        using To = std::remove_pointer_t<decltype(to)>;
        if (p.image_vectors && there >= kN) {
          store_vector<To, kN>(to, value);
        } else {
#pragma unroll
          for (int c = 0; c < kN; ++c) {
            if (c < there) to[c] = narrow<To>(value[c]);
          }
        }
      };
      if (tensors.gradient) {
        store(tensors.gradient + at);
      } else {
        store(tensors.sums + at);
      }
    }
  }
}

/// What the pixels of this warp's patch get, without tensor cores: of a column's gradient that is not finite only the pixels
/// that its tap reads get a share. Slow, and seldom needed. A lane has two channels.
template <class T>
__device__ __forceinline__ void store_exact_patch(const InputGatherParams& p, const InputGatherPointers<T>& tensors,
                                                  unsigned unit_slice, unsigned tile) {
  const InputGatherWork work(p, unit_slice, tile);
  const int lane = int(threadIdx.x) % 32, patch = int(threadIdx.x) / 32;
  const int patch_y = work.y + patch / kTilePatches * kGatherPatch, patch_x = work.x + patch % kTilePatches * kGatherPatch;
  const int channel = work.slice * kGatherChannels + 2 * lane, there = min(p.unit_channels - channel, 2);
  const std::int64_t plane = work.plane(p);
  const T* const outputs = tensors.grad_output + work.unit.outputs(p, work.image);
  float sums[kGatherPatch * kGatherPatch][2] = {};
  for (int box = 0; box < p.boxes; ++box) {
    const RateRange rates = tensors.ranges[plane * p.boxes + box];
    const BoxPlace at(p, box);
    if (!at.may_land(p, rates, patch_y, patch_x, kGatherPatch)) continue;
    const bool there_is = at.y < p.out_height && at.x < p.out_width;
    const int position = at.y * p.out_width + at.x;
    const float rate = there_is ? load_rate<float>(tensors.map, p.map_type, plane * p.positions + position) : NAN;
    for (int tap = 0; tap < p.taps; ++tap) {
      const Pixels<float> y = p.y.pixels(p.y.base(at.y), p.y.offset(tap / p.kernel_w), is_finite(rate) ? rate : 0);
      const Pixels<float> x = p.x.pixels(p.x.base(at.x), p.x.offset(tap % p.kernel_w), is_finite(rate) ? rate : 0);
      const int row = y.index - patch_y, column = x.index - patch_x;
      const bool hit = is_finite(rate) && row >= -1 && row < kGatherPatch && column >= -1 && column < kGatherPatch;
      const unsigned corners = unsigned(y.first) | unsigned(y.second) << 1 | unsigned(x.first) << 2 | unsigned(x.second) << 3;
      for (unsigned hits = __ballot_sync(~0u, hit); hits != 0; hits &= hits - 1) {
        const int from = __ffs(int(hits)) - 1;
        const auto of = [&](unsigned value) { return __shfl_sync(~0u, value, from); };
        const int its_row = int(of(unsigned(row))), its_column = int(of(unsigned(column))),
                  its_position = int(of(unsigned(position)));
        const float fy = __uint_as_float(of(__float_as_uint(y.fraction))),
                    fx = __uint_as_float(of(__float_as_uint(x.fraction)));
        const unsigned its_corners = of(corners);
        float gradient[2] = {};
#pragma unroll 1
        for (int c = 0; c < there; ++c) {
          const float of_channel = column_gradient(p, work.unit, outputs + std::int64_t{its_position} * p.outputs.pixel,
                                                   tensors.weight, channel + c, tap);
          (c == 0 ? gradient[0] : gradient[1]) = of_channel;
        }
        if (tensors.mask) {
          const float factor =
              widen(tensors.mask[work.unit.mask(p, work.image) + std::int64_t{tap} * p.positions + its_position]);
          for (float& of_channel : gradient) of_channel *= factor;
        }
#pragma unroll
        for (int i = 0; i < kGatherPatch * kGatherPatch; ++i) {
          const int down = i / kGatherPatch - its_row, right = i % kGatherPatch - its_column;
          if (unsigned(down) > 1 || unsigned(right) > 1) continue;
          if (!(its_corners >> down & its_corners >> (2 + right) & 1)) continue;
          const float share = corner_weight(down, right, fy, fx);
          sums[i][0] += share * gradient[0];
          sums[i][1] += share * gradient[1];
        }
      }
    }
  }
  for (int i = 0; i < kGatherPatch * kGatherPatch; ++i) {
    const int y = patch_y + i / kGatherPatch, x = patch_x + i % kGatherPatch;
    if (y >= p.y.size || x >= p.x.size) continue;
    const std::int64_t pixel = work.unit.pixels(p, work.image) + (std::int64_t{y} * p.width + x) * p.rows.pixel + channel;
    for (int c = 0; c < there; ++c) {
      if (tensors.gradient) {
        tensors.gradient[pixel + c] = narrow<T>(sums[i][c]);
      } else {
        tensors.sums[pixel + c] = sums[i][c];
      }
    }
  }
}

}  // namespace ddu::cuda
