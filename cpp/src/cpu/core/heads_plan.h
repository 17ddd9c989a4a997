#pragma once

// How calls of operators with heads are cut into tasks, and the memory of their threads: host code.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace ddu::cpu {

/// `values` and `sums` as in ScratchSizes.
inline ScratchSizes scratch_sizes(Types types, int lanes, std::int64_t values, std::int64_t sums) {
  ScratchSizes sizes;
  sizes.value = value_bytes(types);
  sizes.lanes = lanes;
  sizes.values = values;
  sizes.sums = sums;
  return sizes;
}

/// Channels between which a slice of sum_taps may be cut so that all slices are handed out to Vecs as the whole group is:
/// results do not depend on where slices end, and so not on the number of threads.
inline std::int64_t slice_unit(const HeadGeometry& heads, int lanes) {
  const std::int64_t of_group = heads.geometry.group_channels(), of_head = heads.head_channels();
  if (of_head == 0 || !has_own_vecs(heads, lanes)) return lanes;
  if (of_group % of_head == 0) return of_head % lanes == 0 ? lanes : of_head;
  return of_head % of_group == 0 ? lanes : of_group;
}

/// How a call of sum_taps, and its like, is cut into tasks.
struct TapPlan {
  ScratchSizes scratch;
  ForwardPlan plan;

  TapPlan(const HeadGeometry& heads, Types types, int lanes, std::int64_t values, int threads)
      : scratch(scratch_sizes(types, lanes, values, 0)),
        plan(heads.geometry, slice_unit(heads, lanes), Scratch(nullptr, heads.geometry, scratch).bytes, threads) {}
};

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

  ChannelPlan(const HeadGeometry& given, Types types, int lanes, std::int64_t values, int max_threads)
      : tiling(given.geometry) {
    const std::int64_t scores = given.geometry.taps() * tiling.most, of_head = std::max<std::int64_t>(given.head_channels(), 1);
    const std::int64_t most = std::max<std::int64_t>(kScoreBytes / static_cast<std::int64_t>(value_bytes(types)) / scores, 1);
    if (has_own_vecs(given, lanes)) {
      const std::int64_t wanted =
          ceil_div(4 * std::int64_t{max_threads}, std::max<std::int64_t>(given.factors_batch * tiling.count(), 1));
      heads = std::clamp<std::int64_t>(given.heads / wanted, 1, most);
    } else {
      heads = std::min({lanes / of_head, most, given.heads});
    }
    runs = ceil_div(given.heads, heads);
    tasks = given.factors_batch * runs * tiling.count();
    threads = tasks == 0 ? 0 : team_size(tasks, max_threads);
    scratch = scratch_sizes(types, lanes, values, heads * scores);
    thread_bytes = Scratch(nullptr, given.geometry, scratch).bytes;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(threads) * thread_bytes; }
  HeadRun run(std::int64_t task, const HeadGeometry& given) const {
    const std::int64_t index = task / tiling.count() % runs;
    return {task / tiling.count() / runs, index * heads, std::min((index + 1) * heads, given.heads)};
  }
  Region region(std::int64_t task) const { return tiling.region(task % tiling.count()); }
};

}  // namespace ddu::cpu
