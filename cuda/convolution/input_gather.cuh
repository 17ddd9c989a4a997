#pragma once

// The gradient of the input, gathered: a block has 16 x 16 pixels and sums all that lands on them, so each pixel is written
// once. For each tap a warp, which has 4 x 4 of the pixels, takes the positions whose tap lands there (input_lists.cuh):
//
//   1  z [16 pixels, 64 outputs]    = S x grad_output [positions, 64 outputs]     S [16 pixels, positions] = hat(y) * hat(x)
//   2  sums [16 pixels, 64 channels] += z x weights [64 outputs, 64 channels]      hat(d) = max(0, 1 - |d|)
//
// The first is a product of TF32: 11 bits of S, all of grad_output in a half type, sums in float32. For the second z is rounded
// to the type, as a gradient of columns would be. S is worked out in the lanes that multiply by it; rows of grad_output come
// straight from memory, z stays in registers:
//
//   grad_output [8 positions, 64 outputs]   lane 4g + q has of positions q and q + 4 piece g of 16 bytes (of float32 then
//                                           g + 8): word i is its row of factor B of product i, whose column is g
//   z                                       what a lane has of it, rows g and g + 8, is its fragment of A in the next
//                                           product: the weights are packed in the order of outputs that this makes
//
// What is not finite would be NaN in a whole patch, since it is multiplied by zeros: such patches are summed again
// (input_patch.cuh).

#include "../core/warpgroup_mma.cuh"
#include "factors.cuh"
#include "input_patch.cuh"
#include "square.cuh"
#include "step_ring.cuh"

namespace ddu::cuda {

/// Which output of its slice element `element` of run `run` of a column multiplies.
template <class T>
__host__ __device__ constexpr int output_of_element(int run, int element) {
  if (sizeof(T) == 4) {
    const int product = element / 8, k = element % 8, g = k < 4 ? 2 * k : 2 * k - 7;
    return run * 32 + g * 4 + product;
  }
  const int word = element / 2, product = word / 4, g = word % 4 * 2 + element % 2;
  return g * 8 + product;
}

/// Packs vector `index` of the weights, [unit][slice of channels][tap][run][column][16-byte piece ^ column % 8].
template <class T>
__device__ __forceinline__ void pack_for_gather(const InputGatherParams& p, const T* weight, uint4* to, std::int64_t index) {
  const int column = int(index / 8 % kGatherChannels), piece = int(index % 8) ^ column % 8;
  const int run = int(index / (8 * kGatherChannels) % kGatherRuns<T>);
  std::int64_t rest = index / (8 * kGatherRuns<T> * kGatherChannels);
  const int tap = int(rest % p.taps);
  rest /= p.taps;
  const int slice = int(rest % p.by_channel_slices.divisor);
  const ConvUnit unit(p, int(rest / p.by_channel_slices.divisor));
  const int channel = slice * kGatherChannels + output_of_column<T>(column / kMmaColumns, column % kMmaColumns);
  float value[kVec<T>];
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) {
    const int output = output_of_element<T>(run, piece * kVec<T> + i);
    value[i] = 0;
    if (channel >= p.unit_channels || output >= p.group_outputs) continue;
    const std::int64_t at = p.weight(unit.weight_group, output, unit.of_weight_group * p.unit_channels + channel);
    if (at >= 0) value[i] = widen(__ldg(weight + at + tap));
    if (sizeof(T) == 4) value[i] = __uint_as_float(to_tf32(value[i]));
  }
  to[index] = factors_of<T>(value);
}

/// Element `index` of 16 bytes as a factor of TF32, which has all digits of a half type.
template <class T>
__device__ __forceinline__ unsigned factor_of(const uint4& bits, int index) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
  if constexpr (sizeof(T) == 4) {
    return to_tf32(__uint_as_float(words[index]));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return index % 2 ? words[index / 2] & 0xffff0000u : words[index / 2] << 16;
  } else {
    const auto half = static_cast<unsigned short>(words[index / 2] >> (index % 2 * 16));
    return __float_as_uint(widen(reinterpret_cast<const T&>(half)));
  }
}

/// A factor of TF32, rounded to nearest; of a number that is finite, or NaN.
__device__ __forceinline__ unsigned nearest_tf32(float value) {
#if __CUDA_ARCH__ >= 900
  unsigned word;
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));  // one instruction, where rna takes three
  return word;
#else
  return to_tf32(value);
#endif
}

/// A lane's part of 8 entries of a list: entries q and q + 4 of them.
template <class T>
struct ListedRows {
  T factor[2];
  uint4 row[2];

