#pragma once

// Gradients of weight, map and mask from the same corners, which both a sample and column gradients meet, of half types and 64
// outputs where warpgroups multiply. A block has a row of three taps and a share of the positions, 64 for each of its three
// warpgroups at once, which is a *stage*:
//
//   grad_output ──> product with a tap's weights ──> column gradients x corners ──> sums of the map and the mask
//   (shared memory)                                                       │
//         │                                                            samples (shared memory)
//         └─────────> turned: product of a warpgroup, which has one of the taps <──┘ ──> sums of the weight's gradient
//
// All meet once for each tap: then its samples are there. Samples and grad_output have two buffers each, so that those of a
// tap are multiplied while the next one is sampled.

#include "backward_corners.cuh"
#include "weight_product.cuh"

namespace ddu::cuda {

constexpr int kJointTaps = 3, kJointThreads = kJointTaps * kWarpgroupThreads;  // a warpgroup for each tap
constexpr int kJointPositions = 64 * kJointTaps;                               // of a stage
constexpr int kJointFactorBytes = kJointPositions * kStepBytes;                // of grad_output, or of a tap's samples
constexpr int kJointSliceBytes = kWeightChannels * kStepBytes;                 // weights of a tap

struct JointParams : CornersParams {
  int stages, splits;   // of a block; blocks that share the positions out
  int padded_channels;  // of a unit, in the weight's sums
  std::int64_t part;    // elements of the sums of one split, [unit][tap][output][channel]
  Divider by_kernel_h, by_splits;
};

/// A block's shared memory: weights, two stages of grad_output and two taps' samples, [position][128 bytes], 16-byte piece n
/// at place n ^ (position % 8), a barrier, and a table for each warp.
struct JointMemory {
  static constexpr int kOutputs = kJointTaps * kJointSliceBytes, kSamples = kOutputs + 2 * kJointFactorBytes,
                       kBarrier = kSamples + 2 * kJointFactorBytes, kTables = kBarrier + 16,
                       kAxisBytes = kWarpRun * int(sizeof(CornerAxis)), kTableBytes = (2 + 4) * kAxisBytes,
                       kBytes = kTables + kJointThreads / 32 * kTableBytes;
  char* shared;

  __device__ __forceinline__ char* outputs(int stage) const { return shared + kOutputs + stage % 2 * kJointFactorBytes; }
  __device__ __forceinline__ char* samples(int step) const { return shared + kSamples + step % 2 * kJointFactorBytes; }
  __device__ __forceinline__ CopyBarrier& weights_there() const { return *reinterpret_cast<CopyBarrier*>(shared + kBarrier); }
  /// The block meets behind it, as racecheck wants it, though one thread alone makes the barrier and asks for copies.
  __device__ __forceinline__ void start_barrier() const {
    if (threadIdx.x == 0) {
      weights_there().init(1);
      CopyBarrier::publish();
    }
    __syncthreads();
  }
  __device__ __forceinline__ void copy_weights(const char* slices) const {
    if (threadIdx.x == 0) weights_there().copy(shared, slices, kJointTaps * kJointSliceBytes);
  }
  /// Where a warp's entries of a stage's row of taps are, and those of a step's column: those of the next stage are worked out
  /// while the last step's are in use.
  __device__ __forceinline__ CornerTable table(int stage, int step) const {
    char* const of_warp = shared + kTables + int(threadIdx.x) / 32 * kTableBytes;
    return {reinterpret_cast<CornerAxis*>(of_warp + stage % 2 * kAxisBytes),
            reinterpret_cast<CornerAxis*>(of_warp + (2 + step % 4) * kAxisBytes)};
  }
  __device__ __forceinline__ void fill_table(const JointParams& p, const WarpPlace& place, float rate, int ky,
                                             int stage) const {
    CornerTable::fill(p, place, rate, ky, ky + 1, [&](bool across, int k) {
      const CornerTable at = table(stage, stage * kJointTaps + k);
      return across ? at.columns : at.rows;
    });
  }
  __device__ __forceinline__ static uint4* piece(char* factor, int position, int index) {
    return reinterpret_cast<uint4*>(factor + position * kStepBytes) + (index ^ position % 8);
  }
};

/// What a block does.
struct JointWork {
  int ky, split;
  ConvUnit unit;

