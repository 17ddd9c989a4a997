// The parallel loops of aggregate and correlate on the CPU: how calls are cut into tasks, and their scratch memory.

#include <algorithm>
#include <cstdint>

#include "core/heads_plan.h"
#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "sums_kernels.h"

namespace ddu::cpu {
namespace {

const SumsKernels& kernels_of(Types types) {
  check_types(types);
  return DDU_KERNELS_FOR(sums_kernels, types.input);
}

void sum_taps(const HeadGeometry& heads, Types types, const TapSum& tensors, void* workspace, int threads) {
  const SumsKernels& kernels = kernels_of(types);
  const Geometry& g = heads.geometry;
  const TapPlan made(heads, types, kernels.lanes, 1, threads);
  const ForwardPlan& plan = made.plan;
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(workspace, thread, plan.thread_bytes), g, made.scratch);
    kernels.sum_taps(heads, types.map, tensors, plan.slice(g, task), plan.region(task), scratch);
  });
}

void sum_channels(const HeadGeometry& heads, Types types, const ChannelSum& tensors, void* workspace, int threads) {
  const SumsKernels& kernels = kernels_of(types);
  const ChannelPlan plan(heads, types, kernels.lanes, 1, threads);
  advise_huge_pages(tensors.result, static_cast<std::size_t>(heads.factors_numel()) * size_of(types.input));
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(workspace, thread, plan.thread_bytes), heads.geometry, plan.scratch);
    kernels.sum_channels(heads, types.map, tensors, plan.run(task, heads), plan.region(task), scratch);
  });
}

BackwardPlan backward_plan(const HeadGeometry& heads, Types types, const void* grad_image, const void* grad_map, int threads) {
  return {heads.geometry, types, grad_image != nullptr, grad_map != nullptr, 1, kernels_of(types).lanes, threads};
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
  return TapPlan(g, types, kernels_of(types).lanes, 1, threads).plan.bytes();
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
  return t.grad_weights ? std::max(bytes, ChannelPlan(g, types, kernels_of(types).lanes, 1, threads).bytes()) : bytes;
}

void correlate(const HeadGeometry& g, Types types, const Correlate& t, int threads) {
  sum_channels(g, types, {t.key, t.query, t.dilation_map, t.scores, t.input_format}, t.workspace, threads);
}

std::size_t correlate_workspace_bytes(const HeadGeometry& g, Types types, const Correlate&, int threads) {
  return ChannelPlan(g, types, kernels_of(types).lanes, 1, threads).bytes();
}

void correlate_backward(const HeadGeometry& g, Types types, const CorrelateBackward& t, int threads) {
  product_backward(g, types, {t.key, t.grad_scores, t.query, t.dilation_map, t.grad_key, t.grad_map, t.input_format},
                   t.workspace, threads);
  if (!t.grad_query) return;
  sum_taps(g, types, {t.key, t.grad_scores, t.dilation_map, t.grad_query, t.input_format}, t.workspace, threads);
}

std::size_t correlate_backward_workspace_bytes(const HeadGeometry& g, Types types, const CorrelateBackward& t, int threads) {
  const std::size_t bytes = backward_plan(g, types, t.grad_key, t.grad_map, threads).bytes();
  return t.grad_query ? std::max(bytes, TapPlan(g, types, kernels_of(types).lanes, 1, threads).plan.bytes()) : bytes;
}

}  // namespace ddu::cpu
