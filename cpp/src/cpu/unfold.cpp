// The parallel loops of the unfold on the CPU: how calls are cut into tasks, and their scratch memory.

#include "ddu/unfold.h"

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/parallel.h"
#include "core/targets.h"
#include "unfold_kernels.h"

namespace ddu::cpu {
namespace {

const UnfoldKernels& kernels_of(DType type) {
#if defined(DDU_X86_TARGETS)
  if (target() == Target::avx512) return avx512::unfold_kernels[static_cast<int>(type)];
  if (target() == Target::avx2) return avx2::unfold_kernels[static_cast<int>(type)];
#endif
  return baseline::unfold_kernels[static_cast<int>(type)];
}

std::size_t value_bytes(Types types) { return types.input == DType::float64 ? sizeof(double) : sizeof(float); }

/// Channels a task takes: as many as leave every thread a few tasks, so that a tile's geometry is shared by many.
std::int64_t channels_per_task(std::int64_t channels, int lanes, std::int64_t other_tasks, int threads) {
  const std::int64_t slices =
      std::clamp<std::int64_t>(ceil_div(4 * std::int64_t{threads}, other_tasks), 1, ceil_div(channels, lanes));
  return round_up<std::int64_t>(ceil_div(channels, slices), lanes);
}

/// Asks for huge pages under an output that is written whole: the first touch of fresh memory, page by page, otherwise costs
/// several times what the kernel does.
void expect_whole_write(void* output, std::size_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t page = 4096;
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(output) + page - 1) / page * page;
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(output) + bytes) / page * page;
  if (bytes >= static_cast<std::size_t>(kLarge)) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

/// How a forward call is cut into tasks: a slice and a tile each.
struct ForwardPlan {
  Tiling tiling;
  std::int64_t channels;  // of a slice
  std::int64_t slices;    // of a group's channels
  std::int64_t tasks;
  int threads;
  std::size_t thread_bytes;  // of scratch memory

  ForwardPlan(const Geometry& g, Types types, const UnfoldKernels& kernels, int max_threads) : tiling(g) {
    const std::int64_t others = g.batch * g.groups * tiling.count();
    const bool empty = others == 0 || g.channels == 0;
    channels = empty ? 1 : channels_per_task(g.group_channels(), kernels.lanes, others, max_threads);
    slices = ceil_div(g.group_channels(), channels);
    tasks = others * slices;
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    thread_bytes = Scratch::bytes(g, value_bytes(types), kernels.lanes, false, 0);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(threads) * thread_bytes; }
};

/// How a backward call is cut into tasks, and its scratch memory. The cut into slices decides the order of sums, so it is the
/// same for every thread count; the cut into bands is not, and may follow it.
struct BackwardPlan {
  Tiling tiling;
  std::int64_t group_slices;  // of a group's channels
  std::int64_t slices;
  std::int64_t bands;  // of a slice: as few as keep the threads busy, since neighbours both read the tiles between them
  std::int64_t tasks;
  int threads;
  std::int64_t band_sums;    // of a thread, for half inputs
  std::size_t thread_bytes;  // of scratch memory
  std::size_t map_sums;      // bytes of a slice

  BackwardPlan(const Geometry& g, Types types, const UnfoldBackward& tensors, const UnfoldKernels& kernels, int max_threads)
      : tiling(g) {
    group_slices = ceil_div(g.group_channels(), kernels.lanes);
    slices = g.batch * g.groups * group_slices;
    const std::int64_t wanted = slices == 0 || slices >= max_threads ? 1 : ceil_div(2 * std::int64_t{max_threads}, slices);
    bands = std::clamp<std::int64_t>(wanted, 1, std::min(g.h.size, tiling.down));
    const bool wanted_at_all = tensors.grad_input || tensors.grad_map;
    tasks = wanted_at_all ? slices * bands : 0;
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    const std::int64_t sums = std::min<std::int64_t>(kernels.lanes, g.group_channels()) * ceil_div(g.h.size, bands) * g.w.size;
    band_sums = tensors.grad_input && is_half(types.input) ? sums : 0;
    thread_bytes = Scratch::bytes(g, value_bytes(types), kernels.lanes, true, band_sums);
    map_sums = tensors.grad_map ? static_cast<std::size_t>(g.positions()) * value_bytes(types) : 0;
  }

