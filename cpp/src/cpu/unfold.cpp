// The parallel loops of the CPU operators, and the choice of the instruction set.

#include "ddu/unfold.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace ddu::cpu {
namespace {

struct Target {
  const char* name;
  const Kernels* kernels;
};

/// The best that the processor can run, or a lesser one that the environment asks for (to test it, or to compare).
Target detect() {
#if defined(DDU_X86_TARGETS)
  const char* wish = std::getenv("DDU_CPU_CAPABILITY");
  const auto allowed = [wish](const char* name) { return !wish || std::strcmp(wish, name) == 0; };
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C, which clang < 16 cannot ask for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && allowed("avx512")) return {"avx512", avx512::kernels};
  if (avx2 && allowed("avx2")) return {"avx2", avx2::kernels};
#endif
  return {"baseline", baseline::kernels};
}

const Target& target() {
  static const Target chosen = detect();
  return chosen;
}

const Kernels& kernels_of(DType type) { return target().kernels[static_cast<int>(type)]; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int team_size(std::int64_t tasks, int threads) {
  return static_cast<int>(std::clamp<std::int64_t>(tasks, 1, std::max(threads, 1)));
}

/// Channels a task takes: as many as leave every thread a few tasks, so that a tile's geometry is shared by many.
std::int64_t channels_per_task(std::int64_t channels, int lanes, std::int64_t other_tasks, int threads) {
  const std::int64_t parts =
      std::clamp<std::int64_t>(ceil_div(4 * std::int64_t{threads}, other_tasks), 1, ceil_div(channels, lanes));
  return ceil_div(ceil_div(channels, parts), lanes) * lanes;
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

/// How a backward call is cut into tasks, and its scratch memory. The cut into slices decides the order of sums, so it is the
/// same for every thread count; the cut into bands is not, and may follow it.
struct BackwardPlan {
  Tiling tiling;
  std::int64_t parts;  // slices of a group's channels
  std::int64_t slices;
  std::int64_t bands;  // of a slice: as few as keep the threads busy, since neighbours both read the tiles between them
  std::int64_t tasks;
  int threads;
  std::size_t window;       // bytes, of two for each thread
  std::size_t map_sums;     // bytes of a slice
  std::size_t thread_sums;  // bytes of a thread, for half inputs

  BackwardPlan(const Geometry& g, Types types, const UnfoldBackward& tensors, const Kernels& kernels, int max_threads)
      : tiling(g) {
    parts = ceil_div(g.group_channels(), kernels.lanes);
    slices = g.batch * g.groups * parts;
    const std::int64_t wanted = slices == 0 || slices >= max_threads ? 1 : ceil_div(2 * std::int64_t{max_threads}, slices);
    bands = std::clamp<std::int64_t>(wanted, 1, std::min(g.h.size, tiling.down));
    const bool wanted_at_all = tensors.grad_input || tensors.grad_map;
    tasks = wanted_at_all ? slices * bands : 0;
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    const std::size_t value = types.input == DType::float64 ? sizeof(double) : sizeof(float);
    window = window_bytes(g, static_cast<std::size_t>(kernels.lanes) * value);
    map_sums = tensors.grad_map ? static_cast<std::size_t>(g.positions()) * value : 0;
    const std::int64_t sums = std::min<std::int64_t>(kernels.lanes, g.group_channels()) * ceil_div(g.h.size, bands) * g.w.size;
    thread_sums = tensors.grad_input && is_half(types.input) ? whole_lines(static_cast<std::size_t>(sums) * sizeof(float)) : 0;
  }

  std::size_t thread_bytes() const { return 2 * window + thread_sums; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(threads) * thread_bytes() + static_cast<std::size_t>(slices) * map_sums;
  }
  Band band(const Geometry& g, std::int64_t index) const {
    const std::int64_t rows = ceil_div(g.h.size, bands), tiles = ceil_div(tiling.count(), bands);
    return {std::min(index * rows, g.h.size), std::min((index + 1) * rows, g.h.size), index * tiles, (index + 1) * tiles};
  }

 private:
  static std::size_t whole_lines(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
};

#if defined(_OPENMP)
}  // namespace
}  // namespace ddu::cpu
#include <omp.h>
namespace ddu::cpu {
namespace {
int thread_index() { return omp_get_thread_num(); }
#else
int thread_index() { return 0; }
#endif

template <class Body>
void parallel_for(std::int64_t tasks, int threads, Body body) {
  const int team = team_size(tasks, threads);
  if (team == 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
  for (std::int64_t task = 0; task < tasks; ++task) body(task, thread_index());
}

}  // namespace

void unfold(const Geometry& g, Types types, const Unfold& tensors, int threads) {
  check_types(types);
  if (g.columns_numel() == 0) return;
  expect_whole_write(tensors.output, static_cast<std::size_t>(g.columns_numel()) * size_of(types.input));
  const Kernels& kernels = kernels_of(types.input);
  const Tiling tiling(g);
  const std::int64_t tiles = tiling.count();
  const std::int64_t channels = channels_per_task(g.group_channels(), kernels.lanes, g.batch * g.groups * tiles, threads);
  const std::int64_t parts = ceil_div(g.group_channels(), channels);
  parallel_for(g.batch * g.groups * parts * tiles, threads, [&](std::int64_t task, int) {
    const std::int64_t part = task / tiles % parts, plane = task / tiles / parts, first = part * channels;
    const Slice slice{plane / g.groups, plane % g.groups, first, std::min(channels, g.group_channels() - first)};
    kernels.forward(g, types.map, tensors, slice, tiling.region(task % tiles));
  });
}

std::size_t unfold_workspace_bytes(const Geometry&, Types types, const Unfold&, int) {
  check_types(types);
  return 0;
}

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& tensors, int threads) {
  check_types(types);
  return BackwardPlan(g, types, tensors, kernels_of(types.input), threads).bytes();
}

void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& tensors, int threads) {
  check_types(types);
  const Kernels& kernels = kernels_of(types.input);
  const BackwardPlan plan(g, types, tensors, kernels, threads);
  char* const map_sums = static_cast<char*>(tensors.workspace) + static_cast<std::size_t>(plan.threads) * plan.thread_bytes();
  // Slices are in the order group, image, part, so that the sums of one map plane lie together, of all images if they share
  // it.
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const std::int64_t index = task / plan.bands, part = index % plan.parts, first = part * kernels.lanes;
    const std::int64_t image = index / plan.parts % g.batch, group = index / plan.parts / g.batch;
    const Slice slice{image, group, first, std::min<std::int64_t>(kernels.lanes, g.group_channels() - first)};
    char* windows = static_cast<char*>(tensors.workspace) + static_cast<std::size_t>(thread) * plan.thread_bytes();
    kernels.backward(g, types.map, tensors, slice, plan.band(g, task % plan.bands),
                     {windows, windows + plan.window, reinterpret_cast<float*>(windows + 2 * plan.window),
                      plan.map_sums ? map_sums + static_cast<std::size_t>(index) * plan.map_sums : nullptr});
  });
  if (!tensors.grad_map) return;
  constexpr std::int64_t kRun = 4096;
  const std::int64_t runs = ceil_div(g.positions(), kRun), parts = (g.map_batch == 1 ? g.batch : 1) * plan.parts;
  parallel_for(g.map_batch * g.groups * runs, threads, [&](std::int64_t task, int) {
    const std::int64_t plane = task / runs, first = task % runs * kRun, image = plane / g.groups, group = plane % g.groups;
    const std::size_t value = plan.map_sums / static_cast<std::size_t>(g.positions());
    const std::size_t source = static_cast<std::size_t>((group * g.batch + image) * plan.parts) * plan.map_sums;
    const std::int64_t target = plane * g.positions() + first;
    kernels.sum_map(types.map, map_sums + source + static_cast<std::size_t>(first) * value, parts, g.positions(),
                    std::min(kRun, g.positions() - first),
                    static_cast<char*>(tensors.grad_map) + static_cast<std::size_t>(target) * size_of(types.map));
  });
}

const char* capability() { return target().name; }

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace ddu::cpu
