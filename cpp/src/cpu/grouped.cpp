// The parallel loops of a convolution in small groups, a depthwise one above all, on the CPU: which calls there are kernels
// for, how they are cut into tasks, and their scratch memory.

#include <algorithm>
#include <cstdint>

#include "core/heads_plan.h"
#include "ddu/conv2d.h"
#include "ddu/error.h"
#include "grouped_kernels.h"

namespace ddu::cpu {
namespace {

constexpr std::int64_t kMostChannels = 8;  // of a group: with more, products of matrices are the faster ones

const GroupedKernels& kernels_of(Types types) {
  check_types(types);
  const int which = types.input == DType::float64 ? 1 : 0;
#if defined(DDU_X86_TARGETS)
  // Not DDU_KERNELS_FOR: there are none for AVX-512, for which a wheel has no room (cmake/DduCpuTargets.cmake). Processors that
  // have it run those for AVX2.
  if (target() != Target::baseline) return avx2::grouped_kernels[which];
#endif
  return baseline::grouped_kernels[which];
}

/// The call as its kernels see it: with a channel for each weight group.
HeadGeometry with_groups(const Conv2dGeometry& c) {
  HeadGeometry heads{c.geometry, c.heads, c.mask_batch};
  heads.geometry.channels = c.weight_groups;
  return heads;
}

GroupedTensors tensors_of(const Conv2dGeometry& c, const Conv2d& t) {
  GroupedTensors tensors{};
  tensors.image = t.input;
  tensors.weight = t.weight;
  tensors.map = t.dilation_map;
  tensors.mask = t.mask;
  tensors.bias = t.bias;
  tensors.output = t.output;
  tensors.format = t.input_format;
  tensors.channels = c.weight_group_channels();
  tensors.outputs = c.weight_group_outputs();
  return tensors;
}

GroupedTensors tensors_of(const Conv2dGeometry& c, const Conv2dBackward& t) {
  GroupedTensors tensors =
      tensors_of(c, Conv2d{t.input, t.weight, t.dilation_map, t.mask, nullptr, nullptr, nullptr, t.input_format});
  tensors.grad = t.grad_output;
  tensors.grad_image = t.grad_input;
  tensors.grad_mask = t.grad_mask;
  return tensors;
}

/// How the weight's gradient is cut: a task is a slice and a run of tiles. Sums of each image and run are laid out as the
/// weight is, one after the other, and added up in that order; runs are long enough for them to be a small part of an image.
struct WeightPlan {
  Tiling tiling;
  std::int64_t lanes, members, group_slices, slices, run_tiles, runs, tasks, weights;
  int threads;
  ScratchSizes scratch;
  std::size_t thread_bytes, sums;

  WeightPlan(const Conv2dGeometry& c, Types types, int given_lanes, int max_threads)
      : tiling(with_groups(c).geometry), lanes(given_lanes), members(c.weight_group_channels()), weights(c.weight_numel()) {
    const Geometry g = with_groups(c).geometry;
    group_slices = ceil_div(g.group_channels(), lanes);
    slices = g.batch * g.groups * group_slices * members;
    run_tiles = ceil_div(4 * g.taps() * c.weight_group_outputs(), std::max<std::int64_t>(tiling.most, 1));
    runs = ceil_div(tiling.count(), run_tiles);
    tasks = slices * runs;
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    scratch = scratch_sizes(types, given_lanes, c.weight_group_outputs(), 0);
    thread_bytes = Scratch(nullptr, g, scratch).bytes;
    sums = static_cast<std::size_t>(weights) * value_bytes(types);
  }
  std::int64_t copies(const Geometry& g) const { return g.batch * runs; }
  std::size_t sums_at() const { return static_cast<std::size_t>(threads) * thread_bytes; }
  std::size_t bytes(const Geometry& g) const { return sums_at() + static_cast<std::size_t>(copies(g)) * sums; }
  Slice slice(const Geometry& g, std::int64_t task) const {
    const std::int64_t index = task / runs, plane = index / members / group_slices,
                       first = index / members % group_slices * lanes;
    return {plane / g.groups, plane % g.groups, first, std::min(lanes, g.group_channels() - first), index % members};
  }
};

void sum_weight(const Conv2dGeometry& c, Types types, const GroupedTensors& tensors, void* workspace, void* result,
                int threads) {
  const GroupedKernels& kernels = kernels_of(types);
  const HeadGeometry heads = with_groups(c);
  const Geometry& g = heads.geometry;
  const WeightPlan plan(c, types, kernels.lanes, threads);
  char* const sums = static_cast<char*>(workspace) + plan.sums_at();
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(workspace, thread, plan.thread_bytes), g, plan.scratch);
    const Slice slice = plan.slice(g, task);
    const std::int64_t run = task % plan.runs, first = run * plan.run_tiles;
    kernels.sum_positions(heads, types.map, tensors, slice, {first, std::min(first + plan.run_tiles, plan.tiling.count())},
                          scratch, sums + static_cast<std::size_t>(slice.image * plan.runs + run) * plan.sums);
  });
  kernels.sum(types.input, sums, plan.copies(g), plan.weights, plan.weights, result);
}