  __device__ __forceinline__ explicit JointWork(const JointParams& p) : JointWork(p, blockIdx.x) {}
  /// Where this warp is in a stage.
  __device__ __forceinline__ WarpPlace place(const JointParams& p, int stage) const {
    const unsigned tile = unsigned((split * p.stages + stage) * kJointTaps) + threadIdx.x / kWarpgroupThreads;
    WarpPlace place(p, min(tile, p.tiles - 1), 0, 1);
    if (tile >= p.tiles) place.y = p.out_height;  // beyond the last tile there are no positions
    return place;
  }

 private:
  __device__ __forceinline__ JointWork(const JointParams& p, unsigned rest)
      : ky(take(p.by_kernel_h, rest)), split(take(p.by_splits, rest)), unit(p, int(rest)) {}
  __device__ __forceinline__ static int take(const Divider& by, unsigned& rest) {
    unsigned remainder = rest;
    rest = by.take(remainder);
    return int(remainder);
  }
};

/// Starts the copies of this warp's rows of grad_output; zeros where there is no position.
template <class T>
__device__ __forceinline__ void copy_outputs(const JointParams& p, const ConvUnit& unit, const T* grad_output,
                                             const WarpPlace& place, char* to) {
  const int lane = int(threadIdx.x) % 32, piece = lane % 8, output = piece * kVec<T>;
  const int pixel = int(p.outputs.pixel), x = place.x + lane / 8;
  const T* const row = grad_output + unit.outputs(p, place.image) + std::int64_t{place.y * p.out_width + x} * pixel + output;
  const auto each = [&](auto copy) {
#pragma unroll
    for (int n = 0; n < 8; n += 4) {
      uint4* const shared = JointMemory::piece(to, int(threadIdx.x) / 32 * kWarpRun + n + lane / 8, piece);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool there = place.y + r < p.out_height && x + n < p.out_width;
        copy(shared + r * (8 * kStepBytes / 16), row + std::int64_t{r * p.out_width + n} * pixel, there);
      }
    }
  };
  if (p.output_vectors) {
    const bool any = output < p.group_outputs;
    each([&](uint4* shared, const T* from, bool there) { copy_or_clear(shared, from, there && any); });
  } else {
    each([&](uint4* shared, const T* from, bool there) { *shared = p.load_outputs(from - output, there, output).whole; });
  }
}

/// A lane's sampling of a position: what corners weigh, and the blend of a piece, which is stored as factors.
template <class T>
struct JointSampler {
  float weight[4];

  __device__ __forceinline__ JointSampler(const CornerCell& cell, float factor) {
    const float near = cell.y.near * factor, far = cell.y.far * factor;
    weight[0] = near * cell.x.near;
    weight[1] = near * cell.x.far;
    weight[2] = far * cell.x.near;
    weight[3] = far * cell.x.far;
  }
  __device__ __forceinline__ void store(const CornerPiece<T>& piece, uint4* to) const {
    float value[kVec<T>];
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) {
      value[c] = weight[0] * piece.corner[0].get(c);
#pragma unroll
      for (int k = 1; k < 4; ++k) value[c] += weight[k] * piece.corner[k].get(c);
    }
    *to = factors_of<T>(value);
  }
  /// Of pixels that are in the image alone, whatever they are, and of a position that there is.
  __device__ __forceinline__ static void store_exactly(const CornersReader<T>& lane, const CornerCell& cell, float factor,
                                                       bool there, int taken, uint4* to) {
    const JointSampler without_mask(cell, 1);
    CornerPiece<T> piece;
    piece.load(taken ? lane.pieces.taken[1] : lane.pieces.taken[0], cell);
    float value[kVec<T>];
#pragma unroll
    for (int c = 0; c < kVec<T>; ++c) {
      value[c] = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) value[c] += without_mask.weight[k] * (cell.there(k) ? piece.corner[k].get(c) : 0);
      value[c] = there ? value[c] * factor : 0;
    }
    *to = factors_of<T>(value);
  }
};

