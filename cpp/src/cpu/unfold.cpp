// The parallel loops of the unfold on the CPU: how calls are cut into tasks, and their scratch memory.

#include "ddu/unfold.h"

#include <algorithm>
#include <cstdint>

#include "core/plan.h"
#include "unfold_kernels.h"

namespace ddu::cpu {
namespace {

const UnfoldKernels& kernels_of(DType type) { return DDU_KERNELS_FOR(unfold_kernels, type); }

ForwardPlan forward_plan(const Geometry& g, Types types, const UnfoldKernels& kernels, int threads) {
  return {g, kernels.lanes, Scratch(nullptr, g, {value_bytes(types), kernels.lanes}).bytes, threads};
}
BackwardPlan backward_plan(const Geometry& g, Types types, const UnfoldBackward& tensors, const UnfoldKernels& kernels,
                           int threads) {
  return {g, types, tensors.grad_input != nullptr, tensors.grad_map != nullptr, 0, kernels.lanes, threads};
}

}  // namespace

void unfold(const Geometry& g, Types types, const Unfold& tensors, int threads) {
  check_types(types);
  if (g.columns_numel() == 0) return;
  advise_huge_pages(tensors.output, static_cast<std::size_t>(g.columns_numel()) * size_of(types.input));
  const UnfoldKernels& kernels = kernels_of(types.input);
  const ForwardPlan plan = forward_plan(g, types, kernels, threads);
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const Scratch scratch(thread_memory(tensors.workspace, thread, plan.thread_bytes), g, {value_bytes(types), kernels.lanes});
    kernels.forward(g, types.map, tensors, plan.slice(g, task), plan.region(task), scratch);
  });
}

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold&, int threads) {
  check_types(types);
  return forward_plan(g, types, kernels_of(types.input), threads).bytes();
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& tensors, int threads) {
  check_types(types);
  const UnfoldKernels& kernels = kernels_of(types.input);
  run_backward(g, types, backward_plan(g, types, tensors, kernels, threads), tensors.workspace, tensors.grad_map, threads,
               kernels.sum_map, [&](const Slice& slice, const Band& band, const Scratch& scratch, void* map_sums) {
                 kernels.backward(g, types.map, tensors, slice, band, scratch, map_sums);
               });
}

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& tensors, int threads) {
  check_types(types);
  return backward_plan(g, types, tensors, kernels_of(types.input), threads).bytes();
}

}  // namespace ddu::cpu
