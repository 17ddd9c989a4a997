// The parallel loops of the CPU operators, and the choice of the instruction set.

#include "ddu/unfold.h"

#include <algorithm>

#include "kernels.h"

namespace ddu::cpu {
namespace {

struct Target {
  const char* name;
  const Kernels* kernels;
};

Target detect() {
#if defined(DDU_X86_TARGETS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return {"avx512", avx512::kernels};
  if (avx2) return {"avx2", avx2::kernels};
#endif
  return {"baseline", baseline::kernels};
}

const Target& target() {
  static const Target chosen = detect();
  return chosen;
}

const Kernels& kernels_of(DType type) { return target().kernels[static_cast<int>(type)]; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Channels a task takes: as many as leave every thread a few tasks, so that a tile's geometry is shared by many.
std::int64_t channels_per_task(std::int64_t channels, std::int64_t other_tasks, int threads) {
  const std::int64_t parts = std::clamp<std::int64_t>(ceil_div(4 * std::int64_t{threads}, std::max<std::int64_t>(other_tasks, 1)), 1,
                                                      std::max<std::int64_t>(channels, 1));
  return std::max<std::int64_t>(ceil_div(channels, parts), 1);
}

bool accumulates_apart(Types types, const Backward& tensors) { return tensors.grad_input && is_half(types.input); }

int grad_input_threads(const Geometry& g, int threads) {
  return static_cast<int>(std::clamp<std::int64_t>(g.batch * g.channels, 1, std::max(threads, 1)));
}

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
  const int team = static_cast<int>(std::clamp<std::int64_t>(tasks, 1, std::max(threads, 1)));
  if (team == 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
  for (std::int64_t task = 0; task < tasks; ++task) body(task, thread_index());
}

}  // namespace

void unfold(const Geometry& g, Types types, const Forward& tensors, int threads) {
  check_types(types);
  if (g.output_numel() == 0) return;
  const Kernels& kernels = kernels_of(types.input);
  const std::int64_t tile = tile_positions(g), tiles = ceil_div(g.positions(), tile);
  const std::int64_t channels = channels_per_task(g.group_channels(), g.batch * g.groups * tiles, threads);
  const std::int64_t parts = ceil_div(g.group_channels(), channels);
  parallel_for(g.batch * g.groups * parts * tiles, threads, [&](std::int64_t task, int) {
    const std::int64_t part = task / tiles % parts, plane = task / tiles / parts;
    const std::int64_t first = part * channels, position = task % tiles * tile;
    kernels.forward(g, types.map, tensors,
                    {plane / g.groups, plane % g.groups, first, std::min(channels, g.group_channels() - first), position,
                     std::min(tile, g.positions() - position)});
  });
}

std::size_t workspace_bytes(const Geometry& g, Types types, const Backward& tensors, int threads) {
  if (!accumulates_apart(types, tensors)) return 0;
  return sizeof(float) * static_cast<std::size_t>(g.pixels()) * static_cast<std::size_t>(grad_input_threads(g, threads));
}

void unfold_backward(const Geometry& g, Types types, const Backward& tensors, int threads) {
  check_types(types);
  const Kernels& kernels = kernels_of(types.input);
  if (tensors.grad_input && g.input_numel() > 0) {
    float* sums = accumulates_apart(types, tensors) ? static_cast<float*>(tensors.workspace) : nullptr;
    parallel_for(g.batch * g.channels, grad_input_threads(g, threads), [&](std::int64_t plane, int thread) {
      const std::int64_t channel = plane % g.channels;
      kernels.grad_input(g, types.map, tensors,
                         {plane / g.channels, channel / g.group_channels(), channel % g.group_channels(), 1, 0, g.positions()},
                         sums ? sums + thread * g.pixels() : nullptr);
    });
  }
  if (tensors.grad_map) {
    const std::int64_t tile = tile_positions(g), tiles = ceil_div(g.positions(), tile);
    parallel_for(g.map_batch * g.groups * tiles, threads, [&](std::int64_t task, int) {
      const std::int64_t plane = task / tiles, position = task % tiles * tile;
      kernels.grad_map(g, types.map, tensors,
                       {plane / g.groups, plane % g.groups, 0, g.group_channels(), position,
                        std::min(tile, g.positions() - position)});
    });
  }
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
