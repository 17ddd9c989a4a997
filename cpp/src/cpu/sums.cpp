// The parallel loops of aggregate and correlate on the CPU: how calls are cut into tasks, and their scratch memory.

#include <algorithm>
#include <cstdint>

#include "core/plan.h"
#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "sums_kernels.h"

namespace ddu::cpu {
namespace {

const SumsKernels& kernels_of(Types types) {
  check_types(types);
  return DDU_KERNELS_FOR(sums_kernels, types.input);
}

ScratchSizes scratch_sizes(Types types, const SumsKernels& kernels, std::int64_t sums) {
  ScratchSizes sizes;
  sizes.value = value_bytes(types);
  sizes.lanes = kernels.lanes;
  sizes.heads = true;
  sizes.sums = sums;
  return sizes;
}

/// Channels between which a slice of sum_taps may be cut so that all slices are handed out to Vecs as the whole group is:
/// results do not depend on where slices end, and so not on the number of threads.
std::int64_t slice_unit(const HeadGeometry& heads, int lanes) {
  const std::int64_t of_group = heads.geometry.group_channels(), of_head = heads.head_channels();
  if (of_head == 0 || !has_own_vecs(heads, lanes)) return lanes;
  if (of_group % of_head == 0) return of_head % lanes == 0 ? lanes : of_head;
  return of_head % of_group == 0 ? lanes : of_group;
}

struct TapPlan {
  ScratchSizes scratch;
  ForwardPlan plan;

  TapPlan(const HeadGeometry& heads, Types types, const SumsKernels& kernels, int threads)
      : scratch(scratch_sizes(types, kernels, 0)),
        plan(heads.geometry, slice_unit(heads, kernels.lanes), Scratch(nullptr, heads.geometry, scratch).bytes, threads) {}
};

void sum_taps(const HeadGeometry& heads, Types types, const TapSum& tensors, void* workspace, int threads) {
  const SumsKernels& kernels = kernels_of(types);
  const Geometry& g = heads.geometry;
  const TapPlan made(heads, types, kernels, threads);
  const ForwardPlan& plan = made.plan;
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(workspace, thread, plan.thread_bytes), g, made.scratch);
    kernels.sum_taps(heads, types.map, tensors, plan.slice(g, task), plan.region(task), scratch);
  });
}

/// How a call of sum_channels is cut into tasks: some heads and a tile each. Where heads have Vecs of their own, each is added
/// up for itself whatever the task is, so that the cut may follow the number of threads.
struct ChannelPlan {
  static constexpr std::int64_t kScoreBytes = 256 * 1024;  // of a tile, where a task has more than one head

  Tiling tiling;
  std::int64_t heads;  // of a task
  std::int64_t runs;
  std::int64_t tasks;
  int threads;
  ScratchSizes scratch;
  std::size_t thread_bytes;

  ChannelPlan(const HeadGeometry& given, Types types, const SumsKernels& kernels, int max_threads) : tiling(given.geometry) {
    const std::int64_t scores = given.geometry.taps() * tiling.most, of_head = std::max<std::int64_t>(given.head_channels(), 1);
    const std::int64_t most = std::max<std::int64_t>(kScoreBytes / static_cast<std::int64_t>(value_bytes(types)) / scores, 1);
    if (has_own_vecs(given, kernels.lanes)) {
      const std::int64_t wanted =
          ceil_div(4 * std::int64_t{max_threads}, std::max<std::int64_t>(given.factors_batch * tiling.count(), 1));
      heads = std::clamp<std::int64_t>(given.heads / wanted, 1, most);
    } else {
      heads = std::min({kernels.lanes / of_head, most, given.heads});
    }
    runs = ceil_div(given.heads, heads);
    tasks = given.factors_batch * runs * tiling.count();
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    scratch = scratch_sizes(types, kernels, heads * scores);
    thread_bytes = Scratch(nullptr, given.geometry, scratch).bytes;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(threads) * thread_bytes; }
};

