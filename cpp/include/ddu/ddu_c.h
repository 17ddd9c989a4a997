#ifndef DDU_DDU_C_H
#define DDU_DDU_C_H

/* libddu for C (C99), and for every language that can call C. What the operators compute is in ddu/unfold.h, ddu/aggregate.h
 * and ddu/correlate.h.
 *
 * Functions return a status; on any but DDU_OK, ddu_last_error() has the text, and outputs are as they were or in part
 * written. Nothing is thrown. Any thread may call; a call is safe beside any other that writes elsewhere.
 * Tensors, options and geometries are the caller's, and no call keeps them. What a CUDA call has queued on its stream still
 * uses the tensors and the workspace after it returns.
 *
 * Tensors are contiguous and do not overlap:
 *   input, grad_input           [batch, channels, h.size, w.size]
 *   dilation_map, grad_map      [map_batch, groups, h.out_size, w.out_size]
 *   output, grad_output         [batch, channels * h.kernel_size * w.kernel_size, h.out_size * w.out_size]
 */

#include <stddef.h>
#include <stdint.h>

#include "ddu/export.h"
#include "ddu/version.h"

#ifdef __cplusplus
extern "C" {
#define DDU_NOEXCEPT noexcept
#else
#define DDU_NOEXCEPT
#endif

typedef int32_t ddu_status;
enum {
  DDU_OK = 0,
  DDU_INVALID_ARGUMENT = 1, /* a size, an option or a pointer that the caller must change */
  DDU_TYPE_ERROR = 2,       /* element types that do not go together */
  DDU_CUDA_ERROR = 3,       /* a CUDA call failed, or this build cannot serve the device */
  DDU_INTERNAL_ERROR = 4    /* anything else that the C++ runtime throws */
};

typedef int32_t ddu_dtype;
enum { DDU_FLOAT16 = 0, DDU_BFLOAT16 = 1, DDU_FLOAT32 = 2, DDU_FLOAT64 = 3 };

/* The dilation map has the input's type, or float32 beside a half input. */
typedef struct ddu_types {
  ddu_dtype input;
  ddu_dtype map;
} ddu_types;

/* What a tap outside the image reads: 0, or the nearest pixel. */
typedef int32_t ddu_padding_mode;
enum { DDU_ZEROS = 0, DDU_BORDER = 1 };

typedef struct ddu_axis {
  int64_t size;     /* of the input, in pixels */
  int64_t out_size; /* of the output of this call, in positions */
  int64_t kernel_size;
  int64_t stride;
  int64_t padding;
  int64_t dilation; /* base dilation, which the map multiplies */
  int64_t origin;   /* position of the whole output that is this call's first */
} ddu_axis;

/* Made by ddu_make_geometry, and by nothing else: the other functions trust it. */
typedef struct ddu_geometry {
  int64_t batch;
  int64_t channels;
  int64_t groups;
  int64_t map_batch; /* batch, or 1 and broadcast */
  ddu_axis h;
  ddu_axis w;
  ddu_padding_mode padding_mode;
} ddu_geometry;

/* Pairs are (height, width). Start from DDU_OPTIONS_INIT. With `part` not 0, the call has only a part of the output's
 * positions: as many rows and columns as its map, from `origin` on. */
typedef struct ddu_options {
  int64_t kernel_size[2];
  int64_t stride[2];
  int64_t padding[2];
  int64_t dilation[2];
  int64_t groups;
  ddu_padding_mode padding_mode;
  int32_t part;
  int64_t origin[2];
} ddu_options;
#define DDU_OPTIONS_INIT {{1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, DDU_ZEROS, 0, {0, 0}}

/* How the elements of input and grad_input lie: as above, or in the order of [batch, h.size, w.size, channels]. */
typedef int32_t ddu_memory_format;
enum { DDU_CONTIGUOUS = 0, DDU_CHANNELS_LAST = 1 };

typedef struct ddu_unfold {
  const void* input;
  const void* dilation_map;
  void* output;    /* overwritten */
  void* workspace; /* of ddu_*_unfold_workspace_bytes, aligned to 64; may be null where that is 0 */
  ddu_memory_format input_format;
} ddu_unfold;

/* A null grad_input or grad_map is not computed; the others are overwritten. */
typedef struct ddu_unfold_backward {
  const void* grad_output;
  const void* input;
  const void* dilation_map;
  void* grad_input;
  void* grad_map;
  void* workspace; /* of ddu_*_unfold_backward_workspace_bytes, aligned to 64; may be null where that is 0 */
  ddu_memory_format input_format;
} ddu_unfold_backward;

/* Of aggregate and correlate. Made by ddu_make_aggregate_geometry or ddu_make_correlate_geometry. */
typedef struct ddu_head_geometry {
  ddu_geometry geometry;
  int64_t heads;
  int64_t factors_batch; /* of the weights: batch, or 1 and broadcast */
} ddu_head_geometry;

/* Aggregate:
 *   input, grad_input           [batch, channels, h.size, w.size]
 *   weights, grad_weights       [factors_batch, heads, taps, h.out_size, w.out_size], contiguous
 *   output, grad_output         [batch, channels, h.out_size, w.out_size]
 * input_format holds for input and output and their gradients. */
typedef struct ddu_aggregate {
  const void* input;
  const void* weights;
  const void* dilation_map;
  void* output;    /* overwritten */
  void* workspace; /* of ddu_*_aggregate_workspace_bytes, aligned to 64; may be null where that is 0 */
  ddu_memory_format input_format;
} ddu_aggregate;

/* A null gradient is not computed; the others are overwritten. */
typedef struct ddu_aggregate_backward {
  const void* grad_output;
  const void* input;
  const void* weights;
  const void* dilation_map;
  void* grad_input;
  void* grad_weights;
  void* grad_map;
  void* workspace; /* of ddu_*_aggregate_backward_workspace_bytes, aligned to 64; may be null where that is 0 */
  ddu_memory_format input_format;
} ddu_aggregate_backward;

/* Correlate:
 *   query, grad_query           [batch, channels, h.out_size, w.out_size]
 *   key, grad_key               [batch, channels, h.size, w.size]
 *   scores, grad_scores         [batch, heads, taps, h.out_size, w.out_size], contiguous
 * input_format holds for query and key and their gradients. */
typedef struct ddu_correlate {
  const void* query;
  const void* key;
  const void* dilation_map;
  void* scores;    /* overwritten */
  void* workspace; /* of ddu_*_correlate_workspace_bytes, aligned to 64; may be null where that is 0 */
  ddu_memory_format input_format;
} ddu_correlate;

/* A null gradient is not computed; the others are overwritten. */
typedef struct ddu_correlate_backward {
  const void* grad_scores;
  const void* query;
  const void* key;
  const void* dilation_map;
  void* grad_query;
  void* grad_key;
  void* grad_map;
  void* workspace; /* of ddu_*_correlate_backward_workspace_bytes, aligned to 64; may be null where that is 0 */
  ddu_memory_format input_format;
} ddu_correlate_backward;

/* Text of this thread's latest failure; valid until its next one. "" before the first. */
DDU_API const char* ddu_last_error(void) DDU_NOEXCEPT;

/* The build. ddu_version() is DDU_VERSION of the library that runs, which may be newer than the header's. */
DDU_API const char* ddu_version(void) DDU_NOEXCEPT;
DDU_API const char* ddu_cpu_capability(void) DDU_NOEXCEPT;     /* "avx512", "avx2" or "baseline" */
DDU_API int ddu_cpu_has_openmp(void) DDU_NOEXCEPT;             /* whether the CPU kernels are parallel */
DDU_API int ddu_cuda_toolkit_version(void) DDU_NOEXCEPT;       /* 1000 * major + 10 * minor; 0 for a build without CUDA */
DDU_API const char* ddu_cuda_architectures(void) DDU_NOEXCEPT; /* "75-real;90-virtual"; "" without CUDA */

/* Validates a call and works out its sizes. input is [B, C, H, W] with a map [B or 1, groups, Ho, Wo], or [C, H, W] with a
 * map [groups, Ho, Wo]; the rule for Ho and Wo is torch.nn.functional.unfold's. */
DDU_API ddu_status ddu_make_geometry(const int64_t* input_sizes, int input_dims, const int64_t* map_sizes, int map_dims,
                                     const ddu_options* options, ddu_geometry* geometry) DDU_NOEXCEPT;

/* On the CPU, in host memory, on at most `threads` OpenMP threads, and on one where that is less than 1. Results do not depend
 * on their number. */
DDU_API ddu_status ddu_cpu_unfold(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors,
                                  int threads) DDU_NOEXCEPT;
/* Scratch bytes of ddu_cpu_unfold with the same arguments (no pointer of tensors is read). */
DDU_API ddu_status ddu_cpu_unfold_workspace_bytes(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors,
                                                  int threads, size_t* bytes) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cpu_unfold_backward(const ddu_geometry* geometry, ddu_types types, const ddu_unfold_backward* tensors,
                                           int threads) DDU_NOEXCEPT;
/* Scratch bytes of ddu_cpu_unfold_backward with the same arguments (tensors->workspace is not read). */
DDU_API ddu_status ddu_cpu_unfold_backward_workspace_bytes(const ddu_geometry* geometry, ddu_types types,
                                                           const ddu_unfold_backward* tensors, int threads,
                                                           size_t* bytes) DDU_NOEXCEPT;

/* On the current CUDA device, in its memory. Work is queued on `stream`, a cudaStream_t; nothing synchronises. With
 * `deterministic` not 0, gradients are identical to the bit from run to run. */
DDU_API ddu_status ddu_cuda_unfold(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors,
                                   void* stream) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_unfold_workspace_bytes(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors,
                                                   size_t* bytes) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_unfold_backward(const ddu_geometry* geometry, ddu_types types, const ddu_unfold_backward* tensors,
                                            int deterministic, void* stream) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_unfold_backward_workspace_bytes(const ddu_geometry* geometry, ddu_types types,
                                                            const ddu_unfold_backward* tensors, int deterministic,
                                                            size_t* bytes) DDU_NOEXCEPT;

/* --- Operators without columns --- */

/* Validate a call and work out its sizes. input or key, and the map, are as for ddu_make_geometry. weights is
 * [B or 1, heads, kH * kW, Ho, Wo], query [B, C, Ho, Wo]; each has no batch where the input has none. The groups are the map's:
 * options->groups is not read. */
DDU_API ddu_status ddu_make_aggregate_geometry(const int64_t* input_sizes, int input_dims, const int64_t* weights_sizes,
                                               int weights_dims, const int64_t* map_sizes, int map_dims,
                                               const ddu_options* options, ddu_head_geometry* geometry) DDU_NOEXCEPT;
DDU_API ddu_status ddu_make_correlate_geometry(const int64_t* query_sizes, int query_dims, const int64_t* key_sizes,
                                               int key_dims, const int64_t* map_sizes, int map_dims, const ddu_options* options,
                                               int64_t heads, ddu_head_geometry* geometry) DDU_NOEXCEPT;

/* As the functions of unfold above: what they say of threads, streams, scratch bytes and `deterministic` holds. */
DDU_API ddu_status ddu_cpu_aggregate(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate* tensors,
                                     int threads) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cpu_aggregate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                     const ddu_aggregate* tensors, int threads, size_t* bytes) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_aggregate(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate* tensors,
                                      void* stream) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_aggregate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                      const ddu_aggregate* tensors, size_t* bytes) DDU_NOEXCEPT;

