#pragma once

// How calls are cut into tasks, and the memory that their threads need: host code, shared by all operators.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "caches.h"
#include "ddu/dtype.h"
#include "parallel.h"
#include "scratch.h"
#include "targets.h"
#include "tiling.h"

namespace ddu::cpu {

/// Asks for huge pages under an output that is written whole: the first touch of fresh memory, page by page, otherwise costs
/// several times what the kernel does.
inline void advise_huge_pages([[maybe_unused]] void* output, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t page = 4096;
  const std::uintptr_t first = round_up(reinterpret_cast<std::uintptr_t>(output), page);
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(output) + bytes) / page * page;
  if (exceeds_caches(static_cast<std::int64_t>(bytes))) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline std::size_t value_bytes(Types types) { return types.input == DType::float64 ? sizeof(double) : sizeof(float); }

/// Of the tables of an operator, one for each instruction set, the entry for `type` of the one that runs.
#if defined(DDU_X86_TARGETS)
#define DDU_KERNELS_FOR(table, type)          \
  (target() == Target::avx512 ? avx512::table \
   : target() == Target::avx2 ? avx2::table   \
                              : baseline::table)[static_cast<int>(type)]
#else
#define DDU_KERNELS_FOR(table, type) (baseline::table)[static_cast<int>(type)]
#endif

/// Channels a task takes: as many as leave every thread a few tasks, so that a tile's geometry is shared by many. A multiple of
/// `unit`.
inline std::int64_t channels_per_task(std::int64_t channels, std::int64_t unit, std::int64_t other_tasks, int threads) {
  const std::int64_t slices =
      std::clamp<std::int64_t>(ceil_div(4 * std::int64_t{threads}, other_tasks), 1, ceil_div(channels, unit));
  return round_up<std::int64_t>(ceil_div(channels, slices), unit);
}

/// How a call that computes a value for each position and channel is cut into tasks: a slice and a tile each.
struct ForwardPlan {
  Tiling tiling;
  std::int64_t channels;  // of a slice
  std::int64_t slices;    // of a group's channels
  std::int64_t tasks;
  int threads;
  std::size_t thread_bytes;  // of scratch memory

  /// `unit`: the channels between which slices may be cut.
  ForwardPlan(const Geometry& g, std::int64_t unit, std::size_t scratch, int max_threads) : tiling(g), thread_bytes(scratch) {
    const std::int64_t others = g.batch * g.groups * tiling.count();
    const bool empty = others == 0 || g.channels == 0;
    channels = empty ? 1 : channels_per_task(g.group_channels(), unit, others, max_threads);
    slices = ceil_div(g.group_channels(), channels);
    tasks = others * slices;
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(threads) * thread_bytes; }
  Slice slice(const Geometry& g, std::int64_t task) const {
    const std::int64_t index = task / tiling.count() % slices, plane = task / tiling.count() / slices;
    const std::int64_t first = index * channels;
    return {plane / g.groups, plane % g.groups, first, std::min(channels, g.group_channels() - first)};
  }
  Region region(std::int64_t task) const { return tiling.region(task % tiling.count()); }
};

/// How a backward call is cut into tasks, and its scratch memory. The cut into slices decides the order of sums, so it is the
/// same for every thread count; the cut into bands is not, and may follow it.
struct BackwardPlan {
  Tiling tiling;
  int lanes;
  std::int64_t members;       // of each channel: see Slice
  std::int64_t group_slices;  // of a group's channels
  std::int64_t slices;
  std::int64_t bands;  // of a slice
  std::int64_t tasks;
  int threads;
  ScratchSizes scratch;
  std::size_t thread_bytes;  // of scratch memory
  std::size_t map_sums;      // bytes of a slice

  /// `values` as in ScratchSizes.
  BackwardPlan(const Geometry& g, Types types, bool to_input, bool to_map, std::int64_t values, int lanes, int max_threads,
               std::int64_t members = 1)
      : tiling(g), lanes(lanes), members(members) {
    group_slices = members * ceil_div(g.group_channels(), lanes);
    slices = g.batch * g.groups * group_slices;
    bands = bands_of(g, max_threads);
    tasks = to_input || to_map ? slices * bands : 0;
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    const std::int64_t sums = std::min<std::int64_t>(lanes, g.group_channels()) * ceil_div(g.h.size, bands) * g.w.size;
    scratch.value = value_bytes(types);
    scratch.lanes = lanes;
    scratch.backward = true;
    scratch.values = values;
    scratch.sums = to_input && is_half(types.input) ? sums : 0;
    thread_bytes = Scratch(nullptr, g, scratch).bytes;
    map_sums = to_map ? static_cast<std::size_t>(g.positions()) * value_bytes(types) : 0;
  }

