#pragma once

#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/geometry.h"
#include "ddu/memory_format.h"

// Unfold with a dilation map:
//
//   y = oy*s_h - p_h + (kH-1)/2*d_h + (ky - (kH-1)/2)*d_h*D[b,g,oy,ox]       x alike,  g = c / (C/G)
//   output[b, (c*kH + ky)*kW + kx, oy*Wo + ox] = bilinear(input[b,c], y, x)
//
// Tensors are contiguous, in the layouts of Geometry unless input_format says otherwise, and do not overlap. A Geometry comes
// from make_geometry: the functions trust it, and they trust the pointers. Outputs are overwritten. Nothing here allocates
// tensors or keeps what it is given: memory, scratch memory too, is the caller's. Any thread may call; a call is safe beside
// any other that writes elsewhere.
//
// Errors are thrown as the types of ddu/error.h, which this header leaves out: it costs its users no more than <cstdint>.
// Every function that takes Types throws ddu::type_error where the two do not go together.

namespace ddu {

struct Unfold {
  const void* input;
  const void* dilation_map;
  void* output;
  void* workspace = nullptr;  ///< of unfold_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of input
};

/// A null grad_input or grad_map is not computed. They have the types of input and dilation_map.
struct UnfoldBackward {
  const void* grad_output;
  const void* input;
  const void* dilation_map;
  void* grad_input;
  void* grad_map;
  void* workspace = nullptr;  ///< of unfold_backward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of input and grad_input
};

namespace cpu {

/// In host memory, on at most `threads` OpenMP threads, and on one where that is less than 1. Results do not depend on their
/// number. The results are there on return.
DDU_API void unfold(const Geometry& geometry, Types types, const Unfold& tensors, int threads);
/// Scratch bytes of unfold with the same arguments (no pointer of `tensors` is read).
DDU_API size_t unfold_workspace_bytes(const Geometry& geometry, Types types, const Unfold& tensors, int threads);
DDU_API void unfold_backward(const Geometry& geometry, Types types, const UnfoldBackward& tensors, int threads);
/// Scratch bytes of unfold_backward with the same arguments (`tensors.workspace` is not read).
DDU_API size_t unfold_backward_workspace_bytes(const Geometry& geometry, Types types, const UnfoldBackward& tensors,
                                               int threads);

}  // namespace cpu

namespace cuda {

/// In memory of the current device. Work is queued on `stream`, and nothing synchronises: tensors and workspace must live
/// until the stream has come so far. Calls can be captured into a CUDA graph. Throws ddu::cuda_error where CUDA refuses a call,
/// and ddu::unsupported_device where this build cannot serve the device.
DDU_API void unfold(const Geometry& geometry, Types types, const Unfold& tensors, Stream stream);
/// Scratch bytes of unfold with the same arguments on the current device (no pointer of `tensors` is read).
DDU_API size_t unfold_workspace_bytes(const Geometry& geometry, Types types, const Unfold& tensors);
/// With `deterministic`, gradients are identical to the bit from run to run.
DDU_API void unfold_backward(const Geometry& geometry, Types types, const UnfoldBackward& tensors, bool deterministic,
                             Stream stream);
/// Scratch bytes of unfold_backward with the same arguments on the current device (`tensors.workspace` is not read).
DDU_API size_t unfold_backward_workspace_bytes(const Geometry& geometry, Types types, const UnfoldBackward& tensors,
                                               bool deterministic);

}  // namespace cuda
}  // namespace ddu
