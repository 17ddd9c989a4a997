#pragma once

#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"

// A query compared with what lies under its window, without columns:
//
//   scores[b, h, t, oy, ox] = sum over channels c of head h of  query[b, c, oy, ox] * S[b, c, t, oy, ox]
//
// where S is what the unfold of key with a dilation map has for channel c and tap t (ddu/unfold.h). Sums are in float32, or
// float64 for float64, and rounded once. What is said there of tensors, memory, threads and errors holds here; a HeadGeometry
// comes from make_correlate_geometry. query and scores have the key's type, and nothing of the columns' size is ever in memory.

namespace ddu {

struct Correlate {
  const void* query;          ///< [batch, channels, h.out_size, w.out_size]
  const void* key;            ///< [batch, channels, h.size, w.size]
  const void* dilation_map;   ///< [map_batch, groups, h.out_size, w.out_size], contiguous
  void* scores;               ///< [batch, heads, taps, h.out_size, w.out_size], contiguous
  void* workspace = nullptr;  ///< of correlate_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of query and key
};

/// A null grad_query, grad_key or grad_map is not computed. They have the types and sizes of query, key, dilation_map.
struct CorrelateBackward {
  const void* grad_scores;
  const void* query;
  const void* key;
  const void* dilation_map;
  void* grad_query;
  void* grad_key;
  void* grad_map;
  void* workspace = nullptr;  ///< of correlate_backward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of query, key, grad_query and grad_key
};

namespace cpu {

DDU_API void correlate(const HeadGeometry& geometry, Types types, const Correlate& tensors, int threads);
/// Scratch bytes of correlate with the same arguments (no pointer of `tensors` is read).
DDU_API size_t correlate_workspace_bytes(const HeadGeometry& geometry, Types types, const Correlate& tensors, int threads);
DDU_API void correlate_backward(const HeadGeometry& geometry, Types types, const CorrelateBackward& tensors, int threads);
/// Scratch bytes of correlate_backward with the same arguments (`tensors.workspace` is not read).
DDU_API size_t correlate_backward_workspace_bytes(const HeadGeometry& geometry, Types types, const CorrelateBackward& tensors,
                                                  int threads);

}  // namespace cpu

namespace cuda {

DDU_API void correlate(const HeadGeometry& geometry, Types types, const Correlate& tensors, Stream stream);
/// Scratch bytes of correlate with the same arguments on the current device (no pointer of `tensors` is read).
DDU_API size_t correlate_workspace_bytes(const HeadGeometry& geometry, Types types, const Correlate& tensors);
/// With `deterministic`, gradients are identical to the bit from run to run.
DDU_API void correlate_backward(const HeadGeometry& geometry, Types types, const CorrelateBackward& tensors, bool deterministic,
                                Stream stream);
/// Scratch bytes of correlate_backward with the same arguments on the current device (`tensors.workspace` is not read).
DDU_API size_t correlate_backward_workspace_bytes(const HeadGeometry& geometry, Types types, const CorrelateBackward& tensors,
                                                  bool deterministic);

}  // namespace cuda
}  // namespace ddu
