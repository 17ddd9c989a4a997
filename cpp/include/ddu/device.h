#pragma once

#include "ddu/export.h"

// What the operators say of the devices that they run on.

struct CUstream_st;

namespace ddu {
namespace cpu {

/// Whether the kernels take MemoryFormat::channels_last.
constexpr bool reads_channels_last = true;

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

/// CUDA toolkit version of this build as 1000 * major + 10 * minor; 0 for a build without CUDA.
DDU_API int toolkit_version();
/// Architectures of this build as CMake names them ("75-real;90-real;90-virtual"); "" without CUDA.
DDU_API const char* architectures();

}  // namespace cuda
}  // namespace ddu
