#pragma once

// The forward kernel for 3x3 taps of images without NaN and infinities.
//
//   a block: 1, 2 or 4 warpgroups, 8 x 8 positions each, and 64, 128 or 256 outputs. It stays for as many tiles as it gets.
//
//   a lane   samples of tap t: load, blend, round ──> fragments of A in registers ──> products with the slice of tap t
//                                                     while the loads of tap t + 1 are on their way
//
// What is sampled is a factor as it is, so nothing of a step but its weights lies in shared memory (ring.cuh).

#include "axes.cuh"
#include "ring.cuh"

namespace ddu::cuda {

/// Whether the code that is compiled has the kernel with one product or the other. What a build has for warpgroups alone it
/// does not have twice.
#if defined(DDU_HAS_SM90) && __CUDA_ARCH__ == 900
template <bool kWarpgroup>
constexpr bool kHasSquareKernel = kWarpgroup && kHasWarpgroupMma;
#else
template <bool kWarpgroup>
constexpr bool kHasSquareKernel = kWarpgroup ? kHasWarpgroupMma : kHasMma;
#endif

template <class T>
struct SquarePointers {
  const T* input;      // channels-last, each unit in whole vectors
  const char* slices;  // of weights
  const void* map;
  const T* mask;  // or null
  const T* bias;  // or null
  T* output;
  unsigned* left;  // of each image: set if the other kernel has to do it; null if it is known to be finite
};

/// What a block does in all of its tiles.
struct SquareWork {
  int weight_group, output_block;
  unsigned tile, stride;  // the first of its tiles, and from one to the next

  __device__ __forceinline__ explicit SquareWork(const SquareParams& p) {
    const unsigned outputs = p.by_output_blocks.divisor, parts = outputs * p.by_weight_groups.divisor;
    tile = blockIdx.x / parts;
    stride = gridDim.x / parts;
    const unsigned part = blockIdx.x % parts;
    weight_group = int(part / outputs);
    output_block = int(part % outputs);
  }
  __device__ __forceinline__ int tiles(const SquareParams& p) const { return int((p.tiles - tile + stride - 1) / stride); }
};

/// Samples of a lane's two positions.
template <class T>
struct SquareSampler {
  AxisTable table;
  bool masked;
  LanePieces lane;
  PositionSamples<T> of[2];

  /// Turns to a block of channels of a tile.
  __device__ __forceinline__ void enter(const SquareParams& p, const SquarePointers<T>& tensors, const SquareWork& work,
                                        unsigned tile, int n) {
    const WarpPlace place(p, tile);
    const ChannelBlock block(p, work, n, kVec<T>);
    if (block.first) {
      table.fill(p, place, tensors.map, block.group);
      if (masked) table.fill_factors(p, place, tensors.mask, block.head);
    }
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
    lane.odd = g % 2;
    lane.column = unsigned(p.x.base(place.column(p, g))) * p.pixel_bytes;
#pragma unroll
    for (int r = 0; r < 2; ++r) lane.row[r] = unsigned(p.y.base(place.row(p, r))) * p.row_bytes;
    const T* image = tensors.input + place.image * p.rows.image + block.at;
#pragma unroll
    for (int taken = 0; taken < 2; ++taken) {
      // Where a unit ends within the step weights are zero, and what they meet only has to be finite.
      const int piece = (taken ^ int(lane.odd)) * 4 + q;
      lane.taken[taken] = reinterpret_cast<const char*>(image + (piece < block.vectors ? piece : 0) * kVec<T>);
    }
  }
  __device__ __forceinline__ void locate(int r, int t) { of[r].locate(lane, table, r, t / kSquare, t % kSquare, masked); }
  __device__ __forceinline__ void load(int r, int t, int taken) { of[r].load(lane, t / kSquare, t % kSquare, taken); }
  __device__ __forceinline__ void blend(int r, int t, int taken, StepRow& row) const {
    row.put(taken, of[r].blend(t / kSquare, t % kSquare, taken, masked));
    if (taken == 1) row.sort(lane.odd);
  }
};

template <class T, int kOutputs>
__device__ __forceinline__ void store_sums(const SquareParams& p, const SquarePointers<T>& tensors, const SquareWork& work,
                                           unsigned tile, const float (&sums)[kOutputs / 2]) {
  constexpr int kN = kVec<T>;
  const WarpPlace place(p, tile);
  // A pixel that is not finite makes all sums so of the position whose middle it is.
  if (tensors.left && (sums[0] * 0 != 0 || sums[2] * 0 != 0)) tensors.left[place.image] = 1;
  const int lane = int(threadIdx.x) % 32, ox = place.x + lane / 4;
  if (ox >= p.out_width) return;
#pragma unroll
  for (int run = 0; run < kOutputs / (4 * kN); ++run) {
    const int first = work.output_block * kOutputs + (run * 4 + lane % 4) * kN;
    const int there = p.group_outputs - first;  // outputs from the first on
    const std::int64_t channel = std::int64_t{work.weight_group} * p.group_outputs + first;
    if (there <= 0) continue;
    float added[kN] = {};
    if (tensors.bias) {
#pragma unroll
      for (int c = 0; c < kN; ++c) added[c] = c < there ? widen(__ldg(tensors.bias + channel + c)) : 0;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int oy = place.y + r;
      if (oy >= p.out_height) continue;
      float value[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) value[c] = sums[(run * (kN / 2) + c / 2) * 4 + r * 2 + c % 2] + added[c];
      T* to = tensors.output + place.image * p.output.image + channel * p.output.channel +
              (std::int64_t{oy} * p.out_width + ox) * p.output.position;
      if (p.output.channel_vectors) {
        store_vector(to, value);
        continue;
      }
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (c < there) to[c * p.output.channel] = narrow<T>(value[c]);
      }
    }
  }
}

