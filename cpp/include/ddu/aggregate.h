#pragma once

#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"

// The weighted sum of what lies under each window, without columns:
//
//   output[b, c, oy, ox] = sum over taps t of  weights[b, h, t, oy, ox] * S[b, c, t, oy, ox]      h = c / (C/heads)
//
// where S is what the unfold with a dilation map has for channel c and tap t (ddu/unfold.h). Sums are in float32, or float64
// for float64, and rounded once. What is said there of tensors, memory, threads and errors holds here; a HeadGeometry comes
// from make_aggregate_geometry. weights has the input's type, and nothing of the columns' size is ever in memory.

namespace ddu {

struct Aggregate {
  const void* input;          ///< [batch, channels, h.size, w.size]
  const void* weights;        ///< [factors_batch, heads, taps, h.out_size, w.out_size], contiguous
  const void* dilation_map;   ///< [map_batch, groups, h.out_size, w.out_size], contiguous
  void* output;               ///< [batch, channels, h.out_size, w.out_size]
  void* workspace = nullptr;  ///< of aggregate_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of input and output
};

/// A null grad_input, grad_weights or grad_map is not computed. They have the types and sizes of input, weights, dilation_map.
struct AggregateBackward {
  const void* grad_output;
  const void* input;
  const void* weights;
  const void* dilation_map;
  void* grad_input;
  void* grad_weights;
  void* grad_map;
  void* workspace = nullptr;  ///< of aggregate_backward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of input, grad_input and grad_output
};

namespace cpu {

DDU_API void aggregate(const HeadGeometry& geometry, Types types, const Aggregate& tensors, int threads);
/// Scratch bytes of aggregate with the same arguments (no pointer of `tensors` is read).
DDU_API size_t aggregate_workspace_bytes(const HeadGeometry& geometry, Types types, const Aggregate& tensors, int threads);
DDU_API void aggregate_backward(const HeadGeometry& geometry, Types types, const AggregateBackward& tensors, int threads);
/// Scratch bytes of aggregate_backward with the same arguments (`tensors.workspace` is not read).
DDU_API size_t aggregate_backward_workspace_bytes(const HeadGeometry& geometry, Types types, const AggregateBackward& tensors,
                                                  int threads);

}  // namespace cpu

namespace cuda {

DDU_API void aggregate(const HeadGeometry& geometry, Types types, const Aggregate& tensors, Stream stream);
/// Scratch bytes of aggregate with the same arguments on the current device (no pointer of `tensors` is read).
DDU_API size_t aggregate_workspace_bytes(const HeadGeometry& geometry, Types types, const Aggregate& tensors);
/// With `deterministic`, gradients are identical to the bit from run to run.
DDU_API void aggregate_backward(const HeadGeometry& geometry, Types types, const AggregateBackward& tensors, bool deterministic,
                                Stream stream);
/// Scratch bytes of aggregate_backward with the same arguments on the current device (`tensors.workspace` is not read).
DDU_API size_t aggregate_backward_workspace_bytes(const HeadGeometry& geometry, Types types, const AggregateBackward& tensors,
                                                  bool deterministic);

}  // namespace cuda
}  // namespace ddu