  __device__ __forceinline__ static const uint4* row_of(const InputGatherParams& p, const char* outputs, int position) {
    return reinterpret_cast<const uint4*>(outputs + std::uint64_t{unsigned(position)} * unsigned(p.output_bytes));
  }
  /// 16 bytes of the outputs of entries from `at` on.
  template <bool kMasked>
  __device__ __forceinline__ void load(const InputGatherParams& p, const InputLists& lists, int at, const char* outputs,
                                       const T* mask) {
    const int q = int(threadIdx.x) % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int position = lists.positions[at + q + 4 * e];
      row[e] = *row_of(p, outputs, position);
      if (kMasked) factor[e] = __ldg(mask + position);
    }
  }
};

/// The products of a warp: its patch's sums of the taps that have lists.
template <class T, bool kMasked>
struct PatchProducts {
  static constexpr int kHalves = sizeof(T) == 4 ? 2 : 1;  // of a slice's outputs: those that lanes have at once
  static constexpr int kPass = 8;                         // entries

  const InputGatherParams& p;
  const InputLists& lists;
  float row, column;  // of the lane's first pixel, from the patch's middle
  float z[kGatherOutputs / 8][4];

  /// Adds the entries from `at` on, whose rows `now` has, while `ahead` loads those behind them; the other half of the outputs
  /// lies `high` bytes further.
  __device__ __forceinline__ void add(int at, const ListedRows<T>& now, int high, ListedRows<T>& ahead, const char* outputs,
                                      const T* mask) {
    uint4 second[2];
    const int first = at + int(threadIdx.x) % 4;
    if (kHalves == 2) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        second[e] = *ListedRows<T>::row_of(p, outputs + high, lists.positions[first + 4 * e]);
      }
    }
    ahead.template load<kMasked>(p, lists, at + kPass, outputs, mask);
    unsigned a[4];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float2 place = lists.places[first + 4 * e];
      float x = __saturatef(1 - fabsf(place.y - column));
      if (kMasked) x *= widen(now.factor[e]);
      a[2 * e] = nearest_tf32(x * __saturatef(1 - fabsf(place.x - row)));
      a[2 * e + 1] = nearest_tf32(x * __saturatef(1 - fabsf(place.x - (row + 2))));
    }
    multiply(a, now.row, 0);
    if (kHalves == 2) multiply(a, second, kVec<T>);
  }

 private:
  __device__ __forceinline__ void multiply(const unsigned (&a)[4], const uint4 (&rows)[2], int first) {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      const unsigned b[2] = {factor_of<T>(rows[0], i), factor_of<T>(rows[1], i)};
      mma<float>(z[first + i], a, b);
    }
  }
};

/// Rows g and g + 8 of z, 128 bytes of the type of each, as the next product's factor.
template <class T>
__device__ __forceinline__ void round_run(const float (&z)[kGatherOutputs / 8][4], int run, StepRow (&rows)[2]) {
#pragma unroll
  for (int k = 0; k < 8; ++k) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (sizeof(T) == 4) {
        rows[r].word[k] = nearest_tf32(z[run * 4 + k / 2][2 * r + k % 2]);
      } else {
        rows[r].word[k] = pack_pair<T>(z[k][2 * r], z[k][2 * r + 1]);
      }
    }
  }
}

