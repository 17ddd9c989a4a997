#pragma once

// The host side of the kernels for 3x3 taps (square.cuh). They are compiled twice: with products of warps, for all devices, and
// with those of warpgroups, for compute capability 9.0 alone.

#include "axes.cuh"
#include "ddu/device.h"
#include "ddu/geometry.h"

namespace ddu::cuda::convolution {

/// A call. Pointers are those of SquarePointers.
struct SquareCall {
  SquareParams params;
  DType type;
  int outputs;  // of a block: 64, 128 or 256
  const void *input, *slices, *map, *mask, *bias;
  void* output;
  unsigned* left;
};

/// Shared memory that every call fits.
constexpr int kMostSquareBytes = 98 * 1024;

/// Of warps: 64 outputs of a block. Of more, convolution_kernel is faster, whose warps share what they sample.
void launch_square_kernel(const SquareCall& call, const Geometry& geometry, Stream stream);

/// Whether the current device multiplies by warpgroups, and this build has the kernels.
bool has_warpgroup_kernels();
void launch_warpgroup_kernel(const SquareCall& call, const Geometry& geometry, Stream stream);

}  // namespace ddu::cuda::convolution
