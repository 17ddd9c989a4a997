#pragma once

#include "ddu/conv2d_geometry.h"
#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/memory_format.h"

// The convolution whose dilation is a map, without columns: on CUDA devices by products of 16-bit and TF32 numbers, where a
// device has those; and a depthwise one, which has no products of matrices, on any device, on the CPU also one of small groups:
//
//   output[b, o, oy, ox] = bias[o] + sum over channels c of o's group and taps t of
//                          weight[o, c, t] * mask[b, h, t, oy, ox] * S[b, c, t, oy, ox]              h = c / (C/heads)
//
// where S is what the unfold with a dilation map has for channel c and tap t (ddu/unfold.h), rounded to the type of the
// product: the input's half type, or TF32 for float32. Sums are in float32 and rounded once. The gradient of the input is two
// products in turn: of grad_output and what it weighs in pixels, tap by tap, and of that and the weight; or gradients of
// columns come first. What pixels weigh, and what stands between the products, is rounded to 11 bits, as TF32 has. Those of map
// and mask are sums of products of gradients of columns, which half types round, and pixels. A depthwise convolution rounds
// nothing but its results, and sums in float64 for float64. What is said there of tensors, memory, threads and errors holds
// here; a Conv2dGeometry comes from make_conv2d_geometry. weight, mask, bias and output have the input's type, and nothing of
// the columns' size is ever in memory.
//
// A factor of the mask that is infinite may give NaN where the definition has an infinity: the forward multiplies it with the
// weights of the four corners, of which some are zero. No output is NaN that by the definition is finite.
//
// The library has no other kernels for this operator: where a conv2d_supported says no, columns of the unfold and a product of
// matrices compute it, in pieces (Options::part). So do the Python package and ddu/torch/conv2d.h there.

namespace ddu {

struct Conv2d {
  const void* input;          ///< [batch, channels, h.size, w.size]
  const void* weight;         ///< [out_channels, channels / weight_groups, h.kernel_size, w.kernel_size], contiguous
  const void* dilation_map;   ///< [map_batch, groups, h.out_size, w.out_size], contiguous
  const void* mask;           ///< [mask_batch, heads, taps, h.out_size, w.out_size], contiguous; null for ones
  const void* bias;           ///< [out_channels]; null for zeros
  void* output;               ///< [batch, out_channels, h.out_size, w.out_size]
  void* workspace = nullptr;  ///< of conv2d_forward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of input and output
};

/// A null grad_input, grad_weight, grad_map or grad_mask is not computed; grad_mask is null where mask is. They have the types
/// and sizes of input, weight, dilation_map, mask. The gradient of the bias is the sum of grad_output over images and
/// positions, which needs none of this.
struct Conv2dBackward {
  const void* grad_output;  ///< as output
  const void* input;
  const void* weight;
  const void* dilation_map;
  const void* mask;
  void* grad_input;
  void* grad_weight;
  void* grad_map;
  void* grad_mask;
  void* workspace = nullptr;  ///< of conv2d_backward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of input, grad_input and grad_output
};

namespace cpu {

/// Whether conv2d_forward and conv2d_backward serve such calls: float32 and float64, with weight groups of up to 8 channels and
/// 8 outputs, whole numbers of which make a group and a head. A group of the map has four of them or more; if they are of one
/// channel, two, or one with a single output. A caller with half types converts what it has: the result is rounded once then
/// too.
DDU_API bool conv2d_supported(const Conv2dGeometry& geometry, Types types);
/// Throws ddu::unsupported_device where conv2d_supported says false. Results do not depend on the number of threads.
DDU_API void conv2d_forward(const Conv2dGeometry& geometry, Types types, const Conv2d& tensors, int threads);
/// Scratch bytes of conv2d_forward with the same arguments (`tensors.workspace` is not read).
DDU_API size_t conv2d_forward_workspace_bytes(const Conv2dGeometry& geometry, Types types, const Conv2d& tensors, int threads);
/// The same for the gradients.
DDU_API void conv2d_backward(const Conv2dGeometry& geometry, Types types, const Conv2dBackward& tensors, int threads);
DDU_API size_t conv2d_backward_workspace_bytes(const Conv2dGeometry& geometry, Types types, const Conv2dBackward& tensors,
                                               int threads);

}  // namespace cpu

namespace cuda {

/// Whether conv2d_forward serves such calls on the current device, in this build: of any type a depthwise convolution, which
/// has as many weight groups as channels and up to four outputs in each; otherwise half types, or float32 whose product may be
/// in TF32, on sm_80 and later. Small weight groups that have one group and one head are multiplied several at once: the
/// largest number that divides theirs and has up to 64 channels and outputs, or up to 256 where the former has fewer than 8,
/// counts as one weight group in the following. It says false for
///  - runs of channels with one group, one head and one weight group that are shorter than 16 bytes, unless one run is all of
///    the channels: a head or a group for each channel;
///  - more than one weight group, of fewer than 8 outputs each;
///  - no channels, no outputs or no taps, and sizes that do not fit in 32 bits;
///  - up to three channels with more than nine taps;
///  - many terms and few positions: 4608 channels x taps of a weight group or more and blocks for no more than half of the
///    device's multiprocessors in float32, 18432 and a quarter in half types. A block is 8x8 positions of an image and up to
///    256 outputs. Here and in the point before, chunks of columns take 0.1 to 0.9 of the time on an H100;
///  - builds without these kernels, but for a depthwise convolution (DDU_FUSED_CONV2D);
///  - builds without CUDA, and DDU_CUDA_CONV2D=columns in the environment, to compare.
DDU_API bool conv2d_supported(const Conv2dGeometry& geometry, Types types);
/// Throws ddu::unsupported_device where conv2d_supported says false.
DDU_API void conv2d_forward(const Conv2dGeometry& geometry, Types types, const Conv2d& tensors, Stream stream);
/// Scratch bytes of conv2d_forward with the same arguments on the current device (`tensors.workspace` is not read).
DDU_API size_t conv2d_forward_workspace_bytes(const Conv2dGeometry& geometry, Types types, const Conv2d& tensors);

/// The same for conv2d_backward, which serves the same calls, and few channels and positions too. Unless they are depthwise, it
/// refuses `deterministic` calls, images of 2^32 elements and more, and kernels of so many rows and columns of taps (several
/// dozen) that a block's shared memory does not hold where they lie.
DDU_API bool conv2d_backward_supported(const Conv2dGeometry& geometry, Types types, bool deterministic);
/// Throws ddu::unsupported_device where conv2d_backward_supported says false. The gradient of the weight is identical to the
/// bit from run to run, the others but for the order of their sums, unless the call is `deterministic`.
DDU_API void conv2d_backward(const Conv2dGeometry& geometry, Types types, const Conv2dBackward& tensors, bool deterministic,
                             Stream stream);
/// Scratch bytes of conv2d_backward with the same arguments on the current device (`tensors.workspace` is not read).
DDU_API size_t conv2d_backward_workspace_bytes(const Conv2dGeometry& geometry, Types types, const Conv2dBackward& tensors,
                                               bool deterministic);

}  // namespace cuda
}  // namespace ddu
