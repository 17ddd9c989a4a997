#pragma once

// What a warp of conv_input_gather_kernel writes: the gradient of 4 x 4 pixels, or its sums in float32.

#include "input_lists.cuh"
#include "weights.cuh"

namespace ddu::cuda {

constexpr int kGatherOutputs = 64, kGatherChannels = 64;  // of a slice of weights
/// Runs of 128 bytes of outputs, of which a slice has that many for each column.
template <class T>
constexpr int kGatherRuns = kGatherOutputs * int(sizeof(T)) / 128;
template <class T>
constexpr int kGatherSliceBytes = kGatherOutputs * kGatherChannels * int(sizeof(T));

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

/// Adds the share of grad_output's row of one position to z, to pixels g and g + 8 of the patch that its tap reads.
template <class T>
__device__ __forceinline__ void add_exact_row(const InputGatherParams& p, const T* row, const float (&share)[2], float factor,
                                              float (&z)[kGatherOutputs / 8][4]) {
  constexpr int kN = kVec<T>, kRuns = kGatherRuns<T>;
  const int q = int(threadIdx.x) % 4;
#pragma unroll
  for (int part = 0; part < 2 * kRuns; ++part) {
    const int run = part / 2, h = part % 2, output = run * (kGatherOutputs / kRuns) + (2 * q + h) * kN;
    if (output >= p.group_outputs) continue;
    Bits16<T> bits;
    bits.whole = *reinterpret_cast<const uint4*>(row + output);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float value = bits.get(i) * factor;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (share[r] > 0) z[run * kN + i][2 * r + h] += share[r] * value;
      }
    }
  }
}

/// Adds z x weights to pixels g and g + 8 if a tap reads them. In TF32, whose range is that of float32.
template <class T>
__device__ __forceinline__ void add_exact_product(const float (&z)[kGatherOutputs / 8][4], const bool (&read)[2],
                                                  const char* slice, float (&sums)[kGatherChannels / 2]) {
  const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll 1
  for (int i = 0; i < kGatherChannels / kMmaColumns; ++i) {
    float d[4] = {};
#pragma unroll
    for (int k = 0; k < kGatherOutputs / 8; ++k) {
      const unsigned a[4] = {to_tf32(z[k][0]), to_tf32(z[k][2]), to_tf32(z[k][1]), to_tf32(z[k][3])};
      const auto word = [&](int w) {  // of the column's outputs, a word after the other
        const int column = i * kMmaColumns + g, piece = w / 4 % 8;
        const char* const run = slice + w / 32 * (kGatherChannels * 128);
        return *reinterpret_cast<const unsigned*>(run + column * 128 + (piece ^ g) * 16 + w % 4 * 4);
      };
      unsigned b[2];
      if constexpr (sizeof(T) == 4) {
        b[0] = word(k * 8 + q);
        b[1] = word(k * 8 + 4 + q);
      } else {
        Bits16<T> two;
        two.word[0] = word(k * 4 + q);
        b[0] = __float_as_uint(two.get(0));
        b[1] = __float_as_uint(two.get(1));
      }
      mma<float>(d, a, b);
    }
#pragma unroll
    for (int n = 0; n < kGatherChannels / kMmaColumns; ++n) {  // sums stay in registers
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (n == i && read[e / 2]) sums[4 * n + e] += d[e];
      }
    }
  }
}

/// The same where several weight groups are multiplied at once, and zeros beside a group's weights may meet what is not finite:
/// without tensor cores. Pixel after pixel of a lane, by way of memory in which a warp has room for eight of them.
template <class T>
__device__ __forceinline__ void add_own_products(const InputGatherParams& p, const InputGatherWork& work, const T* weight,
                                                 const float (&z)[kGatherOutputs / 8][4], const bool (&read)[2], float* memory,
                                                 int tap, float (&sums)[kGatherChannels / 2]) {
  constexpr int kN = kVec<T>, kRuns = kGatherRuns<T>;
  const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
  float* const pixel = memory + g * kGatherOutputs;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kGatherOutputs / 8; ++k) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        pixel[k / kN * (kGatherOutputs / kRuns) + (2 * q + h) * kN + k % kN] = z[k][2 * r + h];
      }
    }
    __syncwarp();
    if (!read[r]) continue;
