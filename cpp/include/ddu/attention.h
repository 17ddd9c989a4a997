#pragma once

#include "ddu/device.h"
#include "ddu/dtype.h"
#include "ddu/head_geometry.h"
#include "ddu/memory_format.h"

// Attention of each position to the taps of its window, without columns and without scores in memory:
//
//   s[b, h, t]     = scale * sum over channels c of head h of query[b, c] * S_key[b, c, t]  +  bias[b, h, t]
//   output[b, c]   = sum over t of e^s[b, h, t] * S_value[b, c, t]  /  sum over t of m[b, t] * e^s[b, h, t]
//
// at every position of the output, where S are what the unfold has for channel c and tap t (ddu/unfold.h), and m is the share
// of a tap that lies on pixels; 0 where no tap meets any. On CUDA, for the calls that cuda::attention_supported names: any
// other is composed of correlate, a softmax and aggregate by its caller. A HeadGeometry comes from make_correlate_geometry.
// All value tensors have the key's type and sizes, sums are in float32 and rounded once.

namespace ddu {

struct Attention {
  const void* query;         ///< [batch, channels, h.out_size, w.out_size]
  const void* key;           ///< [batch, channels, h.size, w.size]
  const void* value;         ///< as key
  const void* dilation_map;  ///< [map_batch, groups, h.out_size, w.out_size], contiguous
  const float* bias;         ///< null for none
  int64_t bias_strides[4];   ///< elements of bias from one image, head, tap and position to the next; 0 where one serves all
  float scale;
  void* output;               ///< as query
  float* normalizers;         ///< what backward needs, [batch, heads, h.out_size, w.out_size]; null if there will be none
  void* workspace = nullptr;  ///< of attention_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
  MemoryFormat input_format = MemoryFormat::contiguous;  ///< of query, key, value and output
};

/// A null gradient is not computed. They have the types and sizes of the tensors they are of; that of the scores is float32,
/// [batch, heads, taps, h.out_size, w.out_size], and where bias was broadcast its gradient is the sum of it.
struct AttentionBackward {
  Attention forward;        ///< as it was called; its workspace is not read
  const void* grad_output;  ///< as output
  void* grad_query;
  void* grad_key;
  void* grad_value;
  void* grad_map;
  float* grad_scores;
  void* workspace = nullptr;  ///< of attention_backward_workspace_bytes(...) bytes, aligned to 64; may be null where that is 0
};

namespace cuda {

/// Whether there are kernels for a call: not for float64, for heads of more than 64 channels, or whose channels_last
/// channels are no multiple of 16 bytes or of 4, nor where blocks of the current device have too little shared memory, which
/// is so for heads of up to 4 channels where they have less than 104 KB, and of up to 8 where they have 64.
DDU_API bool attention_supported(const HeadGeometry& geometry, Types types, MemoryFormat input_format);
/// Pointers of a channels_last call are aligned to 16 bytes.
DDU_API void attention(const HeadGeometry& geometry, Types types, const Attention& tensors, Stream stream);
/// Scratch bytes of attention with the same arguments on the current device (no pointer of `tensors` is read).
DDU_API size_t attention_workspace_bytes(const HeadGeometry& geometry, Types types, const Attention& tensors);
/// Gradients of key, value and map are sums in an order that differs from run to run.
DDU_API void attention_backward(const HeadGeometry& geometry, Types types, const AttentionBackward& tensors, Stream stream);
/// Scratch bytes of attention_backward with the same arguments on the current device (`tensors.workspace` is not read).
DDU_API size_t attention_backward_workspace_bytes(const HeadGeometry& geometry, Types types, const AttentionBackward& tensors);

}  // namespace cuda
}  // namespace ddu