DDU_API ddu_status ddu_cpu_aggregate_backward(const ddu_head_geometry* geometry, ddu_types types,
                                              const ddu_aggregate_backward* tensors, int threads) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cpu_aggregate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                              const ddu_aggregate_backward* tensors, int threads,
                                                              size_t* bytes) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_aggregate_backward(const ddu_head_geometry* geometry, ddu_types types,
                                               const ddu_aggregate_backward* tensors, int deterministic,
                                               void* stream) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_aggregate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                               const ddu_aggregate_backward* tensors, int deterministic,
                                                               size_t* bytes) DDU_NOEXCEPT;

DDU_API ddu_status ddu_cpu_correlate(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate* tensors,
                                     int threads) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cpu_correlate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                     const ddu_correlate* tensors, int threads, size_t* bytes) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_correlate(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate* tensors,
                                      void* stream) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_correlate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                      const ddu_correlate* tensors, size_t* bytes) DDU_NOEXCEPT;

DDU_API ddu_status ddu_cpu_correlate_backward(const ddu_head_geometry* geometry, ddu_types types,
                                              const ddu_correlate_backward* tensors, int threads) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cpu_correlate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                              const ddu_correlate_backward* tensors, int threads,
                                                              size_t* bytes) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_correlate_backward(const ddu_head_geometry* geometry, ddu_types types,
                                               const ddu_correlate_backward* tensors, int deterministic,
                                               void* stream) DDU_NOEXCEPT;
DDU_API ddu_status ddu_cuda_correlate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                               const ddu_correlate_backward* tensors, int deterministic,
                                                               size_t* bytes) DDU_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