/// A lane's two positions of a stage, and what is stored of them.
template <class T>
struct JointPositions {
  WarpPlace place;
  int first;       // the first one in its plane; the other lies a row below
  bool stores[2];  // whether they are, and are this lane's to store

  __device__ __forceinline__ JointPositions(const JointParams& p, const WarpPlace& of_warp) : place(of_warp) {
    const int x = place.x + column();
    first = place.y * p.out_width + x;
#pragma unroll
    for (int r = 0; r < 2; ++r) stores[r] = CornerDots<T>::is_owner() && place.y + r < p.out_height && x < p.out_width;
  }
  __device__ __forceinline__ static int column() { return int(threadIdx.x) % 32 / 4; }
  __device__ __forceinline__ bool there(const JointParams& p, int r) const {
    return place.y + r < p.out_height && place.x + column() < p.out_width;
  }
  /// The mask's factor; where there is no position, that of the nearest one.
  __device__ __forceinline__ float factor(const JointParams& p, const T* mask, const ConvUnit& unit, int tap, int r) const {
    if (!mask) return 1;
    const int at = place.row(p, r) * p.out_width + place.column(p, column());
    return widen(__ldg(mask + unit.mask(p, place.image) + (tap * int(p.positions) + at)));
  }
  __device__ __forceinline__ void store_value(const JointParams& p, const CornersPointers<T>& tensors, const ConvUnit& unit,
                                              int tap, int r, float value) const {
    if (!stores[r]) return;
    const std::int64_t at = unit.mask(p, place.image) + (tap * int(p.positions) + first + r * p.out_width);
    store_sum(tensors.mask_sums, tensors.grad_mask, 0, tensors.mask_part, at, value);
  }
  /// Of taps of row `ky`; `near` is a weight, which is finite if the rate is.
  __device__ __forceinline__ void store_slope(const JointParams& p, const CornersPointers<T>& tensors, const ConvUnit& unit,
                                              int ky, int r, float slope, float near) const {
    if (!stores[r]) return;
    const int plane = (p.shared_map ? 0 : place.image) * p.groups + unit.group;
    const std::int64_t at = std::int64_t{plane} * p.positions + (first + r * p.out_width);
    const float sum = slope + nan_unless_finite(near);
    if (tensors.map_sums) {
      store_sum<float>(tensors.map_sums, nullptr, ky, tensors.map_part, at, sum);
    } else {
      store_rate(tensors.grad_map, p.map_type, at, sum);
    }
  }
};

/// Stores the sums of this warpgroup's tap, [output][channel].
__device__ __forceinline__ void store_weight_sums(const JointParams& p, const float (&sums)[kWeightChannels / 2], float* to) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int i = 0; i < kWeightChannels / 4; ++i) {
    const int half = i % 2, o = int(threadIdx.x) / 32 % 4 * kMmaRows + half * 8 + g, c = i / 2 * 8 + 2 * q;
    if (o >= p.group_outputs || c >= p.padded_channels) continue;
    const float2 two{sums[i / 2 * 4 + half * 2], sums[i / 2 * 4 + half * 2 + 1]};
    *reinterpret_cast<float2*>(to + o * p.padded_channels + c) = two;
  }
}

/// What a lane does, tap after tap.
template <class T>
struct JointLane : CornersReader<T> {
  const JointParams& p;
  const CornersPointers<T>& tensors;
  const JointMemory& memory;
  const JointWork& work;
  WarpPlace place;  // of the stage whose corners are loaded next

  __device__ __forceinline__ JointLane(const JointParams& p, const CornersPointers<T>& tensors, const JointMemory& memory,
                                       const JointWork& work)
      : p(p), tensors(tensors), memory(memory), work(work), place(work.place(p, 0)) {}