/// What multiplies: a warpgroup, which goes on meanwhile (wgmma), or each of its warps (mma.sync). `adds` is false in a tile's
/// first step.
template <class T, int kOutputs, bool kWarpgroup>
__device__ __forceinline__ void multiply(float (&sums)[kOutputs / 2], StepRow (&rows)[2], const char* slice, bool adds) {
  const auto fragment = [&](int k, unsigned (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = rows[i % 2].word[2 * k + i / 2];
  };
  if constexpr (kWarpgroup) {
    rows[0].pin();
    rows[1].pin();
    products_begin();
    const std::uint64_t columns = matrix_in_shared(slice);
#pragma unroll
    for (int k = 0; k < kDepthsOfColumn; ++k) {
      unsigned a[4];
      fragment(k, a);
      start_product<T, kOutputs>(sums, a, columns + 2 * k, adds || k > 0);
    }
    products_end();
  } else {
    if (!adds) {
#pragma unroll
      for (float& sum : sums) sum = 0;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned first[4], second[4];
      fragment(2 * half, first);
      fragment(2 * half + 1, second);
#pragma unroll
      for (int i = 0; i < kOutputs / kMmaColumns; ++i) {
        const uint4 b = load_columns(slice + i * (kMmaColumns * kStepBytes), half);
        float d[4] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
        mma<T>(d, first, {b.x, b.y});
        mma<T>(d, second, {b.z, b.w});
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[4 * i + e] = d[e];
      }
    }
  }
}

/// 72 KB, of 128 outputs 48 and of 256 96.
template <int kOutputs>
constexpr int kStages = kOutputs == 64 ? 9 : 3;
template <int kOutputs, bool kWarpgroup>
using SquareRing = std::conditional_t<kWarpgroup, WeightRing<kOutputs * kStepBytes, kStages<kOutputs>>,
                                      MeetingRing<kOutputs * kStepBytes, kStages<kOutputs>>>;
constexpr int square_threads(int outputs) { return outputs > 64 ? 256 : 512; }

template <class T, int kOutputs, bool kWarpgroup>
__global__ void __launch_bounds__(square_threads(kOutputs), 1)
    square_convolution_kernel(const SquareParams p, const SquarePointers<T> tensors) {
  if constexpr (kHasSquareKernel<kWarpgroup>) {
    using Ring = SquareRing<kOutputs, kWarpgroup>;
    constexpr bool kDouble =
        kWarpgroup && kOutputs > 64;  // samples of one step are taken while those of the one before are multiplied
    extern __shared__ char shared[];
    const SquareWork work(p);
    const int blocks = p.units * p.unit_blocks;
    const std::int64_t part = std::int64_t{work.weight_group} * p.by_output_blocks.divisor + work.output_block;
    Ring ring(shared, tensors.slices + part * blocks * (9 * kOutputs * kStepBytes), blocks, work.tiles(p));
    SquareSampler<T> sampler;
    sampler.masked = p.masked;
    const int table_bytes = AxisTable::kBytes + (p.masked ? AxisTable::kFactorBytes : 0);
    sampler.table.of = reinterpret_cast<AxisPixels*>(shared + Ring::kBytes + int(threadIdx.x) / 32 * table_bytes);
    const auto take_first = [&](unsigned tile, int n) {
      sampler.enter(p, tensors, work, tile, n);
      sampler.locate(0, 0);
      sampler.load(0, 0, 0);
      sampler.load(0, 0, 1);
    };
    if (kDouble) take_first(work.tile, 0);
    let_next_start();  // what comes next waits for all of this, and its blocks are there then
    ring.start();
    StepRow rows[2][2];
    float sums[kOutputs / 2];
#pragma unroll 1
    for (unsigned tile = work.tile; tile < p.tiles; tile += work.stride) {
      if (!kDouble) take_first(tile, 0);
#pragma unroll 1
      for (int n = 0; n < blocks; ++n, ++ring.round) {
#pragma unroll
        for (int t = 0; t < kSquare * kSquare; ++t) {
          StepRow(&now)[2] = rows[kDouble ? t % 2 : 0];
          sampler.locate(1, t);
          sampler.load(1, t, 0);
          if (!kDouble) sampler.load(1, t, 1);
          if (!kDouble || t == 0) {
            wait_for_products<0>();
            if (t > 0) ring.release(t - 1, ring.round);
            if (t == 0 && n > 0) ring.release(8, ring.round - 1);
          }
          sampler.blend(0, t, 0, now[0]);
          if (kDouble) sampler.load(1, t, 1);
          sampler.blend(0, t, 1, now[0]);
          if (t < 8) {
            sampler.locate(0, t + 1);
            sampler.load(0, t + 1, 0);
            if (!kDouble) sampler.load(0, t + 1, 1);
          } else if (n + 1 < blocks) {
            take_first(tile, n + 1);
          } else if (kDouble && tile + work.stride < p.tiles) {
            take_first(tile + work.stride, 0);
          }
          sampler.blend(1, t, 0, now[1]);
          if (kDouble && t < 8) sampler.load(0, t + 1, 1);
          sampler.blend(1, t, 1, now[1]);
          multiply<T, kOutputs, kWarpgroup>(sums, now, ring.wait(t), t > 0 || n > 0);
          if (kDouble && t > 0) {
            wait_for_products<1>();
            ring.release(t - 1, ring.round);
          }
        }
      }
      wait_for_products<0>();
      ring.release(8, ring.round - 1);
      store_sums<T, kOutputs>(p, tensors, work, tile, sums);
    }
  }
}

}  // namespace ddu::cuda