  std::size_t bytes() const { return map_sums_at() + static_cast<std::size_t>(slices) * map_sums; }
  /// Bytes before the sums for the map.
  std::size_t map_sums_at() const { return static_cast<std::size_t>(threads) * thread_bytes; }
  Band band(const Geometry& g, std::int64_t index) const {
    const std::int64_t rows = ceil_div(g.h.size, bands), tiles = ceil_div(tiling.count(), bands);
    return {std::min(index * rows, g.h.size), std::min((index + 1) * rows, g.h.size), index * tiles, (index + 1) * tiles};
  }
  /// Slices are in the order group, image, channels, members, so that the sums of one map plane lie together, of all images if
  /// they share it.
  Slice slice(const Geometry& g, std::int64_t index) const {
    const std::int64_t first = index % group_slices / members * lanes;
    const std::int64_t image = index / group_slices % g.batch, group = index / group_slices / g.batch;
    return {image, group, first, std::min<std::int64_t>(lanes, g.group_channels() - first), index % members};
  }

 private:
  /// The number of bands whose rows of tiles, one after the other, are fewest for the busiest thread. Those between two bands
  /// are taken by both: one row of them, if rates are small.
  std::int64_t bands_of(const Geometry& g, int max_threads) const {
    const std::int64_t team = std::max(max_threads, 1);
    const auto rows_of_a_thread = [&](std::int64_t count) {
      const std::int64_t shared = std::min<std::int64_t>(count - 1, 2);
      return ceil_div(slices * count, team) * (ceil_div(tiling.down, count) + shared);
    };
    std::int64_t best = 1;
    for (std::int64_t count = 2; count <= std::min({g.h.size, tiling.down, 2 * team}); ++count) {
      if (rows_of_a_thread(count) < rows_of_a_thread(best)) best = count;
    }
    return best;
  }
};

inline char* thread_memory(void* workspace, int thread, std::size_t bytes) {
  return static_cast<char*>(workspace) + static_cast<std::size_t>(thread) * bytes;
}

/// Runs kernel(slice, band, scratch, map_sums) for all slices and bands, then adds up the map's gradient.
template <class Kernel>
void run_backward(const Geometry& g, Types types, const BackwardPlan& plan, void* workspace, void* grad_map, int threads,
                  SumMap sum_map, Kernel kernel) {
  char* const map_sums = static_cast<char*>(workspace) + plan.map_sums_at();
  parallel_for(plan.tasks, plan.threads, [&](std::int64_t task, int thread) {
    const std::int64_t index = task / plan.bands;
    const Scratch scratch(thread_memory(workspace, thread, plan.thread_bytes), g, plan.scratch);
    kernel(plan.slice(g, index), plan.band(g, task % plan.bands), scratch,
           plan.map_sums ? map_sums + static_cast<std::size_t>(index) * plan.map_sums : nullptr);
  });
  if (!grad_map) return;
  constexpr std::int64_t kRun = 4096;
  const std::int64_t runs = ceil_div(g.positions(), kRun), slices = (g.map_batch == 1 ? g.batch : 1) * plan.group_slices;
  parallel_for(g.map_batch * g.groups * runs, threads, [&](std::int64_t task, int) {
    const std::int64_t plane = task / runs, first = task % runs * kRun, image = plane / g.groups, group = plane % g.groups;
    const std::size_t source = static_cast<std::size_t>((group * g.batch + image) * plan.group_slices) * plan.map_sums;
    const std::int64_t target = plane * g.positions() + first;
    sum_map(types.map, map_sums + source + static_cast<std::size_t>(first) * value_bytes(types), slices, g.positions(),
            std::min(kRun, g.positions() - first),
            static_cast<char*>(grad_map) + static_cast<std::size_t>(target) * size_of(types.map));
  });
}

}  // namespace ddu::cpu
