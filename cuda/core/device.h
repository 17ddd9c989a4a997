#pragma once

// The current device, and what becomes of CUDA's errors.

#include <cuda_runtime.h>

namespace ddu::cuda {

/// Throws ddu::cuda_error for anything but success, and ddu::unsupported_device where this build has nothing for the device.
void check(cudaError_t status, const char* call, const char* file, int line);
#define DDU_CUDA_CHECK(call) ::ddu::cuda::check((call), #call, __FILE__, __LINE__)

struct Device {
  int major, minor;  // compute capability
  int multiprocessors;
  int shared_per_multiprocessor;  // bytes
  int shared_per_block;           // bytes, where a kernel asks for them
  bool overlaps;                  // whether kernels of a stream may overlap (dependent_launch.cuh)
  bool has_mma;                   // whether the code that runs here has products of matrices (mma.cuh)
};

/// What is known of the current device. CUDA is asked once for each.
const Device& current_device();

/// Which kernels the environment asks for, where there is a choice: DDU_CUDA_PATH=planar, with windows of the usual size, wide
/// or channels_last. For tests.
enum class Path { either, planar, wide, channels_last };
Path requested_path();
/// Whether it asks for columns where the convolution has kernels of its own: DDU_CUDA_CONV2D=columns. For comparisons.
bool requests_columns();

}  // namespace ddu::cuda