  __device__ __forceinline__ CornerCell cell(int r, int stage, int step) const {
    return CornersReader<T>::cell(memory.table(stage, step), r, 0, 0);
  }
  __device__ __forceinline__ void load(int r, int stage, int step, int taken) {
    this->corners[taken].load(this->pieces.taken[taken], cell(r, stage, step));
  }
  __device__ __forceinline__ void turn_to(const CornerPieces& of_images, int image) {
    this->pieces = of_images;
    for (const char*& taken : this->pieces.taken) taken += image * (p.rows.image * std::int64_t{sizeof(T)});
  }
  /// Where this lane's samples of a piece go.
  __device__ __forceinline__ uint4* samples(int step, int r, int taken) const {
    const int lane = int(threadIdx.x) % 32, row = int(threadIdx.x) / 32 * kWarpRun + lane / 4 + 8 * r;
    return JointMemory::piece(memory.samples(step), row, (taken ^ int(this->pieces.odd)) * 4 + lane % 4);
  }
  /// Starts the product of the warpgroup's rows of grad_output with a tap's weights.
  __device__ __forceinline__ void start_columns(float (&d)[kWeightChannels / 2], int stage, int kx) const {
    const std::uint64_t rows = matrix_in_shared(memory.outputs(stage) + threadIdx.x / kWarpgroupThreads * (64 * kStepBytes)),
                        weights = matrix_in_shared(memory.shared + kx * kJointSliceBytes);
    products_begin();
#pragma unroll
    for (int k = 0; k < kDepthsOfColumn; ++k) {
      start_product_of_shared<T>(d, further(rows, 2 * k), further(weights, 2 * k), k > 0);
    }
    products_end();
  }
  /// Sums and samples of a tap, of which half the corners are there, while those after it are loaded.
  __device__ __forceinline__ void sample(const TapGradients<T>& gradients, const CornerPieces& of_images, int stage, int step,
                                         bool last, const float (&factor)[2], CornerSums (&of_tap)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const CornerCell of_row = cell(r, stage, step);
      const JointSampler<T> sampler(of_row, factor[r]);
      CornerDots<T> dots;
      if (r == 1 && last) turn_to(of_images, place.image);
#pragma unroll
      for (int taken = 0; taken < 2; ++taken) {
        dots.add(gradients, this->corners[taken], taken, r, 4);
        sampler.store(this->corners[taken], samples(step, r, taken));
        load(1 - r, stage + (r == 1 && last), step + r, taken);
      }
      of_tap[r] = dots.sums(of_row, r, CornerChoice(p, false, 0, 0));
    }
  }
  /// The same once more, in a way that minds what there is. Where a corner is not finite, neither is its dot.
  __device__ __forceinline__ void sample_again(const TapGradients<T>& gradients, const CornerPieces& of_images, int stage,
                                               int step, const JointPositions<T>& positions, const float (&factor)[2],
                                               CornerSums (&of_tap)[2]) {
    const CornerPieces next = this->pieces;
    turn_to(of_images, positions.place.image);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      of_tap[r] = this->sum_again(cell(r, stage, step), gradients, r);
#pragma unroll 1
      for (int taken = 0; taken < 2; ++taken) {
        JointSampler<T>::store_exactly(*this, cell(r, stage, step), factor[r], positions.there(p, r), taken,
                                       samples(step, r, taken));
      }
    }
    this->pieces = next;
  }
};

/// Multiplies a tap's samples by grad_output.
template <class T>
__device__ __forceinline__ void add_samples(const JointMemory& memory, int stage, int step,
                                            float (&sums)[kWeightChannels / 2]) {
  constexpr unsigned kDepth = kMmaDepth<T> * kStepBytes / 16;
  const std::uint64_t outputs = matrix_in_shared(memory.outputs(stage)), samples = matrix_in_shared(memory.samples(step));
  products_begin();
#pragma unroll
  for (int k = 0; k < kJointPositions / kMmaDepth<T>; ++k) {
    start_turned_product<T>(sums, further(outputs, k * kDepth), further(samples, k * kDepth));
  }
  products_end();
  finish_products(sums);
}