#pragma unroll 1
    for (int i = 0; i < kGatherChannels / 4; ++i) {
      const int channel = work.slice * kGatherChannels + output_of_column<T>(i / 2, 2 * q + i % 2);
      if (channel >= p.unit_channels) continue;
      const float sum = column_gradient(p, work.unit, pixel, weight, channel, tap);
#pragma unroll
      for (int n = 0; n < kGatherChannels / 4; ++n) {  // sums stay in registers
        if (n == i) sums[n / 2 * 4 + 2 * r + n % 2] += sum;
      }
    }
  }
  __syncwarp();
}

/// What the pixels of this warp's patch get, where something is not finite: of a position only the pixels that its tap reads
/// get a share. S x grad_output so is no product of tensor cores. Needs no other warps, and not the lists, in whose place it
/// may keep sums.
template <class T>
__device__ __forceinline__ void sum_exact_patch(const InputGatherParams& p, const InputGatherPointers<T>& tensors,
                                                const InputLists& lists, unsigned unit_slice, unsigned tile, const char* slices,
                                                float (&sums)[kGatherChannels / 2]) {
  const InputGatherWork work(p, unit_slice, tile);
  const int lane = int(threadIdx.x) % 32, patch = int(threadIdx.x) / 32;
  const int pixel_y = work.y + patch / kTilePatches * kGatherPatch, pixel_x = work.x + patch % kTilePatches * kGatherPatch;
  const float row = float(lane / 16) - kPatchMiddle, column = float(lane / 4 % 4) - kPatchMiddle;
  const std::int64_t plane = work.plane(p);
  const T* const outputs = tensors.grad_output + work.unit.outputs(p, work.image);
  const T* const mask = tensors.mask ? tensors.mask + work.unit.mask(p, work.image) : nullptr;
  const auto from_middle = [&](const Sampler<float>& axis, int o, int pixel) {
    return float(axis.base(o) - pixel) + (axis.half - kPatchMiddle);
  };
#pragma unroll
  for (float& sum : sums) sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap) {
    const TapOffset offset(p, tap);
    float z[kGatherOutputs / 8][4] = {};
    bool read[2] = {};
#pragma unroll 1
    for (int some = 0; some < p.boxes; some += 32) {
      bool may = false;
      if (some + lane < p.boxes) {
        const BoxPlace box(p, some + lane);
        may = may_land(p, tensors.ranges[plane * p.boxes + some + lane], offset, from_middle(p.y, box.first_y, pixel_y),
                       from_middle(p.x, box.first_x, pixel_x), kPatchReach);
      }
#pragma unroll 1
      for (unsigned left = __ballot_sync(~0u, may); left != 0; left &= left - 1) {
        const BoxPlace at(p, some + __ffs(int(left)) - 1);
        const int position = at.position(p);
        const float rate = at.there(p) ? load_rate<float>(tensors.map, p.map_type, plane * p.positions + position) : NAN;
        const float y = offset.y * rate + from_middle(p.y, at.y, pixel_y),
                    x = offset.x * rate + from_middle(p.x, at.x, pixel_x);
        const bool hit = fabsf(y) < kPatchReach && fabsf(x) < kPatchReach;
#pragma unroll 1
        for (unsigned hits = __ballot_sync(~0u, hit); hits != 0; hits &= hits - 1) {
          const auto of = [&](unsigned value) { return __shfl_sync(~0u, value, __ffs(int(hits)) - 1); };
          const float its_y = __uint_as_float(of(__float_as_uint(y))), its_x = __uint_as_float(of(__float_as_uint(x)));
          const int its_position = int(of(unsigned(position)));
          const float of_x = __saturatef(1 - fabsf(its_x - column));
          const float share[2] = {of_x * __saturatef(1 - fabsf(its_y - row)), of_x * __saturatef(1 - fabsf(its_y - (row + 2)))};
          const float factor = mask ? widen(mask[std::int64_t{tap} * p.positions + its_position]) : 1;
          add_exact_row(p, outputs + std::int64_t{its_position} * p.outputs.pixel, share, factor, z);
          for (int r = 0; r < 2; ++r) read[r] |= share[r] > 0;
        }
      }
    }
    if (p.own.outputs() < p.group_outputs) {
      add_own_products(p, work, tensors.weight, z, read, lists.memory(), tap, sums);
    } else {
      add_exact_product<T>(z, read, slices + tap * kGatherSliceBytes<T>, sums);
    }
  }
}

}  // namespace ddu::cuda