  std::size_t bytes() const { return map_sums_at() + static_cast<std::size_t>(slices) * map_sums; }
  /// Bytes before the sums for the map.
  std::size_t map_sums_at() const { return static_cast<std::size_t>(threads) * thread_bytes; }
  Band band(const Geometry& g, std::int64_t index) const {
    const std::int64_t rows = ceil_div(g.h.size, bands), tiles = ceil_div(tiling.count(), bands);
    return {std::min(index * rows, g.h.size), std::min((index + 1) * rows, g.h.size), index * tiles, (index + 1) * tiles};
  }
};

char* thread_memory(void* workspace, int thread, std::size_t bytes) {
  return static_cast<char*>(workspace) + static_cast<std::size_t>(thread) * bytes;
}

}  // namespace

void unfold(const Geometry& g, Types types, const Unfold& tensors, int threads) {
  check_types(types);
  if (g.columns_numel() == 0) return;
  expect_whole_write(tensors.output, static_cast<std::size_t>(g.columns_numel()) * size_of(types.input));
  const UnfoldKernels& kernels = kernels_of(types.input);
  const ForwardPlan plan(g, types, kernels, threads);
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const std::int64_t tiles = plan.tiling.count(), part = task / tiles % plan.slices, plane = task / tiles / plan.slices;
    const std::int64_t first = part * plan.channels;
    const Slice slice{plane / g.groups, plane % g.groups, first, std::min(plan.channels, g.group_channels() - first)};
    const Scratch scratch(thread_memory(tensors.workspace, thread, plan.thread_bytes), g, value_bytes(types), kernels.lanes,
                          false, 0);
    kernels.forward(g, types.map, tensors, slice, plan.tiling.region(task % tiles), scratch);
  });
}

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold&, int threads) {
  check_types(types);
  return ForwardPlan(g, types, kernels_of(types.input), threads).bytes();
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& tensors, int threads) {
  check_types(types);
  const UnfoldKernels& kernels = kernels_of(types.input);
  const BackwardPlan plan(g, types, tensors, kernels, threads);
  char* const map_sums = static_cast<char*>(tensors.workspace) + plan.map_sums_at();
  // Slices are in the order group, image, channels, so that the sums of one map plane lie together, of all images if they share
  // it.
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const std::int64_t index = task / plan.bands, first = index % plan.group_slices * kernels.lanes;
    const std::int64_t image = index / plan.group_slices % g.batch, group = index / plan.group_slices / g.batch;
    const Slice slice{image, group, first, std::min<std::int64_t>(kernels.lanes, g.group_channels() - first)};
    const Scratch scratch(thread_memory(tensors.workspace, thread, plan.thread_bytes), g, value_bytes(types), kernels.lanes,
                          true, plan.band_sums);
    kernels.backward(g, types.map, tensors, slice, plan.band(g, task % plan.bands), scratch,
                     plan.map_sums ? map_sums + static_cast<std::size_t>(index) * plan.map_sums : nullptr);
  });
  if (!tensors.grad_map) return;
  constexpr std::int64_t kRun = 4096;
  const std::int64_t runs = ceil_div(g.positions(), kRun), slices = (g.map_batch == 1 ? g.batch : 1) * plan.group_slices;
  parallel_for(g.map_batch * g.groups * runs, threads, [&](std::int64_t task, int) {
    const std::int64_t plane = task / runs, first = task % runs * kRun, image = plane / g.groups, group = plane % g.groups;
    const std::size_t source = static_cast<std::size_t>((group * g.batch + image) * plan.group_slices) * plan.map_sums;
    const std::int64_t target = plane * g.positions() + first;
    kernels.sum_map(types.map, map_sums + source + static_cast<std::size_t>(first) * value_bytes(types), slices, g.positions(),
                    std::min(kRun, g.positions() - first),
                    static_cast<char*>(tensors.grad_map) + static_cast<std::size_t>(target) * size_of(types.map));
  });
}

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& tensors, int threads) {
  check_types(types);
  return BackwardPlan(g, types, tensors, kernels_of(types.input), threads).bytes();
}

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace ddu::cpu