template <class T>
__global__ void __launch_bounds__(kJointThreads, 1)
    conv_joint_backward_kernel(const JointParams p, const CornersPointers<T> tensors, float* weight_sums) {
  if constexpr (kHasWarpgroupMma && sizeof(T) == 2) {
    extern __shared__ char shared[];
    const JointMemory memory{shared};
    const JointWork work(p);
    memory.start_barrier();
    JointLane<T> lane(p, tensors, memory, work);
    float rate = CornerTable::load_rate(p, lane.place, tensors.map, work.unit.group);
    copy_outputs(p, work.unit, tensors.grad_output, lane.place, memory.outputs(0));
    let_next_start();     // what comes next waits for all of this, and its blocks are there then
    wait_for_previous();  // which has packed the weights
    memory.copy_weights(tensors.slices + (std::int64_t{work.unit.index} * p.taps + work.ky * kJointTaps) * kJointSliceBytes);
    const CornerPieces of_images(tensors.image + std::int64_t{work.unit.index} * p.unit_stride, p.unit_vectors);
    lane.turn_to(of_images, lane.place.image);
    memory.fill_table(p, lane.place, rate, work.ky, 0);
    lane.load(0, 0, 0, 0);
    lane.load(0, 0, 0, 1);
    wait_for_copies();
    show_to_products();
    __syncthreads();
    memory.weights_there().wait(0);
    float sums[kWeightChannels / 2] = {};
    int step = 0;
#pragma unroll 1
    for (int stage = 0; stage < p.stages; ++stage) {
      const JointPositions<T> positions(p, lane.place);
#pragma unroll 1
      for (int kx = 0; kx < kJointTaps; ++kx, ++step) {
        const int tap = work.ky * kJointTaps + kx;
        float d[kWeightChannels / 2];
        lane.start_columns(d, stage, kx);
        if (kx == 1) {  // all have done with the stage before
          lane.place = work.place(p, stage + 1);
          copy_outputs(p, work.unit, tensors.grad_output, lane.place, memory.outputs(stage + 1));
          rate = CornerTable::load_rate(p, lane.place, tensors.map, work.unit.group);
        }
        if (kx == 2) memory.fill_table(p, lane.place, rate, work.ky, stage + 1);
        const float factor[2] = {positions.factor(p, tensors.mask, work.unit, tap, 0),
                                 positions.factor(p, tensors.mask, work.unit, tap, 1)};
        finish_products(d);
        const TapGradients<T> gradients(d, lane.pieces.odd);
        CornerSums of_tap[2];
        lane.sample(gradients, of_images, stage, step, kx == 2, factor, of_tap);
        if (__any_sync(~0u, !is_finite(of_tap[0].sum() + of_tap[1].sum() + (factor[0] + factor[1])))) {
          lane.sample_again(gradients, of_images, stage, step, positions, factor, of_tap);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          lane.slope[r] += factor[r] * of_tap[r].slope;
          if (tensors.of_mask()) positions.store_value(p, tensors, work.unit, tap, r, of_tap[r].value);
        }
        if (kx == 2) wait_for_copies();
        show_to_products();
        __syncthreads();
        if (threadIdx.x / kWarpgroupThreads == kx) add_samples<T>(memory, stage, step, sums);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float near = lane.cell(r, stage, 0).y.near;
        if (tensors.of_map()) positions.store_slope(p, tensors, work.unit, work.ky, r, lane.slope[r], near);
        lane.slope[r] = 0;
      }
    }
    const std::int64_t of_tap = std::int64_t{work.unit.index} * p.taps + work.ky * kJointTaps + threadIdx.x / kWarpgroupThreads;
    store_weight_sums(p, sums, weight_sums + work.split * p.part + of_tap * p.group_outputs * p.padded_channels);
  }
}

}  // namespace ddu::cuda