BackwardPlan backward_plan(const Conv2dGeometry& c, Types types, const Conv2dBackward& t, int threads) {
  return {with_groups(c).geometry, types,   t.grad_input != nullptr,  t.grad_map != nullptr, c.weight_group_outputs(),
          kernels_of(types).lanes, threads, c.weight_group_channels()};
}

TapPlan forward_plan(const Conv2dGeometry& c, Types types, int threads) {
  return {with_groups(c), types, kernels_of(types).lanes, c.weight_group_outputs(), threads};
}

/// Of the mask's gradient: one Vec more for each position has gradients times weights.
ChannelPlan mask_plan(const Conv2dGeometry& c, Types types, int threads) {
  return {with_groups(c), types, kernels_of(types).lanes, c.weight_group_outputs() + 1, threads};
}

void expect_served(const Conv2dGeometry& c, Types types) {
  if (!conv2d_supported(c, types)) {
    throw unsupported_device("there are no kernels of conv2d for this call on a CPU: see ddu::cpu::conv2d_supported");
  }
}

}  // namespace

bool conv2d_supported(const Conv2dGeometry& c, Types types) {
  check_types(types);
  const Geometry& g = c.geometry;
  if (is_half(types.input) || g.channels == 0 || c.out_channels == 0 || g.taps() == 0) return false;
  const std::int64_t channels = c.weight_group_channels();
  // One channel with several outputs is an ordinary convolution too, and products of matrices have them all at once.
  const std::int64_t lanes = c.weight_groups / g.groups;
  const bool fills_lanes = lanes >= 4 || (channels == 1 && (lanes > 1 || c.weight_group_outputs() == 1));
  return channels <= kMostChannels && c.weight_group_outputs() <= kMostGroupOutputs && fills_lanes &&
         c.weight_groups % g.groups == 0 && c.weight_groups % c.heads == 0;
}

void conv2d_forward(const Conv2dGeometry& c, Types types, const Conv2d& t, int threads) {
  expect_served(c, types);
  const GroupedKernels& kernels = kernels_of(types);
  const HeadGeometry heads = with_groups(c);
  const GroupedTensors tensors = tensors_of(c, t);
  const TapPlan made = forward_plan(c, types, threads);
  const ForwardPlan& plan = made.plan;
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(t.workspace, thread, plan.thread_bytes), heads.geometry, made.scratch);
    kernels.forward(heads, types.map, tensors, plan.slice(heads.geometry, task), plan.region(task), scratch);
  });
}

std::size_t conv2d_forward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2d&, int threads) {
  return forward_plan(c, types, threads).plan.bytes();
}

// The parts of a backward run one after another in the same memory.
void conv2d_backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& t, int threads) {
  expect_served(c, types);
  const GroupedKernels& kernels = kernels_of(types);
  const HeadGeometry heads = with_groups(c);
  const GroupedTensors tensors = tensors_of(c, t);
  run_backward(heads.geometry, types, backward_plan(c, types, t, threads), t.workspace, t.grad_map, threads, kernels.sum,
               [&](const Slice& slice, const Band& band, const Scratch& scratch, void* map_sums) {
                 kernels.backward(heads, types.map, tensors, slice, band, scratch, map_sums);
               });
  if (t.grad_weight) sum_weight(c, types, tensors, t.workspace, t.grad_weight, threads);
  if (!t.grad_mask) return;
  const ChannelPlan plan = mask_plan(c, types, threads);
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(t.workspace, thread, plan.thread_bytes), heads.geometry, plan.scratch);
    kernels.sum_channels(heads, types.map, tensors, plan.run(task, heads), plan.region(task), scratch);
  });
}

std::size_t conv2d_backward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2dBackward& t, int threads) {
  std::size_t bytes = backward_plan(c, types, t, threads).bytes();
  if (t.grad_weight) {
    bytes = std::max(bytes, WeightPlan(c, types, kernels_of(types).lanes, threads).bytes(with_groups(c).geometry));
  }
  return t.grad_mask ? std::max(bytes, mask_plan(c, types, threads).bytes()) : bytes;
}

}  // namespace ddu::cpu