/// Adds what the lists have to the sums of this warp's patch.
template <class T, bool kWarpgroup, bool kMasked, class Ring>
__device__ __forceinline__ void add_listed(const InputGatherParams& p, const InputGatherWork& work,
                                           const InputGatherPointers<T>& tensors, const InputLists& lists, Ring& ring,
                                           float (&sums)[kGatherChannels / 2]) {
  using Products = PatchProducts<T, kMasked>;
  constexpr int kPass = Products::kPass;
  const int g = int(threadIdx.x) % 32 / 4;
  // Of outputs that there are not, whose weights are zero, a lane reads others.
  const T* const first_output = tensors.grad_output + work.unit.outputs(p, work.image);
  const auto outputs = reinterpret_cast<const char*>(first_output + (g * kVec<T> < p.group_outputs ? g * kVec<T> : 0));
  const int high = (g + 8) * kVec<T> < p.group_outputs ? 128 : 0;
  const T* next_mask = kMasked ? tensors.mask + work.unit.mask(p, work.image) : nullptr;
  Products products{p, lists, float(g / 4) - kPatchMiddle, float(g % 4) - kPatchMiddle, {}};
  ListedRows<T> even, odd;
  bool in_odd = false;  // which of them is the next tap's first
  int at = 0;
  even.template load<kMasked>(p, lists, at, outputs, next_mask);
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap) {
    int left = (lists.starts[tap + 1] - at) / kPass;
    const T* const mask = next_mask;
    if (kMasked && tap + 1 < p.taps) next_mask += p.positions;
#pragma unroll
    for (auto& tile : products.z) {
#pragma unroll
      for (float& sum : tile) sum = 0;
    }
    const auto pass = [&](ListedRows<T>& now, ListedRows<T>& ahead) {
      const bool last = --left == 0;
      products.add(at, now, high, ahead, outputs, last ? next_mask : mask);
      at += kPass;
      return last;
    };
    // Rows that are ahead stay where they are loaded: a copy would wait for them.
    const auto passes = [&](ListedRows<T>& first, ListedRows<T>& second) {
#pragma unroll 1
      while (true) {
        if (pass(first, second)) return true;
        if (pass(second, first)) return false;
      }
    };
    in_odd = in_odd ? !passes(odd, even) : passes(even, odd);
    const char* const slice = ring.wait();
#pragma unroll
    for (int run = 0; run < kGatherRuns<T>; ++run) {
      StepRow rows[2];
      round_run<T>(products.z, run, rows);
      multiply<T, kGatherChannels, kWarpgroup>(sums, rows, slice + run * (kGatherChannels * 128), true);
    }
    if constexpr (kWarpgroup) finish_products(sums);
    ring.release();
  }
}

/// All that is added to a tile: in one round, or in several where that many taps land there.
template <class T, bool kWarpgroup, bool kMasked, class Ring>
__device__ __forceinline__ void add_taps(const InputGatherParams& p, const InputGatherPointers<T>& tensors,
                                         const InputLists& lists, unsigned unit_slice, unsigned tile, Ring& ring,
                                         float (&sums)[kGatherChannels / 2]) {
  int boxes_at_once = p.boxes;
#pragma unroll 1
  for (int box = 0; box < p.boxes;) {
    const int end = min(box + boxes_at_once, p.boxes);
    const int found = lists.find(p, InputGatherWork(p, unit_slice, tile), tensors.ranges, tensors.map, box, end);
    if (found > kGatherBoxes) {
      boxes_at_once = (end - box + 1) / 2;
      continue;
    }
    int first = 0, at_once = found;
#pragma unroll 1
    do {
      const int last = min(first + at_once, found);
      const bool fits = lists.fill(p, first, last, PatchProducts<T, kMasked>::kPass);
      if (__syncthreads_or(!fits)) {
        at_once = (last - first + 1) / 2;
        continue;
      }
      add_listed<T, kWarpgroup, kMasked>(p, InputGatherWork(p, unit_slice, tile), tensors, lists, ring, sums);
      first = last;
    } while (first < found);
    box = end;
  }
}

template <class T, bool kWarpgroup, bool kMasked>
__global__ void __launch_bounds__(kGatherThreads, 1)
    conv_input_gather_kernel(const __grid_constant__ InputGatherParams p,
                             const __grid_constant__ InputGatherPointers<T> tensors) {
  if constexpr (kHasSquareKernel<kWarpgroup>) {
    using Ring = StepRing<kGatherSliceBytes<T>, kGatherTaps, kWarpgroup, true>;
    extern __shared__ char shared[];
    const InputLists lists(shared + Ring::kBytes);
    lists.set_taps(p);
    const unsigned unit_slice = blockIdx.x / unsigned(p.tiles_at_once);
    unsigned tile = blockIdx.x % unsigned(p.tiles_at_once);
    Ring ring(shared, tensors.slices + std::int64_t{unit_slice} * p.taps * kGatherSliceBytes<T>, p.taps,
              (p.tiles - int(tile) - 1) / p.tiles_at_once + 1);
    ring.start();
    wait_for_previous();
#pragma unroll 1
    for (; tile < unsigned(p.tiles); tile += unsigned(p.tiles_at_once)) {
      float sums[kGatherChannels / 2] = {};
      add_taps<T, kWarpgroup, kMasked>(p, tensors, lists, unit_slice, tile, ring, sums);
      float check = 0;
#pragma unroll
      for (const float sum : sums) check += sum * 0;
      if (__any_sync(~0u, check != 0)) sum_exact_patch(p, tensors, lists, unit_slice, tile, ring.slices, sums);
      store_patch(p, InputGatherWork(p, unit_slice, tile), tensors, sums);
    }
  }
}

}  // namespace ddu::cuda