void sum_channels(const HeadGeometry& heads, Types types, const ChannelSum& tensors, void* workspace, int threads) {
  const SumsKernels& kernels = kernels_of(types);
  const ChannelPlan plan(heads, types, kernels, threads);
  expect_whole_write(tensors.result, static_cast<std::size_t>(heads.factors_numel()) * size_of(types.input));
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const std::int64_t part = task / plan.tiling.count() % plan.runs, image = task / plan.tiling.count() / plan.runs;
    const HeadRun run{image, part * plan.heads, std::min((part + 1) * plan.heads, heads.heads)};
    const Scratch scratch(thread_memory(workspace, thread, plan.thread_bytes), heads.geometry, plan.scratch);
    kernels.sum_channels(heads, types.map, tensors, run, plan.tiling.region(task % plan.tiling.count()), scratch);
  });
}

BackwardPlan backward_plan(const HeadGeometry& heads, Types types, const void* grad_image, const void* grad_map, int threads) {
  return {heads.geometry, types, grad_image != nullptr, grad_map != nullptr, true, kernels_of(types).lanes, threads};
}

void product_backward(const HeadGeometry& heads, Types types, const ProductBackward& tensors, void* workspace, int threads) {
  const SumsKernels& kernels = kernels_of(types);
  const BackwardPlan plan = backward_plan(heads, types, tensors.grad_image, tensors.grad_map, threads);
  run_backward(heads.geometry, types, plan, workspace, tensors.grad_map, threads, kernels.sum_map,
               [&](const Slice& slice, const Band& band, const Scratch& scratch, void* map_sums) {
                 kernels.backward(heads, types.map, tensors, slice, band, scratch, map_sums);
               });
}

}  // namespace

void aggregate(const HeadGeometry& g, Types types, const Aggregate& t, int threads) {
  sum_taps(g, types, {t.input, t.weights, t.dilation_map, t.output, t.input_format}, t.workspace, threads);
}

std::size_t aggregate_workspace_bytes(const HeadGeometry& g, Types types, const Aggregate&, int threads) {
  return TapPlan(g, types, kernels_of(types), threads).plan.bytes();
}

// The parts of a backward run one after another in the same memory.
void aggregate_backward(const HeadGeometry& g, Types types, const AggregateBackward& t, int threads) {
  product_backward(g, types, {t.input, t.weights, t.grad_output, t.dilation_map, t.grad_input, t.grad_map, t.input_format},
                   t.workspace, threads);
  if (!t.grad_weights) return;
  sum_channels(g, types, {t.input, t.grad_output, t.dilation_map, t.grad_weights, t.input_format}, t.workspace, threads);
}

std::size_t aggregate_backward_workspace_bytes(const HeadGeometry& g, Types types, const AggregateBackward& t, int threads) {
  const std::size_t bytes = backward_plan(g, types, t.grad_input, t.grad_map, threads).bytes();
  return t.grad_weights ? std::max(bytes, ChannelPlan(g, types, kernels_of(types), threads).bytes()) : bytes;
}

void correlate(const HeadGeometry& g, Types types, const Correlate& t, int threads) {
  sum_channels(g, types, {t.key, t.query, t.dilation_map, t.scores, t.input_format}, t.workspace, threads);
}

std::size_t correlate_workspace_bytes(const HeadGeometry& g, Types types, const Correlate&, int threads) {
  return ChannelPlan(g, types, kernels_of(types), threads).bytes();
}

void correlate_backward(const HeadGeometry& g, Types types, const CorrelateBackward& t, int threads) {
  product_backward(g, types, {t.key, t.grad_scores, t.query, t.dilation_map, t.grad_key, t.grad_map, t.input_format},
                   t.workspace, threads);
  if (!t.grad_query) return;
  sum_taps(g, types, {t.key, t.grad_scores, t.dilation_map, t.grad_query, t.input_format}, t.workspace, threads);
}

std::size_t correlate_backward_workspace_bytes(const HeadGeometry& g, Types types, const CorrelateBackward& t, int threads) {
  const std::size_t bytes = backward_plan(g, types, t.grad_key, t.grad_map, threads).bytes();
  return t.grad_query ? std::max(bytes, TapPlan(g, types, kernels_of(types), threads).plan.bytes()) : bytes;
}

}  // namespace ddu::cpu
