#pragma once

#include "ddu/dtype.h"
#include "ddu/geometry.h"

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

struct CUstream_st;

namespace ddu {

/// How the elements of input and grad_input lie: [batch, channels, h.size, w.size] without gaps, or in the order of
/// [batch, h.size, w.size, channels].
enum class MemoryFormat : std::int32_t { contiguous = 0, channels_last = 1 };

struct Unfold {
  const void* input;
  const void* dilation_map;
  void* output;
  void* workspace = nullptr;  ///< of unfold_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;
};

/// A null grad_input or grad_map is not computed. They have the types of input and dilation_map.
struct UnfoldBackward {
  const void* grad_output;
  const void* input;
  const void* dilation_map;
  void* grad_input;
  void* grad_map;
  void* workspace = nullptr;  ///< of unfold_backward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;
};

namespace cpu {

/// Whether the kernels take MemoryFormat::channels_last.
constexpr bool reads_channels_last = true;

/// In host memory, on at most `threads` OpenMP threads, and on one where that is less than 1. Results do not depend on their
/// number. The results are there on return.
DDU_API void unfold(const Geometry& geometry, Types types, const Unfold& tensors, int threads);
/// Scratch bytes of unfold with the same arguments (no pointer of `tensors` is read).
DDU_API size_t unfold_workspace_bytes(const Geometry& geometry, Types types, const Unfold& tensors, int threads);
DDU_API void unfold_backward(const Geometry& geometry, Types types, const UnfoldBackward& tensors, int threads);
/// Scratch bytes of unfold_backward with the same arguments (`tensors.workspace` is not read).
DDU_API size_t unfold_backward_workspace_bytes(const Geometry& geometry, Types types, const UnfoldBackward& tensors,
                                               int threads);

/// Instruction set that the kernels use: "avx512", "avx2" or "baseline". The best of this processor, or what the environment
/// variable DDU_CPU_CAPABILITY names at the first call, in any case ("baseline" where the processor lacks that).
DDU_API const char* capability();
/// Whether the kernels are parallel (built with OpenMP).
DDU_API bool has_openmp();

}  // namespace cpu

namespace cuda {

using Stream = CUstream_st*;  // cudaStream_t, without CUDA's headers

/// Whether the kernels take MemoryFormat::channels_last.
constexpr bool reads_channels_last = true;

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

/// CUDA toolkit version of this build as 1000 * major + 10 * minor; 0 for a build without CUDA.
DDU_API int toolkit_version();
/// Architectures of this build as CMake names them ("75-real;90-real;90-virtual"); "" without CUDA.
DDU_API const char* architectures();

}  // namespace cuda
}  // namespace ddu
